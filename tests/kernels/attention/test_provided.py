"""Other people's kernels by their published signatures: log-sum-exp, carry, and the backward of all keys."""

import importlib
import warnings
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

import afn_kernels as ak
from afn_kernels.attention import provided, providers
from tests.budget import assert_within, assert_within_budget, lost
from tests.kernels.attention.stand_ins import standing_in
from tests.kernels.cases.attention import CASES, case, cu, one, qkv
from tests.kernels.harness import pytorch
from tests.orders import in_orders

PROVIDERS = ("flash3", "flash4", "varlen", "flash", "cudnn")
ASKED = ("causal packed", "more queries than keys", "no keys", "window on both sides", "carry")
MORE = (
    case("one sequence, grouped heads", one((4, 2), 16), 21, causal=True, return_lse=True),
    case("other keys", one((4, 2), 16, 9), 21, return_lse=True),
    case("softcap", one((2, 1), 16), 20, softcap=1.5),
    case("no tokens", one((2, 1), 16), 0),
)
EVERY = {one.name: one for one in (*(case for case in CASES if case.name in ASKED), *MORE)}


@lru_cache
def expected(name: str):
    """Inputs in float32, what float64 makes of them, what PyTorch does in other orders, and what it loses elsewhere."""
    asked = EVERY[name]
    inputs = asked.make(torch.float32, "cpu")
    oracle, same = pytorch(asked, inputs)
    if not asked.options["return_lse"]:
        return inputs, oracle, same, {}
    # PyTorch's fused attention takes delta from the output, as all kernels do, but returns no log-sum-exp.
    alone = {name: x for name, x in inputs.items() if not name.endswith("_c")}
    options = asked.options | {"return_lse": False}
    plain = replace(asked, options=options, orders=("sdpa",), wrt=("q", "k", "v"))
    exact, theirs = pytorch(plain, alone)
    return inputs, oracle, same, {name: lost([x[name] for x in theirs], exact[name]) for name in exact}


@pytest.fixture(scope="module")
def told():
    with standing_in(wide=True) as told:
        yield told


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", EVERY)
def test_within_budget(name, provider, told):
    """What its row takes, forward and backward; what it does not take is refused before it is called."""
    inputs, oracle, same, elsewhere = expected(name)
    if refused(provider, inputs, EVERY[name].options):
        with pytest.raises(ValueError, match="cannot run this call"):
            EVERY[name].call(inputs, provider)
        return
    for of, found in EVERY[name].evaluate(inputs, provider).items():
        assert found.dtype == same[0][of].dtype, of
        losses = elsewhere.get(of, ())
        assert_within_budget(found, [x[of] for x in same], oracle[of], elsewhere=losses, name=f"{provider} {of}")


def refused(provider: str, inputs, options) -> str:
    row = next(row for row in ak.OPS["attention"].impls if row.name == provider)
    boundaries = {f"cu_seqlens_{x}": inputs.get(f"cu_seqlens_{x}") for x in "qk"}
    return row.supports(
        inputs["q"], inputs["k"], inputs["v"], **({"window": None, "softcap": 0.0} | boundaries | options)
    )


def parts(dtype=torch.float32):
    """Queries over two parts of the keys; the last sequence has keys in neither."""
    queries, keys = [7, 4, 3], ([5, 9, 0], [6, 2, 0])
    g = torch.Generator().manual_seed(3)
    made = qkv(g, 14, 14, (4, 2), 16)
    other = qkv(g, 14, 8, (4, 2), 16)
    tensors = made["q"], made["k"], made["v"], other["k"], other["v"]
    return [x.to(dtype) for x in tensors], cu(queries), [cu(some) for some in keys]


def through_parts(tensors, impl: str, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    q, k1, v1, k2, v2 = tensors
    _, cu_q, (cu_1, cu_2) = parts()
    carry = torch.zeros(q.shape, dtype=dtype), torch.full(q.shape[:2], float("-inf"), dtype=dtype)
    for k, v, cu_k in ((k1, v1, cu_1), (k2, v2, cu_2)):
        carry = ak.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, carry=carry, impl=impl)
    out, lse = carry
    dout = torch.linspace(-1, 1, q.numel(), dtype=q.dtype).view(q.shape)
    one, two = (
        ak.attention_backward(dout, q, k, v, out, lse, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, impl=impl)
        for k, v, cu_k in ((k1, v1, cu_1), (k2, v2, cu_2))
    )
    return {"out": out, "lse": lse[:11], "dq": one[0] + two[0], "dk": one[1], "dv": one[2], "dk2": two[1]}, lse


@lru_cache
def expected_of_parts():
    tensors = parts()[0]
    oracle, _ = through_parts([x.double() for x in tensors], "reference", torch.float64)
    return oracle, in_orders(lambda: through_parts(tensors, "reference", torch.float32)[0], 6)


