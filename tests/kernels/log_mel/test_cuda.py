"""csrc/cuda/log_mel.cu beyond what every implementation of log_mel answers; on a GPU with --device cuda."""

import pytest
import torch

import afn_kernels as ak
from afn_kernels._counters import counters
from afn_kernels.log_mel import reference
from tests.budget import assert_within, assert_within_budget
from tests.cuda import compiler, emulated
from tests.kernels.test_log_mel import amplitude, noise
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
