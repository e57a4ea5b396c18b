"""A forward and backward of the supervised loss wait for nothing."""

import pytest
import torch

from bench import syncs


@pytest.mark.parametrize("split", [None, pytest.param((2, 2), marks=pytest.mark.slow)], ids=["one rank", "2 x 2"])
def test_a_micro_batch_that_was_prepared_waits_for_nothing(split):
    assert not syncs.count(split, ahead=True)


def test_what_waits_is_counted():
    """Or the test above would say nothing."""
    with syncs.Waits() as waits:
        x = syncs.OnDevice(torch.arange(3.0))
        assert float(x.sum()) == 3
        x[x > 1].sum().cpu()
        x[[0, 1]]
        x.nonzero()
        torch.repeat_interleave(x.long())
        x + torch.ones(3).to(syncs.DEVICE, non_blocking=True)
        torch.ones(3).to(syncs.DEVICE)
    kinds = sorted(what.partition(":")[0] for what in waits.found.elements())
    assert kinds == [
        "_local_scalar_dense",
        "copy from the host",
        "copy to the host",
        "index by a mask",
        "index on the host",
        "nonzero",
        "repeat_interleave",
    ]
