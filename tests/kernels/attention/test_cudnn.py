"""cuDNN's plans: only for shapes that come often, never inside of a captured graph."""

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _verdicts
from afn_kernels.attention import OP, cudnn, providers
from tests.kernels.attention.stand_ins import standing_in
from tests.kernels.cases.attention import cu


@pytest.fixture
def told():
    with standing_in() as told:
        yield told


def tensors(size=9):
    return [torch.randn(size, heads, 16).half() for heads in (4, 2, 2)]


OPTIONS = {"cu_seqlens_q": None, "cu_seqlens_k": None, "causal": True, "return_lse": False, "carry": None}


def reason(q, k, v, **options):
    given = OPTIONS | options
    row = next(row for row in OP.impls if row.name == "cudnn")
    return row.supports(q, k, v, **given) or row.avoid(q, k, v, **given) or row.never(q, k, v, **given)


def test_a_shape_has_to_come_often_enough(told, monkeypatch):
    q, k, v = tensors()
    work = 4 * 9 * 9 * 4 * 16 / 2
    monkeypatch.setattr(providers, "WORTH_A_PLAN", 2.5 * work)
    for _ in range(3):
        assert "often enough" in reason(q, k, v)
        assert "often enough" in reason(q, k, v), "a question is no call"
        providers.met(q, k, None, None, True)
    assert not reason(q, k, v)
    assert "often enough" in reason(q, k, v, causal=False)
    assert "often enough" in reason(*tensors(10))
    boundaries = cu([9])
    assert not reason(q, k, v, cu_seqlens_q=boundaries, cu_seqlens_k=boundaries), "one sequence, in other words"


def test_a_measurement_builds_no_plans(told, monkeypatch):
    """For shapes that have not come often enough, wherever it was the fastest; nor does it undo a refusal."""
    q, k, v = tensors()
    kinds = {"float16 forward 16 one causal": {_verdicts.octave("attention", (q,)): {"cudnn": 1.0, "flash3": 2.0}}}
    order = {kind: {size: tuple(took) for size, took in sizes.items()} for kind, sizes in kinds.items()}
    found = _verdicts.Verdicts({}, {"attention": order}, {"attention": kinds})
    monkeypatch.setattr(_verdicts, "READ", {-1: found})
    monkeypatch.setattr(providers, "_set_aside", {})
    assert ak.explain("attention", q, k, v, causal=True).chosen == "flash3"
    assert OP.pick("auto", q, k, v, **OPTIONS).name == "flash3"
    monkeypatch.setattr(providers, "WORTH_A_PLAN", 0.0)
    assert ak.explain("attention", q, k, v, causal=True).chosen == "cudnn"
    assert OP.pick("auto", q, k, v, **OPTIONS).name == "cudnn"
    for name in ("cudnn", "flash3"):
        with pytest.warns(UserWarning, match=f"{name} refused"):
            providers.set_aside(providers.kind(name, q, k, **OPTIONS), RuntimeError("not here"))
    assert OP.pick("auto", q, k, v, **OPTIONS).name == "flash4"


def test_a_plan_is_not_made_while_a_graph_is_captured(told, monkeypatch):
    monkeypatch.setattr(cudnn, "_plans", cudnn._Plans())
    q, k, v = tensors()
    leaves = [x.requires_grad_() for x in tensors(11)]
    ak.attention(q, k, v, causal=True, impl="cudnn")
    out = ak.attention(*leaves, causal=True, impl="cudnn")
    monkeypatch.setattr(providers, "capturing", lambda x: True)
    ak.attention(q, k, v, causal=True, impl="cudnn")
    for again in (
        lambda: ak.attention(q, k, v, impl="cudnn"),
        lambda: ak.attention(*tensors(10), causal=True, impl="cudnn"),
        lambda: ak.attention(k.repeat(1, 2, 1)[:, ::2], k, v, causal=True, impl="cudnn"),
        lambda: out.sum().backward(),
    ):
        with pytest.raises(RuntimeError, match="run the call once before"):
            again()


@pytest.mark.parametrize("axes", [3, 4])
def test_both_shapes_of_its_log_sum_exp(axes, told):
    told["axes"] = axes
    leaves = [x.requires_grad_() for x in tensors()]
    out, lse = ak.attention(*leaves, return_lse=True, impl="cudnn")
    assert out.shape == (9, 4, 16)
    assert lse.shape == (9, 4)
    out.sum().backward()  # the stand-in looks at what it is given


def test_what_it_is_not_asked(told, monkeypatch):
    q, k, v = tensors()
    assert "start" in reason(q[:4], k, v)
    assert "two of each" in reason(q, k[:1], v[:1], causal=False)
    assert "window" in reason(q, k, v, window=(3, 0))
    assert "128" in reason(*(x.repeat(1, 1, 9) for x in (q, k, v)))
    monkeypatch.setattr(providers, "_ragged", lambda: True)
    assert "AVOID_RECOMPILE" in reason(q, k, v)
    monkeypatch.undo()
    monkeypatch.setattr(providers, "DEVICES", ("cpu",))
    monkeypatch.setattr(providers, "_cudnn_version", lambda: 90800)
    monkeypatch.setattr(providers, "generation", lambda device: 9)
    assert "older" in reason(q, k, v)
    monkeypatch.setattr(providers, "generation", lambda device: 8)
    assert "Hopper" in reason(q, k, v)
    torch.use_deterministic_algorithms(True)
    try:
        assert "deterministic" in reason(q, k, v)
    finally:
        torch.use_deterministic_algorithms(False)
