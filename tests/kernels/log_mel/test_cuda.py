"""csrc/cuda/log_mel.cu beyond what every implementation of log_mel answers; on a GPU with --device cuda."""

import re

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cuda
from afn_kernels._counters import counters
from afn_kernels.log_mel import reference
from tests.budget import assert_within, assert_within_budget
from tests.cuda import compiler, emulated
from tests.kernels.test_log_mel import amplitude, noise, rng
from tests.orders import in_orders


@pytest.fixture(autouse=True)
def runnable(device):
    if device.type == "cpu" and not compiler():
        pytest.skip("no C++ compiler")


def test_sixty_windows(device):
    """30 minutes in windows, of two frames here: rows of one block each."""
    pcm = noise(60, 320).to(device)
    exact = amplitude(reference.log_mel(pcm.double(), out_dtype=torch.float64))
    same = in_orders(lambda: amplitude(ak.log_mel(pcm, impl="reference")))
    assert_within_budget(amplitude(ak.log_mel(pcm, impl="cuda")).float(), same, exact)


def test_int16_extremes(device):
    pcm = torch.tensor([-32768, 32767], dtype=torch.int16).repeat(2, 800)
    pcm[1] = -32768
    pcm = pcm.to(device)
    found = amplitude(ak.log_mel(pcm, impl="cuda"))  # a constant row has empty bins, whose logarithms have no bound
    exact = amplitude(reference.log_mel(pcm.double() / 32768, out_dtype=torch.float64))
    assert_within_budget(found.float(), in_orders(lambda: amplitude(ak.log_mel(pcm, impl="reference"))), exact)


def test_the_order_of_blocks_changes_no_bit(device):
    if device.type == "cuda":
        pytest.skip("a GPU takes its own order")
    pcm = torch.cat((noise(1, 16_000), 1e-3 * noise(1, 16_000), torch.zeros(1, 16_000)))
    forwards = ak.log_mel(pcm, impl="cuda")
    with emulated(backwards=True):
        assert torch.equal(ak.log_mel(pcm, impl="cuda"), forwards)


def test_only_tiles_below_the_floor_are_clamped(device):
    """A loud tile and quiet ones: the last block rewrites the quiet ones to the row's maximum less eight decades."""
    pcm = 1e-4 * noise(1, 16_000)
    pcm[:, 9_000:9_400] = noise(1, 400, seed=1, scale=0.5)
    found = ak.log_mel(pcm.to(device), impl="cuda")
    assert_within(found.min(), found.max() - 2, 2 * torch.finfo(torch.float32).eps)  # features of 1 to 2, twice
    assert int((found == found.min()).sum()) > 1000


@pytest.mark.parametrize("frames", [200, 199])  # rows of whole vectors of 16 bytes, and others
def test_padded_windows(frames, device):
    """Tiles wholly above the floor, wholly below and on both sides of it, and a row with a bad sample."""
    pcm = torch.zeros(4, 160 * frames)
    pcm[0, 300:8_300:400] = 0.5 + torch.rand(20, generator=rng(1)) / 2
    pcm[1] = 1e-5 * noise(1, 160 * frames)
    pcm[1, 20_240] = 1.0
    pcm[2] = 0.1
    pcm[3, 7_000] = float("nan")
    found = ak.log_mel(pcm.to(device), impl="cuda").cpu()
    assert found[3].isnan().all()
    exact = reference.log_mel(pcm[:3].double(), out_dtype=torch.float64)
    same = in_orders(lambda: amplitude(ak.log_mel(pcm[:3], impl="reference")))
    assert_within_budget(amplitude(found[:3]).float(), same, amplitude(exact))
    silent = found[0, :, 8_300 // 160 + 3 :]
    assert (silent == found[0].min()).all()
    assert_within(found[0].min(), found[0].max() - 2, 2 * torch.finfo(torch.float32).eps)
    for dtype in (torch.bfloat16, torch.float16):  # of what is rounded and then clamped, as of what is clamped first
        low = ak.log_mel(pcm.to(device), impl="cuda", out_dtype=dtype).cpu()
        assert torch.equal(low[:3], found[:3].to(dtype))
        assert low[3].isnan().all()


def test_no_lanes_meet_in_a_bank():
    """Addresses as csrc/cuda/log_mel.cu has them in shared memory; a wavefront takes 32 lanes of 4 bytes or 16 of 8."""
    source = (_cuda.sources() / "cuda" / "log_mel.cu").read_text()
    row, swap, hops = (int(re.search(rf"{name} = (\d+)", source)[1]) for name in ("kRow", "kSwap", "kHops"))
    wide, narrow = (int(x) for x in re.findall(r"kPad = (\d+);", source))
    frame = [team % (32 // hops) * hops + team // (32 // hops) for team in range(32)]
    half = [team * swap + team // 8 for team in range(32)]
    threads = range(320)
    neighbours, lanes = [divmod(t, 10) for t in threads], [(t % 32, t // 32) for t in threads]

    def words(team: int, b: int, a: int, pad: int) -> int:
        hop = frame[team] + a // 8
        return hop * 80 + hop // hops * pad + a % 8 * 10 + b

    def wavefronts(words: list[int], size: int) -> int:
        groups = [words[i : i + 32 // size] for i in range(0, 320, 32 // size)]
        return sum(max(len({w for w in set(group) if w * size % 32 == b}) for b in range(32)) for group in groups)

    assert sorted(frame) == list(range(32))
    assert sum(wavefronts([words(*at, a, wide) for at in neighbours], 2) for a in range(20)) == 400
    assert sum(wavefronts([words(*at, a, narrow) for at in neighbours], 1) for a in range(20)) == 400  # 200 would do
    assert sum(wavefronts([half[team] + c * row + b for team, b in neighbours], 2) for c in range(20)) == 400
    other = [10, *range(19, 10, -1)]
    for first in (range(10), other):
        assert sum(wavefronts([half[team] + first[j] * row + b for team, j in lanes], 2) for b in range(10)) == 200
    assert wavefronts([j * 32 + frame[team] for team, j in lanes], 1) == 10  # powers, of any bin of a warp


def test_counters_are_left_at_zero(device):
    for length in (320, 16_000):
        pcm = noise(3, length).to(device)
        ak.log_mel(pcm, impl="cuda")
    assert not counters(6, pcm.device).any()


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_rows_that_begin_anywhere(offset, dtype, device):
    """Bulk copies want multiples of 16 bytes; other rows are copied by threads, to the same bits."""
    base = (noise(1, 20_000) * (8000 if dtype == torch.int16 else 1)).to(dtype).to(device)
    view = base[:, offset : offset + 16_000]
    assert torch.equal(ak.log_mel(view, impl="cuda"), ak.log_mel(view.clone(), impl="cuda"))
