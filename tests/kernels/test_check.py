"""What does not fit is one ValueError of one line, whatever the argument and whatever is wrong with it."""

import re
from types import SimpleNamespace

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _check
from tests.kernels.cases import CASES

FIRST = {case.op: case.at(min(case.size, 9)) for case in reversed(CASES)}
UNFIT = {
    "no axes": lambda x: x.flatten()[:1].reshape(()) if x.numel() else x.new_zeros(()),
    "no columns": lambda x: x[..., :0],
    "no rows": lambda x: x[:0],
    "one axis more": lambda x: x[None],
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "another device": lambda x: x.to("meta"),
    "another dtype": lambda x: x.to(torch.int32 if x.is_floating_point() else torch.float32),
    "bool": lambda x: x.to(torch.bool),
    "complex": lambda x: x.to(torch.complex64),
    "a list": lambda x: x.tolist(),
    "None": lambda x: None,
}
MEANT = {"None", "every second"}  # an optional argument; another way to hold the same values
SIZED = {("istft", "spectrum"), ("residual_quantize", "codebooks")}  # beside x: what may be of any number, or of none


def said(call) -> str | None:
    """The message of its ValueError, if it raises one."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


@torch.no_grad()
@pytest.mark.parametrize("what", UNFIT)
@pytest.mark.parametrize("op", sorted(FIRST))
def test_one_argument_that_does_not_fit(op, what):
    case = FIRST[op]
    inputs = case.make(torch.float32, "cpu", seed=1)
    shapes = [out.shape for out in case.call(inputs, "auto")]
    for name, x in inputs.items():
        if what == "another device" and len(inputs) == 1:
            continue  # it is the only one
        changed, found = {**inputs, name: UNFIT[what](x)}, []
        message = said(lambda changed=changed, found=found: found.extend(case.call(changed, "auto")))
        if message is not None:
            assert what != "every second", f"{name}: {message}"
            assert re.fullmatch(f"{op}: .+", message), f"{name}: {message}"
        elif what not in MEANT:
            assert [out.shape for out in found] != shapes, f"{name} with {what} was taken"
            assert len(inputs) == 1 or name == "x" or (op, name) in SIZED, f"{name} with {what} was taken"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float32])
def test_lengths_have_a_sign(dtype):
    q, cache = torch.zeros(1, 1, 1, 16), torch.zeros(1, 4, 1, 16)
    with pytest.raises(ValueError, match=r"lengths is .+, expected integers with a sign"):
        ak.decode_attention(q, cache, cache, torch.ones(1).to(dtype))


@pytest.mark.parametrize("capturing", [False, True])
def test_a_gpus_values_are_read_where_asked(monkeypatch, capturing):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    here, there = torch.zeros(1), SimpleNamespace(device=torch.device("cuda"), is_cuda=True)
    assert (_check.readable(here), _check.readable(there)) == (True, False)
    ak.check(True)
    try:
        assert (_check.readable(here), _check.readable(there)) == (True, not capturing)
    finally:
        ak.check(False)
    assert not _check.readable(there)


def test_on_a_gpu_boundaries_that_do_not_cover_are_found(device):
    if device.type != "cuda":
        pytest.skip("the values of a CPU's tensors are always read")
    q, cu = torch.randn(4, 2, 16, device=device), torch.tensor([0, 3], dtype=torch.int32, device=device)
    ak.check(True)
    try:
        with pytest.raises(ValueError, match="cu_seqlens_q runs from 0 to 3, expected 0 to 4"):
            ak.attention(q, q, q, cu_seqlens_q=cu)
    finally:
        ak.check(False)


def test_a_cache_without_heads_has_rows():
    assert _check.cache_rows("rotary", "k_cache", torch.zeros(3, 4, 0, 8)).shape == (12, 0, 8)
