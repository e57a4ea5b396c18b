"""A fault of any kind is found by the checks, and what is right is not taken for one; what a check needs is counted."""

import re

import pytest
import torch
from torch.autograd import profiler

from afn_kernels.verify import budget, check, oracle
from afn_kernels.verify.check import Baseline, judge
from afn_kernels.verify.shapes import checks
from tests.budget import note
from tests.kernels.verify.planted import FAULTS, planted

TOY = checks("toy")
MOST = 40 * 10**9  # bytes of a GPU


def rms_norm(name: str = "residual"):
    one = next(x for x in TOY if x.op == "rms_norm" and name in x.name)
    return Baseline.of(one, one.source(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    plain = rms_norm("5 x")
    with planted(fault):
        try:
            reason, _, used = judge(plain, fault)
        except RuntimeError as error:
            reason, used = f"RuntimeError: {str(error).splitlines()[0]}", float("inf")
    assert re.search(FAULTS[fault], reason), reason
    assert used > 1 or "other bits" in reason


def test_what_is_right_is_right():
    with planted("good"):
        reason, _, used = judge(rms_norm(), "good")
    note(used)
    assert not reason


@pytest.mark.parametrize("one", TOY, ids=str)
def test_every_check_holds_the_reference_within_its_budget(one):
    """In two precisions, well within it: a check near its limit would fail kernels that are right."""
    for dtype in (torch.float32, torch.bfloat16):
        baseline = Baseline.of(one, one.source(torch.device("cpu"), dtype, torch.initial_seed() % 2**31))
        reason, _, used = judge(baseline, "reference")
        note(used, f"{one} {dtype}")
        assert not reason


def test_no_check_needs_more_memory_than_a_gpu_has():
    needs = {str(one): one.need() for one in checks("full")}
    assert max(needs.values()) < MOST, max(needs.items(), key=lambda x: x[1])
    assert min(needs.values()) > 0


@pytest.mark.parametrize("one", {one.op: one for one in reversed(TOY)}.values(), ids=str)
def test_a_check_takes_no_more_memory_than_it_says(one, monkeypatch):
    """Counted by PyTorch's profiler, with blocks as much smaller as the shapes are."""
    for module, name, size in ((budget, "CHUNK", 256), (oracle, "SCORES", 256), (oracle, "LOGITS", 512)):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(check, "FEW", 64)  # as of large results
    source = one.source(torch.device("cpu"), torch.bfloat16)

    def everything() -> None:
        judge(Baseline.of(one, source), "reference")

    everything()  # tables that ops keep
    with profiler.profile(profile_memory=True) as profile:
        everything()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    granules = 64 * 100  # the allocator's least, of the hundred tensors that may be there at once
    assert 0 < most <= one.need() - (one.scratch if one.op == "attention" else 0) + granules


def test_full_and_toy_are_the_same_checks():
    def kinds(size):
        return {(one.op, one.wrt, tuple(one.options), one.written, one.exact) for one in checks(size)}

    assert kinds("toy") == kinds("full")
    with pytest.raises(ValueError, match="size='huge', expected one of full, toy"):
        checks("huge")


@pytest.mark.parametrize("one", checks("full"), ids=str)
def test_ops_take_the_full_shapes(one):
    """On tensors without memory: shapes, dtypes and options that an op would refuse are found here."""
    inputs = one.inputs(one.source(torch.device("meta"), torch.bfloat16))
    assert {"unavailable", "possible", "chosen"} & {row.status for row in one.rows(inputs)}
