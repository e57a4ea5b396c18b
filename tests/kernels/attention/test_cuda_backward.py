"""csrc/cuda/attention_backward.cu: on a CPU its blocks run as threads, with --device cuda on the GPU, a Hopper."""

import re
from contextlib import nullcontext

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cuda
from afn_kernels.attention import cuda_backward
from afn_kernels.attention.schedule import tile_table
from tests.budget import assert_within_budget, fresh
from tests.cuda import MemoryFault, compiler, emulated, sanitised
from tests.kernels.cases.attention import carried, case, cu, one, packed
from tests.kernels.harness import BF16, HALF, compare, poisoned, strided
from tests.orders import in_orders

INF, NAN = float("inf"), float("nan")
WIDTHS = sorted(cuda_backward.QUERIES)


@pytest.fixture(autouse=True)
def hopper(device):
    if reason := _cuda.hopper():
        pytest.skip(reason)


def backward(i, causal, needs=(True, True, False), dlse=None, ordered=True, **machine):
    """Gradients of q, k and v, and of a carry, with out and lse given; the emulation is as ``machine`` says."""
    q, k, v = (i[name] for name in "qkv")
    table = None
    if "cu_seqlens_q" in i:
        table = tile_table(i["cu_seqlens_q"], i["cu_seqlens_k"], len(q), len(k), 128, causal, True)
    carry, options = (i.get("out_c"), i.get("lse_c")), (causal, -1, -1, 0.0, q.shape[-1] ** -0.5)
    with emulated(**machine) if q.device.type == "cpu" else nullcontext(), poisoned():
        found = cuda_backward.backward(
            i["dout"], dlse, q, k, v, i["out"], i["lse"], *carry, None, table, *options, *needs, ordered=ordered
        )
    return found if needs[2] else found[:3]


