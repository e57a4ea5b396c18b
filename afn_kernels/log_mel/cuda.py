"""One launch from samples to features: csrc/cuda/log_mel.cu, whose tables are made here."""

import math

import torch

from afn_kernels import _cuda, _triton
from afn_kernels._counters import counters
from afn_kernels._kept import kept
from afn_kernels.log_mel.tables import BINS, hann_window, mel_filters

FRAMES, THREADS = 32, 320
WEIGHTS = 704
TABLES = 2 * (200 + 200 + 102) + 4 * 128 + WEIGHTS  # 4-byte words
BLOCKS = 2  # of a multiprocessor
# Tables; a barrier, three ints, ten maxima and minima and a list of tiles, aligned; samples of 33.5 hops, ten float2
# after every fourth; frames half transformed.
SHARED = 4 * TABLES + 1392 + 4 * 5360 + 8 * 8 * 10 + 8 * (FRAMES * 202 + 4)
KERNELS = {
    (pcm, out): _cuda.Kernel("log_mel", f"log_mel_{pcm}_{out}", "PPPPPqqiiii", THREADS)
    for pcm in ("float32", "int16")
    for out in ("float32", "bfloat16", "float16")
}


@kept
def tables(n_mels: int, whole: bool, device: torch.device) -> torch.Tensor:
    """The kernel's constants as float32 words on the device, the weights of the mel filters last."""

    def turns(k: torch.Tensor, n: int) -> torch.Tensor:
        angle = -2 * math.pi * (k % n).double() / n
        return torch.stack((angle.cos(), angle.sin()), -1).reshape(-1)

    # E and O of a real spectrum are halves of sums; a power of two changes no bit of what is multiplied.
    window = hann_window() * 0.5 * (2.0**-15 if whole else 1.0)
    rows, columns = torch.arange(20)[:, None], torch.arange(10)
    middle = turns(rows * columns, 200)
    bins = 20 * rows[:10] + columns
    bins[6:, 0] = 10 + 20 * torch.arange(4)
    last = turns(torch.cat((bins.reshape(-1), torch.tensor([90, 0]))), 400)
    filters, weights = torch.zeros(128, 4, dtype=torch.int32), []
    for mel, row in enumerate(mel_filters(n_mels).T):
        used = row.nonzero()
        fours = -(-(int(used[-1]) + 1 - int(used[0])) // 4)
        first = min(int(used[0]), BINS - 4 * fours)
        begin = sum(map(len, weights)) // 4
        filters[mel] = torch.tensor([first, begin, begin + fours, 0])
        weights.append(row[first : first + 4 * fours])
    flat = torch.zeros(WEIGHTS, dtype=torch.float32)
    flat[: sum(map(len, weights))] = torch.cat(weights).float()
    parts = (window.float(), middle.float(), last.float(), filters.view(torch.float32).flatten(), flat)
    return torch.cat(parts).to(device)


def write(pcm: torch.Tensor, out: torch.Tensor) -> None:
    """pcm [B, T] float32 or int16, adjacent samples; out [B, n_mels, T / 160] contiguous, float32, bf16 or float16."""
    rows, samples = pcm.shape
    n_mels, frames = out.shape[1:]
    tiles = -(-frames // FRAMES)
    constants = tables(n_mels, pcm.dtype == torch.int16, pcm.device)
    state = counters(2 * rows, pcm.device)
    extremes = torch.empty(2 * rows * tiles, dtype=torch.float32, device=pcm.device)
    kernel = KERNELS[str(pcm.dtype).removeprefix("torch."), str(out.dtype).removeprefix("torch.")]
    kernel.launch(
        (min(rows * tiles, BLOCKS * _triton.programs(pcm.device)), 1), SHARED, pcm.device,
        pcm.data_ptr(), out.data_ptr(), constants.data_ptr(), state.data_ptr(), extremes.data_ptr(),
        pcm.stride(0), samples, rows, frames, tiles, n_mels,
    )  # fmt: skip
