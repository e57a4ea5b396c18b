"""istft with the codec's window of 32 samples every 8, over clips of training and 1,000 s; and a window of 256."""

import torch

from bench.ops import Workload, normal, sized


def inputs(clips: int, frames: int, window: int):
    def make(device: str, dtype: torch.dtype):
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "spectrum": normal(clips, frames, window // 2 + 1, 2, device=device, dtype=dtype),
            "window": torch.hann_window(window, device=device, dtype=wide),
        }

    return make


@sized(lambda length, **_: {"frames": length})
def workload(clips: int = 32, frames: int = 11_008, window: int = 32, hop: int = 8) -> Workload:
    spectra, samples = clips * frames * (window + 2) * 2, clips * (frames * hop + window - hop) * 4
    operations = 2.0 * clips * frames * (window + 2) * window
    return Workload(
        "istft",
        f"{clips} x {frames}, window {window}, hop {hop}",
        inputs(clips, frames, window),
        ("spectrum",),
        (spectra + samples, spectra + samples),
        (operations, operations),
        options={"hop": hop},
    )


WORKLOADS = [workload(), workload(1, 5_512_192), workload(32, 1378, 256, 64)]
