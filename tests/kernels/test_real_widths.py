"""Every implementation at AF-Next's widths, on a GPU alone: the checks of ``afn_kernels.verify``, in both 16-bit types.

Their oracles are float64 in blocks (tests/kernels/verify/test_oracle.py holds them to the references), so that nothing
is as large as queries by keys. What of them a CPU can say is that the widths and lengths are all there.
"""

import pytest
import torch

from afn_kernels.verify import shapes
from afn_kernels.verify.check import Baseline, InputSource, judge, tensors
from tests.kernels.harness import BF16, HALF

CHECKS = shapes.checks("full")
WIDTHS = {3584, 1280, 5120, 18944, 151_672}
LENGTHS = {127, 128, 129, 1500, 2049, 4099}


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [BF16, HALF], ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_within_budget(check, dtype, device):
    if device.type != "cuda":
        pytest.skip("real widths are for a GPU")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if check.need() > 0.9 * free:
        pytest.skip(f"needs {check.need() / 2**30:.1f} GiB")
    baseline = Baseline.of(check, check.source(device, dtype))
    rows = [row for row in check.rows(baseline.inputs) if row.status not in ("unavailable", "unsupported")]
    assert rows
    wrong = {row.impl: reason for row in rows if (reason := judge(baseline, row.impl)[0])}
    assert not wrong


def test_the_widths_and_lengths_are_all_there(monkeypatch):
    """On tensors without memory, but for the boundaries of sequences."""
    lengths = set()
    boundaries = InputSource.boundaries

    def noted(source, given):
        lengths.update(given)
        return boundaries(source, given)

    monkeypatch.setattr(InputSource, "boundaries", noted)
    source = InputSource(torch.device("meta"), BF16)
    sizes = {size for check in CHECKS for x in tensors(check.inputs(source)) for size in x.shape}
    assert sizes >= WIDTHS
    assert lengths >= LENGTHS
