import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import afn_kernels as ak
from afn_kernels.attention import dense, traced
from afn_kernels.attention.packed import backward as packed_backward
from afn_kernels.attention.packed import forward as packed_forward
from afn_kernels.attention.schedule import tile_table
from tests.budget import assert_same_but_rounding, assert_within_budget, fresh, gradients
from tests.orders import in_orders

LENGTHS = {
    "one": [7],
    "equal": [33, 33],
    "ragged": [1, 63, 5, 130],
    "with empty": [0, 9, 0, 4],
    "none": [],
}
IMPLS = ("matmul", "sdpa", "reference")


def cu(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def needs_triton():
    row = next(row for row in ak.explain("attention").rows if row.impl == "triton")
    if row.status == "unavailable":
        pytest.skip(row.reason)


def make(lengths_q, lengths_k, heads, kv_heads, dim, dtype):
    generator = fresh()
    tq, tk = sum(lengths_q), sum(lengths_k)
    shapes = (tq, heads, dim), (tk, kv_heads, dim), (tk, kv_heads, dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def run(q, k, v, impl, **options):
    """The output and the gradients of q, k and v for a fixed direction."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = ak.attention(q, k, v, impl=impl, **options)
    return [out.detach(), *gradients(out, (q, k, v))]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (6, 2, 64), (7, 1, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward(lengths, causal, heads, kv_heads, dim, dtype):
    inputs = make(lengths, lengths, heads, kv_heads, dim, dtype)
    options = {"cu_seqlens_q": cu(lengths), "causal": causal}
    oracle = run(*(x.double() for x in inputs), "reference", **options)
    orders = in_orders(lambda: naive_run(inputs, lengths, causal), 4)
    orders += in_orders(lambda: fused_run(inputs, lengths, causal), 2)
    for impl in IMPLS:
        for f, o, *same in zip(run(*inputs, impl, **options), oracle, *orders, strict=True):
            assert f.dtype == dtype
            assert_within_budget(f, same, o, name=impl)


def naive_run(inputs, lengths, causal):
    """Attention by matrix products in the inputs' own precision."""
    q, k, v = (x.detach().clone().requires_grad_() for x in inputs)
    group = q.shape[1] // k.shape[1]
    outs = []
    for qs, ks, vs in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        score = torch.einsum("qhd,khd->hqk", qs, ks.repeat_interleave(group, 1)) * q.shape[-1] ** -0.5
        if causal:
            score = score + torch.full_like(score, float("-inf")).triu(1)
        outs.append(torch.einsum("hqk,khd->qhd", score.softmax(-1), vs.repeat_interleave(group, 1)))
    out = torch.cat(outs) if outs else q * 1.0
    return [out.detach(), *gradients(out, (q, k, v))]


def fused_run(inputs, lengths, causal):
    """PyTorch's fused attention, one sequence at a time: its exponential is a coarser one on a CPU."""
    q, k, v = (x.detach().clone().requires_grad_() for x in inputs)
    outs = [
        F.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in parts), is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
        )[0].transpose(0, 1)
        for parts in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        if len(parts[0])
    ]
    out = torch.cat(outs) if outs else q * 1.0
    return [out.detach(), *gradients(out, (q, k, v))]


@pytest.mark.parametrize("impl", IMPLS)
def test_other_keys_than_queries(impl):
    lengths_q, lengths_k = [3, 5, 4], [10, 2, 0]
    inputs = make(lengths_q, lengths_k, 4, 2, 16, torch.float64)
    options = {"cu_seqlens_q": cu(lengths_q), "cu_seqlens_k": cu(lengths_k)}
    for causal in (False, True):
        call = partial(ak.attention, *inputs, causal=causal, **options)
        found = call(impl=impl)
        assert_same_but_rounding(found, in_orders(partial(call, impl="reference")))
        assert not found[8:].any(), "queries without keys give zeros"
    # The first queries of the second sequence come before its two keys.
    assert not ak.attention(*inputs, impl=impl, causal=True, **options)[3:6].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_varlen_is_a_loop_over_sequences(impl):
    lengths = [5, 1, 64]
    q, k, v = make(lengths, lengths, 6, 3, 16, torch.float32)
    packed = ak.attention(q, k, v, cu_seqlens_q=cu(lengths), causal=True, impl=impl)

    def singly():
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([ak.attention(*part, causal=True, impl=impl) for part in parts])

    assert_same_but_rounding(packed, in_orders(singly))


