"""Ring attention alone: both transports, when which is chosen, and what is never sent."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

import afn_kernels as ak
from afn_distributed import ring
from afn_distributed.comm import in_threads, virtual_group
from afn_distributed.plan import make_plan, split_heads
from bench.sequence_parallel import boundaries, one_process, over_threads
from tests.budget import assert_within_budget
from tests.distributed.inputs import check, qkv
from tests.kernels.attention.stand_ins import standing_in
from tests.kernels.test_attention import needs_triton
from tests.orders import in_orders

LENGTHS = [33, 4, 0, 21, 1]
SIZES = {"heads": 4, "kv_heads": 2, "head_dim": 8}


def attend(plan, parts, transport="ring"):
    """Output of every rank's shard put together, bytes sent by each, and exchanges that each took part in."""
    comms = virtual_group(plan.ring)

    def work(rank):
        shard = torch.from_numpy(plan.shard(rank))
        with mock.patch.object(comms[rank], "exchange", wraps=comms[rank].exchange) as exchange:
            q, k, v = (x[shard] for x in parts[:3])
            out = ring.ring_attention(q, k, v, plan, comms[rank], plan.heads[0], transport=transport)
        return shard, out, comms[rank].sent, exchange.call_count

    shards, outs, sent, exchanges = zip(*in_threads(work, plan.ring), strict=True)
    return torch.cat(outs)[torch.argsort(torch.cat(shards))], list(sent), list(exchanges)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_transports_give_the_same_and_differ_in_messages(ranks):
    parts = qkv(sum(LENGTHS), 4, 2)
    plan = make_plan(boundaries(LENGTHS), ring=ranks, scheme="documents", **SIZES)
    stepwise, sent, steps = attend(plan, parts, "ring")
    together, sent_together, once = attend(plan, parts, "gather")
    check(boundaries(LENGTHS), parts, [stepwise], [together])
    assert sent == sent_together
    assert (steps, once) == ([ranks - 1] * ranks, [1] * ranks)


@pytest.mark.parametrize(("limit", "exchanges"), [(1 << 30, 1), (0, 3)])
def test_auto_gathers_where_the_batch_has_few_keys(limit, exchanges):
    plan = make_plan(boundaries(LENGTHS), ring=4, **SIZES)
    with mock.patch.object(ring, "GATHERED", limit):
        assert attend(plan, qkv(sum(LENGTHS), 4, 2), "auto")[2] == [exchanges] * 4


def test_auto_weighs_the_keys_of_the_whole_batch():
    """59 tokens of 2 KV heads of 8 in float64, keys and values: 15,104 bytes."""
    plan, parts = make_plan(boundaries(LENGTHS), ring=4, **SIZES), qkv(sum(LENGTHS), 4, 2)
    for limit, exchanges in ((15_104, 1), (15_103, 3)):
        with mock.patch.object(ring, "GATHERED", limit):
            assert attend(plan, parts, "auto")[2] == [exchanges] * 4


def test_documents_that_are_whole_send_nothing():
    lengths = [10, 10, 10, 10]
    plan = make_plan(boundaries(lengths), ring=4, **SIZES)
    parts = qkv(40, 4, 2)
    out, sent, _ = attend(plan, parts)
    assert sent == [0] * 4
    check(boundaries(lengths), parts, [out])


def test_shards_are_attended_to_by_the_fastest_kernel_there_is():
    """Log-sum-exps, carries and the backward over a part of the keys are FlashAttention's too, where one is here."""
    cu, parts = boundaries(LENGTHS), qkv(sum(LENGTHS), 4, 2, torch.float32)
    with standing_in(wide=True) as told:
        found = over_threads(cu, parts, 1, 3, "documents", "gather")
    assert "deterministic" in told["flash3"], "the last that it was asked was a backward"
    check(cu, parts, found)


def test_one_rank_calls_attention_once():
    plan, parts = make_plan(boundaries(LENGTHS), **SIZES), qkv(sum(LENGTHS), 4, 2)
    with mock.patch.object(ak, "attention", wraps=ak.attention) as attention:
        out = ring.ring_attention(*parts[:3], plan, virtual_group(1)[0], plan.heads[0])
    assert attention.call_count == 1
    assert attention.call_args.kwargs["causal"] is True
    check(boundaries(LENGTHS), parts, [out])


def fused(cu, q, k, v, dout):
    """PyTorch's fused attention in one process; like a ring's steps it goes back from the rounded output."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = ak.attention(*leaves, cu_seqlens_q=cu, causal=True, impl="sdpa")
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def test_half_precision_does_not_worsen_with_ranks():
    """bfloat16: the budget of one process holds over 16 ring ranks; partial results travel in float32."""
    cu = boundaries([300, 41, 171])
    exact = qkv(512, 4, 2, dim=16)
    rounded = [x.bfloat16() for x in exact]
    oracle = one_process(cu, *(x.double() for x in rounded))
    same = in_orders(lambda: one_process(cu, *rounded)) + in_orders(lambda: fused(cu, *rounded))
    for ranks in (1, 2, 4, 8, 16):
        found = over_threads(cu, rounded, 1, ranks, "documents")
        for name, value, wanted, *others in zip(("out", "dq", "dk", "dv"), found, oracle, *same, strict=True):
            assert_within_budget(value, others, wanted, name=f"{ranks} ranks: {name}")


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(28, 4, 8), (28, 4, 4), (6, 2, 4)])
def test_gradients_of_repeated_heads_are_the_adjoint(heads, kv_heads, ranks):
    """⟨spread(x), y⟩ = ⟨x, gathered_heads(y)⟩ for the heads of every rank."""
    for part in split_heads(heads, kv_heads, ranks):
        x = torch.randn(5, len(part.kv), 3, dtype=torch.float64)
        repeated = ring.spread(x, part)
        assert repeated.shape[1] in ((len(part.kv),) if part.even else (len(part.q),))
        y = torch.randn_like(repeated)
        torch.testing.assert_close(
            (repeated * y).sum(), (x * ring.gathered_heads(y, part)).sum(), rtol=1e-12, atol=1e-12
        )


def test_heads_that_are_read_unevenly_are_repeated():
    part = replace(split_heads(28, 4, 8)[1], q=range(4, 7), kv=range(0, 2), reads=(0, 0, 1))
    x = torch.tensor([[[1.0], [2.0]]])
    assert ring.spread(x, part).flatten().tolist() == [1, 1, 2]
    assert ring.gathered_heads(torch.tensor([[[1.0], [10.0], [100.0]]]), part).flatten().tolist() == [11, 100]


def test_what_is_kept_from_inference_serves_training():
    needs_triton()
    plan = make_plan([0, 9], ring=1, **SIZES)
    exchange, q = plan.exchange(0, 0), torch.zeros(9, 4, 16)
    comm = virtual_group(1)[0]
    with torch.inference_mode():
        schedule = ring.options_of(exchange, q, comm, 1.0, "triton")["schedule"]
    assert len(schedule.tables) == 2, "those of the backward too"
    assert not any(table.is_inference() for table in schedule.tables.values())


def test_an_unknown_transport():
    plan, (q, k, v, _) = make_plan([0, 8], **SIZES), qkv(8, 4, 2)
    with pytest.raises(ValueError, match="transport 'pigeon' is none of auto, ring, gather"):
        ring.ring_attention(q, k, v, plan, virtual_group(1)[0], plan.heads[0], transport="pigeon")
