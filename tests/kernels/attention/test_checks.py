"""What ``attention_backward`` refuses before it chooses an implementation, and what it sets aside afterwards."""

import re
import warnings
from dataclasses import replace

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _verdicts
from afn_kernels.attention import boundary
from tests.kernels.test_attention import cu, make, needs_triton

WRONG = {
    "v": (lambda a: a | {"v": a["v"][:7]}, "the shapes q (8, 4, 16), k (8, 2, 16), v (7, 2, 16) do not fit"),
    "k's heads": (lambda a: a | {x: a[x][:, :1].expand(8, 3, 16) for x in "kv"}, "4 query heads are not a multiple of"),
    "dtype": (lambda a: a | {"v": a["v"].double()}, "v is torch.float64 on cpu, q is torch.float32 on cpu"),
    "dout": (lambda a: a | {"dout": a["dout"][:7]}, "the shapes q (8, 4, 16), dout (7, 4, 16)"),
    "out's dtype": (lambda a: a | {"out": a["out"].double()}, "out is torch.float64 on cpu, expected torch.float32 on"),
    "lse turned": (lambda a: a | {"lse": a["lse"].t()}, "lse (4, 8) do not fit"),
    "lse's dtype": (lambda a: a | {"lse": a["lse"].half()}, "lse is torch.float16 on cpu, expected torch.float32"),
    "no lse": (lambda a: a | {"lse": None}, "lse is a NoneType, expected a tensor"),
    "keys' boundaries alone": (lambda a: a | {"cu_seqlens_k": cu([8])}, "cu_seqlens_k without cu_seqlens_q"),
    "fewer": (lambda a: a | {"cu_seqlens_q": cu([3, 4])}, "cu_seqlens_q runs from 0 to 7, expected 0 to 8"),
    "sequences": (lambda a: a | {"cu_seqlens_q": cu([3, 5]), "cu_seqlens_k": cu([8])}, "2 query and 1 key sequences"),
    "int64": (lambda a: a | {"cu_seqlens_q": cu([3, 5]).long()}, "cu_seqlens_q must be int32"),
}  # fmt: skip


def arguments() -> dict:
    q, k, v = make([8], [8], 4, 2, 16, torch.float32)
    return {"dout": q, "q": q, "k": k, "v": v, "out": torch.zeros_like(q), "lse": torch.zeros(8, 4)}


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("name", WRONG)
def test_a_backward_that_does_not_fit(name, impl):
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^attention_backward: .*{re.escape(message)}"):
        ak.attention_backward(**change(arguments()), impl=impl)


def test_a_backward_that_the_named_one_cannot_run():
    needs_triton()
    with pytest.raises(ValueError, match=r"impl='triton' cannot run this call: the scale 0\.0 is not above zero"):
        ak.attention_backward(**arguments(), scale=0.0, impl="triton")
    with pytest.raises(ValueError, match="no implementation 'trition'"):
        ak.attention_backward(**arguments(), impl="trition")


def test_a_backward_whose_launch_fails_is_lost_once(monkeypatch):
    """As that of a forward under autograd: what "auto" chose is set aside for forward and backward."""
    needs_triton()
    given, error = arguments(), RuntimeError("Triton Error [CUDA]: invalid argument")

    def fail(*_):
        raise error

    monkeypatch.setenv("AFN_VERDICTS", "0")
    monkeypatch.setitem(vars(boundary.BACKWARD), "_launch", fail)
    expected = ak.attention_backward(**given, impl="reference")
    table = ak.OPS["attention"]
    first = replace(next(row for row in table.impls if row.name == "triton"), avoid=lambda *_, **__: "")
    monkeypatch.setattr(table, "impls", (first, table.impls[-1]))
    _verdicts.forget()
    try:
        with pytest.raises(RuntimeError, match="invalid argument"):
            ak.attention_backward(**given, impl="triton")
        assert not _verdicts.ASIDE
        with (
            pytest.warns(UserWarning, match="attention_backward: triton failed and is set aside"),
            pytest.raises(RuntimeError, match="invalid argument"),
        ):
            ak.attention_backward(**given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = ak.attention_backward(**given)
        assert ak.explain("attention", *(given[x] for x in "qkv")).chosen == "reference"
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        _verdicts.forget()