def test_one_sequence_without_boundaries_and_a_custom_scale():
    q, k, v = make([9], [9], 2, 2, 8, torch.float64)
    found = ak.attention(q, k, v, scale=0.3)
    assert_same_but_rounding(found, in_orders(lambda: ak.attention(q * 0.3, k, v, cu_seqlens_q=cu([9]), scale=1.0)))


def test_non_contiguous_inputs():
    q, k, v = make([20], [20], 4, 4, 16, torch.float64)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    for impl in IMPLS:
        assert_same_but_rounding(
            ak.attention(*strided, impl=impl), in_orders(partial(ak.attention, q, k, v, impl=impl))
        )


def test_carry_continues_from_other_keys():
    lengths = [4, 7]
    q, k, v = make(lengths, lengths, 4, 2, 16, torch.float64)
    options = {"cu_seqlens_q": cu(lengths)}
    halves = [[2, 3], [2, 4]]
    pick = torch.cat([torch.arange(0, 2), torch.arange(4, 7)]), torch.cat([torch.arange(2, 4), torch.arange(7, 11)])
    carry = None
    for rows, half in zip(pick, halves, strict=True):
        arguments = {"cu_seqlens_q": cu(lengths), "cu_seqlens_k": cu(half), "carry": carry}
        carry = ak.attention(q, k[rows], v[rows], return_lse=True, **arguments)
    assert_same_but_rounding(carry, in_orders(lambda: ak.attention(q, k, v, return_lse=True, **options)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_ring_of_three_steps_is_one_call(dtype, device):
    """Forward and gradients through the carry, in the kernels; the oracle is one call of the reference.

    A carry is weighed by exp(its lse − the new one): a unit in the last place of an lse for each unit of its size.
    """
    needs_triton()
    queries, keys = [5, 40], [[0, 33], [17, 3], [20, 40]]
    q, k, v = (x.to(device) for x in make(queries, [sum(x) for x in zip(*keys, strict=True)], 4, 2, 16, dtype))
    columns = list(zip(*keys, strict=True))
    pieces = [x.split([n for column in columns for n in column]) for x in (k, v)]  # of sequence 0, then of 1

    def ring(q, *kv, impl):
        ks, vs, carry = kv[:6], kv[6:], None
        for step, lengths in enumerate(keys):
            k_step, v_step = (torch.cat([x[step], x[3 + step]]) for x in (ks, vs))
            options = {"cu_seqlens_q": cu(queries).to(device), "cu_seqlens_k": cu(lengths).to(device)}
            carry = ak.attention(q, k_step, v_step, carry=carry, return_lse=True, impl=impl, **options)
            carry = carry[0].to(carry[1].dtype), carry[1]
        return torch.cat([carry[0].flatten(), carry[1].flatten()])

    leaves = [x.detach().clone().requires_grad_() for x in (q, *pieces[0], *pieces[1])]
    out = ring(*leaves, impl="triton")
    dq, *dkv = gradients(out, leaves)
    found = [out.detach().to(dtype), dq, torch.cat(dkv[:6]), torch.cat(dkv[6:])]

    def whole(q, k, v):
        q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
        bounds = {"cu_seqlens_q": cu(queries).to(device), "cu_seqlens_k": cu([37, 76]).to(device)}
        out, lse = ak.attention(q, k, v, return_lse=True, impl="reference", **bounds)
        out = torch.cat([out.flatten().to(lse.dtype), lse.flatten()])
        return [out.detach(), *gradients(out, (q, k, v))]

    oracle = whole(q.double(), k.double(), v.double())
    same = in_orders(lambda: whole(q, k, v))
    ulps = 2 + math.ceil(float(oracle[0][q.numel() :].abs().max()))
    for f, o, *s in zip(found, oracle, *same, strict=True):
        assert_within_budget(f, s, o, ulps=ulps)


@pytest.mark.parametrize("causal", [False, True])
def test_kernels_on_packed_sequences_are_a_loop(causal, device):
    needs_triton()
    lengths = [40, 0, 1, 65]
    q, k, v = (x.to(device) for x in make(lengths, lengths, 6, 3, 16, torch.float32))
    packed = run(q, k, v, "triton", cu_seqlens_q=cu(lengths).to(device), causal=causal)[0]
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    singles = [ak.attention(*part, causal=causal, impl="triton") for part in parts]
    assert torch.equal(packed, torch.cat(singles))


def test_queries_without_keys_have_no_gradient(device):
    needs_triton()
    q, k, v = (x.to(device).requires_grad_() for x in make([40], [6], 2, 1, 16, torch.float32))
    carry = torch.zeros_like(q), torch.full(q.shape[:2], float("-inf"), device=device)
    carry = [x.detach().requires_grad_() for x in carry]
    for options in ({}, {"carry": tuple(carry)}):
        out, lse = ak.attention(q, k, v, causal=True, return_lse=True, impl="triton", **options)
        assert not out[:34].any()
        assert (lse[:34] == float("-inf")).all()
        wanted = (q, k, v, *(carry if options else ()))
        grads = torch.autograd.grad(out.sum() + lse[34:].sum(), wanted)
        assert all(torch.isfinite(grad).all() for grad in grads)
        assert not grads[0][:34].any()


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_schedule_has_every_block_once_longest_first(causal, keys, device):
    """Against loops and a sort in Python."""
    queries, others = [5, 0, 100, 33, 16, 1] * 12, [100, 7, 0, 33, 60, 40] * 12
    table = tile_table(cu(queries).to(device), cu(others).to(device), sum(queries), sum(others), 16, causal, keys)
    expected, q0, k0 = [], 0, 0
    for nq, nk in zip(queries, others, strict=True):
        for block in range(-(-(nk if keys else nq) // 16)):
            if keys:
                work = min(nq, nk - 16 * block) if causal else nq
            else:
                work = max(nk - nq + min(16 * block + 16, nq), 0) if causal else nk
            expected.append((work, [q0, nq, k0, nk, block]))
        q0, k0 = q0 + nq, k0 + nk
    expected = [row for _, row in sorted(expected, key=lambda item: -item[0])]
    assert table.tolist() == expected + [[0] * 5] * (len(table) - len(expected))


def test_carry_over_no_keys_changes_nothing():
    q, k, v = make([4], [4], 2, 2, 8, torch.float64)
    out, lse = ak.attention(q, k, v, return_lse=True)
    again = ak.attention(q, k[:0], v[:0], cu_seqlens_q=cu([4]), cu_seqlens_k=cu([0]), carry=(out, lse))
    assert torch.equal(again[0], out)
    assert torch.equal(again[1], lse)


@pytest.mark.parametrize("impl", ["auto", "reference", "triton"])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_parts_of_the_keys_add_up(impl, causal, device):
    """Two parts, each with output and log-sum-exp over both: dq adds up, dk and dv are those of the whole."""
    dtype = torch.float32 if impl == "triton" else torch.float64
    device = device if impl == "triton" else "cpu"
    q, k, v = (x.to(device) for x in make([5, 9], [8, 11], 4, 2, 16, dtype))
    dout = torch.randn(q.shape, dtype=torch.float64).to(device, dtype)
    q_cu, first, second = (cu(lengths).to(device) for lengths in ([5, 9], [3, 2], [5, 9]))
    rows = torch.arange(19, device=device)
    early = (rows < 3) | ((rows >= 8) & (rows < 10))
    parts = [(k[early], v[early], first, False), (k[~early], v[~early], second, causal)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    carry = torch.zeros_like(q, dtype=wide), torch.full(q.shape[:2], float("-inf"), dtype=wide, device=device)
    for part in parts:
        options = {"cu_seqlens_q": q_cu, "cu_seqlens_k": part[2], "causal": part[3]}
        carry = ak.attention(q, *part[:2], **options, carry=carry, impl=impl)
    found = [
        ak.attention_backward(
            dout, q, *part[:2], *carry, cu_seqlens_q=q_cu, cu_seqlens_k=part[2], causal=part[3], impl=impl
        )
        for part in parts
    ]

    def whole(*given):
        leaves = [x.detach().clone().requires_grad_() for x in given]
        options = {"cu_seqlens_q": q_cu, "cu_seqlens_k": cu([8, 11]).to(device), "causal": causal}
        out = ak.attention(*leaves, **options, impl="reference")
        dq, dk, dv = torch.autograd.grad(out, leaves, dout.to(out))
        return dq, dk[early], dv[early], dk[~early], dv[~early]

    sums = (found[0][0] + found[1][0], *found[0][1:], *found[1][1:])
    oracle = whole(q.double(), k.double(), v.double())
    for f, o, *same in zip(sums, oracle, *in_orders(lambda: whole(q, k, v)), strict=True):
        assert_within_budget(f, same, o)


def test_without_keys_the_gradients_of_a_carry_are_what_arrives():
    """Bit for bit, in a graph's backward too: a small gradient of lse is not lost in a product of large outputs."""
    q, k = torch.randn(4, 2, 16), torch.randn(0, 2, 16)
    carry, boundaries = (100 * torch.randn(4, 2, 16), torch.randn(4, 2)), (cu([4]), cu([0]))
    options = False, -1, -1, 0.0, 0.25
    out, lse = packed_forward(q, k, k, *carry, *boundaries, *options, True, "reference")
    dout, dlse = torch.randn(4, 2, 16), torch.randn(4, 2)
    found = packed_backward(dout, dlse, out, lse, q, k, k, *carry, *boundaries, *options, True)
    assert torch.equal(found[3], dout)
    assert torch.equal(found[4], dlse)


def test_the_gradient_of_a_carry_where_nobody_has_a_key():
    q, k, v = (x.requires_grad_() for x in make([3, 2], [4, 0], 2, 1, 16, torch.float64))
    out = torch.zeros(q.shape, dtype=q.dtype, requires_grad=True)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=q.dtype, requires_grad=True)
    options = {"cu_seqlens_q": cu([3, 2]), "cu_seqlens_k": cu([4, 0]), "impl": "reference"}
    found, both = ak.attention(q, k, v, carry=(out, lse), **options)
    assert torch.equal(both[3:], lse[3:])
    (found.square().sum() + both[:3].sum() + both[3:].exp().sum()).backward()
    for x in (out, lse):
        assert not x.grad.any()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_large_scores_do_not_overflow():
    q, k, v = make([8], [8], 2, 2, 16, torch.float32)
    for impl in IMPLS:
        out = ak.attention(q * 1e4, k, v, impl=impl)
        assert torch.isfinite(out).all()


def test_gradcheck():
    q, k, v = (x.requires_grad_() for x in make([3, 4], [3, 4], 4, 2, 6, torch.float64))
    for impl in IMPLS:
        assert torch.autograd.gradcheck(
            lambda q, k, v, impl=impl: ak.attention(q, k, v, cu_seqlens_q=cu([3, 4]), causal=True, impl=impl), (q, k, v)
        )


def test_auto_takes_the_first_that_supports_the_call():
    q, k, v = make([16], [16], 1, 1, 4, torch.float32)
    for return_lse, chosen in ((False, "sdpa"), (True, "reference")):
        explanation = ak.explain("attention", q, k, v, return_lse=return_lse, carry=None)
        assert explanation.chosen == chosen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "5 query heads are not a multiple of 2 KV heads"),
        ({"cu": [0, 3, 2, 7]}, "falls from 3 to 2"),
        ({"cu": [0, 3, 6]}, "runs from 0 to 6, expected 0 to 7"),
        ({"cu": [1, 7]}, "runs from 1 to 7"),
        ({"dtype": torch.float16}, "float16"),
        ({"carry": torch.float16}, "the carry is torch.float16 on cpu, torch.float16 on cpu, expected torch.float32"),
    ],
)
def test_bad_input(change, message):
    q, k, v = make([7], [7], change.get("heads", 4), 2, 8, torch.float32)
    boundaries = torch.tensor(change.get("cu", [0, 7]), dtype=torch.int32)
    carry = (q.to(change["carry"]), q[..., 0].to(change["carry"])) if "carry" in change else None
    with pytest.raises(ValueError, match=message):
        ak.attention(q.to(change.get("dtype", torch.float32)), k, v, cu_seqlens_q=boundaries, carry=carry)


@pytest.mark.parametrize("lengths", [[100, *[10] * 20], [1, 2, 4, 8, 16, 32], [0, 7, 0, 90], [5, 5, 5], [9], []])
def test_a_long_sequence_does_not_pad_short_ones(lengths):
    """Groups hold every sequence once, and no group pads to more than WASTE times the scores it needs."""
    bounds = dense.alike(cu(lengths)) or [0, len(lengths)]
    ordered = sorted(lengths)
    for first, end in itertools.pairwise(bounds):
        group = ordered[first:end]
        assert len(group) * max(group, default=0) ** 2 <= dense.WASTE * sum(n**2 for n in group)
    assert (bounds[0], bounds[-1]) == (0, len(lengths))


def test_bad_implementation_and_boundaries():
    q, k, v = make([7], [7], 2, 2, 8, torch.float32)
    with pytest.raises(ValueError, match="no implementation 'flash9'"):
        ak.attention(q, k, v, impl="flash9")
    with pytest.raises(ValueError, match=r"no implementation 'trition'; there are .*triton"), ak.prefer("trition"):
        pass
    with pytest.raises(ValueError, match="k is a list, expected a tensor"):
        ak.attention(q, [1.0], v)
    with pytest.raises(ValueError, match="float8_e4m3fn, expected a floating dtype of 16 bits"):
        ak.attention(*(x.to(torch.float8_e4m3fn) for x in (q, k, v)))
    with pytest.raises(ValueError, match="impl='sdpa' cannot run this call"):
        ak.attention(q, k, v, impl="sdpa", return_lse=True)
    with pytest.raises(ValueError, match="int32"):
        ak.attention(q, k, v, cu_seqlens_q=torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="2 query and 1 key sequences"):
        ak.attention(q, k, v, cu_seqlens_q=cu([3, 4]), cu_seqlens_k=cu([7]))


def cache_of(lengths, capacity, kv_heads, dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shape = (len(lengths), capacity, kv_heads, dim)
    k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    for row, length in enumerate(lengths):
        k[row, length:] = v[row, length:] = float("nan")  # what lies past the end must never be read
    return k, v


@pytest.mark.parametrize("new", [1, 3, 8])
@pytest.mark.parametrize("paged", [False, True])
def test_decode_equals_causal_attention_over_the_cache(new, paged):
    lengths = [8, 17, 24]
    k, v = cache_of(lengths, 24, 2, 16)
    q = torch.randn(3, new, 6, 16, dtype=torch.float64)
    if paged:
        order = torch.randperm(9)
        table = torch.empty(3, 3, dtype=torch.int32)
        pages = [torch.empty(9, 8, 2, 16, dtype=torch.float64) for _ in range(2)]
        for sequence, page in itertools.product(range(3), range(3)):
            table[sequence, page] = order[3 * sequence + page]
            for target, source in zip(pages, (k, v), strict=True):
                target[table[sequence, page]] = source[sequence, 8 * page : 8 * page + 8]
        found = ak.decode_attention(q, *pages, torch.tensor(lengths), block_table=table)
    else:
        found = ak.decode_attention(q, k, v, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        boundaries = {"cu_seqlens_q": cu([new]), "cu_seqlens_k": cu([length])}
        one = partial(ak.attention, q[row], k[row, :length], v[row, :length], **boundaries, causal=True)
        assert_same_but_rounding(found[row], in_orders(one))


def test_decode_bad_input():
    k, v = cache_of([4], 8, 2, 16)
    q = torch.randn(1, 1, 6, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="length 9 is past the capacity 8"):
        ak.decode_attention(q, k, v, torch.tensor([9]))
    with pytest.raises(ValueError, match="5 query heads over 2 KV heads"):
        ak.decode_attention(q[:, :, :5], k, v, torch.tensor([4]))
    with pytest.raises(ValueError, match="length 0 is below the 1 new"):
        ak.decode_attention(q, k, v, torch.tensor([0]))


def test_queries_without_keys_spread_no_nan(device):
    """logaddexp of two log-sum-exps of −inf has the gradient NaN: it must stay in the rows that saw no key."""
    pytest.importorskip("triton")
    q, k, v = (torch.randn(n, 2, 16, device=device, requires_grad=True) for n in (6, 3, 3))
    out, lse = ak.attention(q, k, v, causal=True, return_lse=True, impl="triton")
    loss = torch.logaddexp(lse, lse.detach())[3:].sum() + out.sum()
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(loss, (q, k, v)))
    with pytest.raises(ValueError, match="not above zero"):
        ak.attention(q, k, v, scale=0.0, impl="triton")


@pytest.mark.slow
@pytest.mark.parametrize(("carried", "impl"), [(False, "sdpa"), (False, "reference"), (True, "reference")])
def test_opcheck_of_packed_attention_in_a_graph(carried, impl):
    """Schemas, fakes and autograd of the op that packed calls of plain PyTorch become under torch.compile."""
    q, k, v = (torch.randn(9, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    carry = (
        (torch.randn(9, 4, 8, requires_grad=True), torch.randn(9, 4, requires_grad=True)) if carried else (None,) * 2
    )
    bounds = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    lse = impl == "reference"
    torch.library.opcheck(traced.FORWARD.op, (q, k, v, *carry, bounds, bounds, True, -1, -1, 0.0, 0.3, lse, impl))
    inputs = [None if x is None else x.detach() for x in (q, k, v, *carry)]
    with pytest.raises(ValueError, match="cu_seqlens_q runs from 0 to 8, expected 0 to 9"):
        packed_forward(q, k, v, *carry, bounds.clamp(max=8), bounds, True, -1, -1, 0.0, 0.3, lse, impl)
    out, found_lse = packed_forward(*inputs, bounds, bounds, True, -1, -1, 0.0, 0.3, lse, impl)
    given = (torch.randn_like(out), torch.randn_like(found_lse) if lse else None, out, found_lse)
    torch.library.opcheck(traced.BACKWARD.op, (*given, *inputs, bounds, bounds, True, -1, -1, 0.0, 0.3, lse))