@pytest.mark.parametrize("provider", ["flash3", "flash4", "varlen"])
def test_parts_of_the_keys_share_one_out_and_log_sum_exp(provider, told):
    """What ring attention does: a forward over each part that carries on, a backward of each part by itself."""
    found, lse = through_parts(parts()[0], provider, torch.float32)
    assert (lse[11:] == float("-inf")).all()
    oracle, same = expected_of_parts()
    for name, x in found.items():
        assert_within_budget(x, [one[name] for one in same], oracle[name], name=f"{provider} {name}")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_half_precision_with_a_float32_carry(provider, told):
    """16-bit tensors come as they are, whatever memory they lie in; out and lse of all keys are rounded for them."""
    g = torch.Generator().manual_seed(5)
    wide = {name: x.half() for name, x in qkv(g, 12, 12, (4, 2), 16).items()}
    wide["q"] = torch.randn(13, 4, 17).half()[1:, :, 1:].copy_(wide["q"])  # rows at odd addresses
    carry = torch.randn(12, 4, 16), torch.randn(12, 4)
    leaves = {name: x.detach().requires_grad_() for name, x in (wide | {"out_c": carry[0], "lse_c": carry[1]}).items()}
    out, lse = ak.attention(
        leaves["q"], leaves["k"], leaves["v"], carry=(leaves["out_c"], leaves["lse_c"]), impl=provider
    )
    assert out.dtype == lse.dtype == torch.float32
    out.sum().backward()
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    oracle, oracle_lse = ak.attention(
        exact["q"], exact["k"], exact["v"], carry=(exact["out_c"], exact["lse_c"]), impl="reference"
    )
    oracle.sum().backward()
    # What a part's output loses in 16 bits, and products of it with values below 4 in sums over 16 columns.
    half = torch.finfo(torch.float16).eps
    assert_within(out, oracle, half * 4, name="out")
    assert_within(lse, oracle_lse, 1e-5, name="lse")
    for name, x in leaves.items():
        assert x.grad.dtype == x.dtype
        size = exact[name].grad.abs().max() + 16 * 4
        assert_within(x.grad, exact[name].grad, float(half * size), name=f"d{name}")


def test_sequences_of_one_length_are_told_so(told):
    batch = [torch.randn(3, 5, heads, 16).half() for heads in (4, 2, 2)]
    out = ak.attention(*batch, impl="varlen")
    assert told["torch"] == {"max": (5, 5), "packed": False}
    packed = [x.flatten(0, 1) for x in batch]
    again = ak.attention(*packed, cu_seqlens_q=cu([5, 5, 5]), impl="varlen")
    assert told["torch"] == {"max": (5, 5), "packed": True}
    assert torch.equal(out.flatten(0, 1), again)
    ak.attention(*batch, impl="cudnn")
    with pytest.raises(ValueError, match="known to have one length"):
        ak.attention(*packed, cu_seqlens_q=cu([5, 5, 5]), impl="cudnn")


def test_what_flash_attention_is_told(told):
    q, k, v = (torch.randn(9, heads, 16).half().requires_grad_() for heads in (4, 2, 2))
    options = {"cu_seqlens_q": cu([3, 1, 5]), "causal": True}
    out = ak.attention(q, k, v, **options, impl="flash3")
    assert told["flash3"] == {"max": (5, 5), "splits": 1}
    torch.use_deterministic_algorithms(True)
    try:
        out.sum().backward()
        assert told["flash3"] == {"deterministic": True}
        ak.attention(q, k, v, **options, impl="flash4").sum().backward()
        assert told["flash4"] == {"deterministic": True, "dlse": None}
    finally:
        torch.use_deterministic_algorithms(False)
    ak.attention(q, k, v, **options, impl="flash3").sum().backward()
    assert told["flash3"] == {"deterministic": False}
    _, lse = ak.attention(q, k, v, **options, return_lse=True, impl="flash4")
    lse.sum().backward()
    assert told["flash4"]["dlse"] is not None


@pytest.fixture
def calls():
    return [torch.randn(9, heads, 16).half() for heads in (4, 2, 2)], {"cu_seqlens_q": cu([3, 6]), "causal": True}