def with_output(i, causal):
    """The inputs with what a forward hands to the backward, by the reference, and a dout."""
    i = dict(i)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in i.items()}
    out, i["lse"] = ak.attention(**wide, causal=causal, return_lse=True, impl="reference")
    direction = torch.rand(out.numel(), generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 2 - 1
    return i | {
        "out": out.to(i["q"].dtype), "lse": i["lse"].float(), "dout": direction.view(out.shape).to(i["q"])
    }  # fmt: skip


CASES = [
    case("packed", packed((2, 1), 128, [3, 0]), 70, causal=True, dtypes=(BF16,)),
    case("packed, heads of 64", packed((1, 1), 64, [130, 5], [140, 3]), dtypes=(HALF,)),
    case("fewer queries than keys", one((2, 1), 128, 100), 70, causal=True, dtypes=(HALF,)),
    case("more queries than keys", packed((1, 1), 64, [140, 3], [9, 140]), causal=True, dtypes=(BF16,)),
    case("one query, many keys", one((1, 1), 128, 300), 1, dtypes=(HALF,)),
]


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_gradients_of_the_references_output(one, device):
    dtype, causal = one.dtypes[0], one.options["causal"]
    inputs = one.make(dtype, device)
    grads = backward(with_output(inputs, causal), causal)
    compare(one, inputs, dict(zip(("dq", "dk", "dv"), grads, strict=True)), dtype, device)


@pytest.mark.parametrize("width", WIDTHS)
def test_gradients_of_a_carry(width, device):
    """With one for the log-sum-exp. Those of the carry are float32's, from an output without a rounding of 16 bits."""
    one = case("carry", carried((2, 1), width, 20), 24, ("q", "k", "v", "out_c", "lse_c"), causal=True,
               return_lse=True, keep=("out_c", "lse_c"), draws=1)  # fmt: skip
    inputs = one.make(BF16, device)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    out, lse = (x.float() for x in one.call(wide, "reference"))
    direction = torch.rand(out.numel() + lse.numel(), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    direction = (direction * 2 - 1).to(device)
    given = inputs | {"out": out, "lse": lse, "dout": direction[: out.numel()].view(out.shape).float()}
    found = backward(given, True, (True, True, True), dlse=direction[out.numel() :].view(lse.shape).float())
    grads = dict(zip((f"d{name}" for name in one.wrt), found, strict=True))
    compare(one, inputs, {name: grads[name] for name in ("dq", "dk", "dv")}, BF16, device)
    inputs = {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}
    compare(one, inputs, {name: grads[name] for name in ("dout_c", "dlse_c")}, torch.float32, device)


def test_a_part_of_the_keys(device):
    """By the public op, from float32 outputs over other keys too, and from tensors that no map describes."""
    q, dout = (torch.randn(70, 2, 64, generator=fresh()).to(device, HALF) for _ in range(2))
    k, v = (torch.randn(200, 1, 64, generator=fresh()).to(device, HALF) for _ in range(2))
    out, lse = (x.float() for x in ak.attention(q.double(), k.double(), v.double(), return_lse=True, impl="reference"))
    part = (q, k[:140], v[:140], out, lse)

    def run(impl, *tensors):
        return ak.attention_backward(*tensors, impl=impl)

    with emulated() if device.type == "cpu" else nullcontext():
        found = run("cuda", *map(strided, (dout, *part)))
    exact = run("reference", *(x.double() for x in (dout, *part)))
    same = in_orders(lambda: run("reference", dout, *part))
    for f, e, *s in zip(found, exact, *same, strict=True):
        assert_within_budget(f, s, e)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_other_sequences_hold_does_not_spread(width, device):
    """Blocks of queries and of keys reach into the next sequence, all of whose numbers are NaN or infinite."""
    lengths, keys = [5, 70, 40], [6, 140, 30]
    rows, columns = slice(5, 75), slice(6, 146)
    inputs = with_output(case("", packed((1, 1), width, lengths, keys), causal=True).make(BF16, device), True)
    expected = backward(inputs, True)
    for name, inside in {"q": rows, "dout": rows, "out": rows, "lse": rows, "k": columns, "v": columns}.items():
        inputs[name][: inside.start] = -INF if name == "dout" else NAN
        inputs[name][inside.stop :] = INF if name in ("k", "dout") else NAN
    found = backward(inputs, True)
    for f, e, inside in zip(found, expected, (rows, columns, columns), strict=True):
        assert torch.equal(f[inside], e[inside])


def test_outputs_that_begin_anywhere(device):
    """A carry, and the output of a whole, that begin one element behind where a vector load may."""
    q, k, v, dout = (torch.randn(9, 1, 64, generator=fresh()).to(device, BF16) for _ in range(4))

    def odd(x):
        return torch.zeros(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(x.shape).copy_(x)

    def run(begin):
        out, lse = (x.detach() for x in ak.attention(q, k, v, return_lse=True, impl="reference"))
        carry = begin(out.float()).requires_grad_(), lse.float()
        both, _ = ak.attention(q, k, v, carry=carry, impl="cuda")
        both.sum().backward()
        return both, carry[0].grad, *ak.attention_backward(dout, q, k, v, begin(out), lse.float(), impl="cuda")

    with emulated() if device.type == "cpu" else nullcontext():
        assert all(map(torch.equal, run(odd), run(torch.clone)))


def test_a_query_that_sees_no_key_has_no_share(device):
    """Its row of dout may hold anything finite; its dq is zero."""
    inputs = with_output(case("", packed((1, 1), 64, [40], [10]), causal=True).make(HALF, device), True)
    before = backward(inputs, True)
    assert (inputs["lse"][:30] == -INF).all()
    inputs["dout"][:30] *= 100
    assert all(map(torch.equal, backward(inputs, True), before))
    assert not before[0][:30].any()


def test_sums_come_in_one_order(device):
    """Whichever block begins first, whoever goes on and whenever bytes come. Without turns the checker objects."""
    inputs = with_output(one((1, 1), 128, 230)(fresh(), 40), False)
    inputs = {name: x.to(device, torch.float32 if name == "lse" else HALF) for name, x in inputs.items()}
    if device.type == "cuda":
        first, *others = (backward(inputs, False) for _ in range(20))
    else:
        others = [{}, {"backwards": True}, {"schedule": 5}, {"schedule": 9, "backwards": True}]
        first, *others = (backward(inputs, False, ordered_adds=True, **how) for how in others)
        with pytest.raises(MemoryFault, match="nothing orders the sums"):
            backward(inputs, False, ordered=False, ordered_adds=True)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    for a, b in zip(first, backward(inputs, False, ordered=False), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-9, atol=2**-20)


def test_boundaries_that_overlap_end(device):
    """Nobody reads them on a GPU before its kernels: what comes out means nothing, but no block waits forever."""
    inputs = with_output(one((1, 1), 64)(fresh(), 33), False)
    inputs = {name: x.to(device, torch.float32 if name == "lse" else BF16) for name, x in inputs.items()}
    overlapping = {"cu_seqlens_q": cu([33, -33, 33]).to(device), "cu_seqlens_k": cu([5, 0, 5]).to(device)}
    twice = backward(inputs | overlapping, False, (True, False, False))[0]
    assert twice.isfinite().all()


def test_only_what_is_wanted(device):
    inputs = with_output(one((2, 1), 64)(fresh(), 33), True)
    inputs = {name: x.to(device, torch.float32 if name == "lse" else BF16) for name, x in inputs.items()}
    dq, *dkv = backward(inputs, True)
    alone, *none = backward(inputs, True, (True, False, False))
    assert torch.equal(alone, dq)
    assert [x.numel() for x in none] == [0, 0]
    none, *alone = backward(inputs, True, (False, True, False))
    assert all(map(torch.equal, alone, dkv))
    assert none.numel() == 0


@pytest.mark.parametrize("empty", ["queries", "keys", "sequences"])
def test_nothing_to_do(empty, device):
    queries, keys = {"queries": (0, 4), "keys": (4, 0), "sequences": (0, 0)}[empty]
    shapes = {"q": queries, "k": keys, "v": keys, "dout": queries, "out": queries}
    inputs = {name: torch.ones(n, 1, 64, dtype=BF16, device=device) for name, n in shapes.items()}
    inputs["lse"] = torch.full((queries, 1), -INF, device=device)
    bounds = [cu([n] if n or queries or keys else []).to(device) for n in (queries, keys)]
    inputs |= dict(zip(("cu_seqlens_q", "cu_seqlens_k"), bounds, strict=True))
    for grad, rows in zip(backward(inputs, True), (queries, keys, keys), strict=True):
        assert grad.shape == (rows, 1, 64)
        assert not grad.any()


def test_shared_memory_is_what_the_kernels_have(device, monkeypatch):
    """A byte less and the last barrier is beyond it."""
    if device.type == "cuda":
        pytest.skip("nobody looks on a GPU")
    for width in WIDTHS:
        assert cuda_backward.SHARED[width] <= 227 * 1024
        inputs = with_output(one((1, 1), width)(fresh(), 3), False)
        inputs = {name: x.float() if name == "lse" else x.to(BF16) for name, x in inputs.items()}
        with monkeypatch.context() as patch:
            patch.setitem(cuda_backward.SHARED, width, cuda_backward.SHARED[width] - 8)
            with pytest.raises(MemoryFault, match="bytes of shared memory"):
                backward(inputs, False)


# Products, waits and exponentials of a step in the order of csrc/include/afn/attention_backward.cuh.
STEPS = {64: "p{16}wp{12}wwp{4}we{64}w", 128: "p{12}wp{12}wp{8}we{32}w"}


@pytest.mark.slow
def test_what_the_compiler_makes_of_a_step():
    """No spills, and the exponentials of the next scores are between the waits for them and for the next dp."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    pytest.importorskip("triton", reason="its tools read machine code")
    from bench.sm90 import sass
    from bench.sm90.machine import cuda_binary

    for (_, width), kernel in cuda_backward.BACKWARD.items():
        read, code = cuda_binary(kernel, cuda_backward.SHARED[width])
        assert (read.spills, read.blocks) == (0, 1), kernel.name
        step = [one for one in sass.main_loop(code) if one.op.startswith(("HGMMA", "MUFU.EX2", "WARPGROUP.DEPBAR"))]
        ops = "".join({"H": "p", "M": "e", "W": "w"}[one.op[0]] for one in step)
        assert re.fullmatch(STEPS[width], ops), f"{kernel.name}: {ops}"


SANITISED = """
from tests.kernels.attention import test_cuda_backward as tests
for one in tests.CASES[:2]:
    causal = one.options["causal"]
    tests.backward(tests.with_output(one.make(one.dtypes[0], "cpu"), causal), causal)
"""


@pytest.mark.slow
def test_under_sanitisers(device):
    if device.type == "cuda" or not compiler():
        pytest.skip("of the host's compiler")
    done, missing = sanitised(SANITISED)
    if done is None:
        pytest.skip(missing)
    assert done.returncode == 0, re.sub(r"(?s)^.*?(?===)", "", done.stderr)[-3000:]