def refusing(monkeypatch, function, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(importlib.import_module("afn_kernels.attention.flash"), function, refuse)


def test_a_refusal_falls_through_with_one_warning(calls, told, monkeypatch):
    tensors, options = calls
    refusing(monkeypatch, "flash3_forward", RuntimeError("no available kernel\nmore"))
    refusing(monkeypatch, "flash4_forward", NotImplementedError("not on this GPU"))
    monkeypatch.setattr(providers, "_set_aside", {})
    assert ak.explain("attention", *tensors, **options).chosen == "flash3"
    with pytest.warns(UserWarning, match="flash3 refused a call, .*: no available kernel$"):
        out = ak.attention(*tensors, **options)
    torch.testing.assert_close(out, ak.attention(*tensors, **options, impl="reference"), rtol=2e-3, atol=2e-3)
    found = ak.explain("attention", *tensors, **options)
    assert (found.chosen, found.rows[0].reason) == ("flash4", "it refused such a call: no available kernel")
    with pytest.warns(UserWarning, match="flash4 refused"):
        ak.attention(*tensors, **options)
    assert ak.explain("attention", *tensors, **options).chosen == "varlen"
    assert ak.explain("attention", *tensors).chosen == "flash3", "another kind of call"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ak.attention(*tensors, **options)
    with pytest.raises(RuntimeError, match="no available kernel"):
        ak.attention(*tensors, **options, impl="flash3")


def test_a_refused_backward_falls_through_too(calls, told, monkeypatch):
    tensors, options = calls
    refusing(monkeypatch, "flash3_backward", RuntimeError("no backward in this build"))
    monkeypatch.setattr(providers, "_set_aside", {})
    leaves = [x.requires_grad_() for x in tensors]
    with pytest.warns(UserWarning, match="no backward in this build"):
        found = torch.autograd.grad(ak.attention(*leaves, **options).sum(), leaves)
    for mine, same in zip(
        found, torch.autograd.grad(ak.attention(*leaves, **options, impl="reference").sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, same, rtol=4e-3, atol=4e-3)
    with pytest.raises(RuntimeError, match="no backward"):
        ak.attention(*leaves, **options, impl="flash3").sum().backward()


@pytest.mark.parametrize(
    "error", [TimeoutError("10 s are over"), MemoryError(), KeyError, type("Mine", (Exception,), {})()]
)
@pytest.mark.parametrize("of", ["forward", "backward"])
def test_what_a_handler_raises_is_no_refusal(of, error, calls, told, monkeypatch):
    """Nor is a lack of memory; an exception of Python's own that the provider's code raises is one."""
    tensors, options = calls
    refusing(monkeypatch, f"flash3_{of}", error)
    monkeypatch.setattr(providers, "_set_aside", {})
    leaves = [x.detach().requires_grad_() for x in tensors]
    if error is KeyError:
        with pytest.warns(UserWarning, match="flash3 refused a call"):
            ak.attention(*leaves, **options).sum().backward()
        return
    with pytest.raises(type(error)):
        ak.attention(*leaves, **options).sum().backward()
    assert not providers._set_aside


def test_what_no_other_kernel_would_survive_is_no_refusal(calls, told, monkeypatch):
    tensors, options = calls
    refusing(monkeypatch, "flash3_forward", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        ak.attention(*tensors, **options)
    assert ak.explain("attention", *tensors, **options).chosen == "flash3"


def test_merging_where_a_part_has_no_keys():
    nothing = float("-inf")
    out, out_c = torch.ones(4, 1, 2), torch.full((4, 1, 2), 3.0)
    lse = torch.tensor([[0.0], [nothing], [0.0], [nothing]])
    lse_c = torch.tensor([[0.0], [0.0], [nothing], [nothing]])
    found, both = provided.merged(out, lse, out_c, lse_c)
    assert found[:, 0, 0].tolist() == [2.0, 3.0, 1.0, 3.0]
    assert both[:, 0].tolist() == [pytest.approx(0.693147), 0.0, 0.0, nothing]


def test_the_gradient_of_a_carry_where_a_row_has_no_keys():
    nothing = float("-inf")
    lse_c, lse = torch.tensor([[0.0], [nothing], [nothing]]), torch.tensor([[0.0], [0.0], [nothing]])
    dout, out_c, out = torch.ones(3, 1, 2), torch.full((3, 1, 2), 3.0), torch.ones(3, 1, 2)
    dout_c, dlse_c = provided.carried(dout, None, out, lse, out_c, lse_c)
    assert dout_c[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert dlse_c[:, 0].tolist() == [4.0, 0.0, 0.0]


def test_rows_that_do_not_begin_at_16_bytes_are_copied():
    whole = torch.randn(9, 4, 24).half()
    assert provided.aligned(whole) is whole
    for wrong in (
        whole[:, :, ::3],
        whole[:, :, 1:17],
        whole.flatten()[:840].view(-1, 12),
        whole.flatten()[1:-7].view(-1, 8),
    ):
        made = provided.aligned(wrong)
        assert made.data_ptr() % 16 == 0
        assert made.is_contiguous()
        assert torch.equal(made, wrong)
        assert made.data_ptr() != wrong.data_ptr()


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["flash3", "cudnn"])
def test_torch_compile_sees_one_op(provider, told):
    torch._dynamo.reset()

    def call(q, k, v):
        out, lse = ak.attention(q, k, v, causal=True, return_lse=True, impl=provider)
        return out.float().square().sum() + lse.sum()

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (9, 12):
        leaves = [torch.randn(size, heads, 16).half().requires_grad_() for heads in (4, 2, 2)]
        for a, b in zip(*(torch.autograd.grad(f(*leaves), leaves) for f in (call, compiled)), strict=True):
            assert torch.equal(a, b)
