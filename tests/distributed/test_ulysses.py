"""Rows for heads and back: rotary in the copy, and no copy between the all-to-all and attention."""

from unittest import mock

import pytest
import torch

import afn_kernels as ak
from afn_distributed import ulysses
from afn_distributed.comm import in_threads
from afn_distributed.costs import attention_bytes
from afn_distributed.hybrid import SequenceParallel, sp_attention
from afn_distributed.plan import make_plan
from afn_kernels.pack_heads import cuda
from bench.sequence_parallel import boundaries
from tests.budget import assert_same_but_rounding, assert_within_budget
from tests.cuda import emulated, library
from tests.distributed.ranks import run
from tests.orders import in_orders

LENGTHS = [37, 3, 0, 21, 1]


def a_batch(heads=28, kv_heads=4, dim=8, dtype=torch.float64):
    """q, k, v, dout, and positions and frequencies of rotary."""
    generator, total = torch.Generator().manual_seed(1), sum(LENGTHS)
    parts = [
        torch.randn(total, n, dim, generator=generator, dtype=torch.float64).to(dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    ]
    positions = torch.cat([torch.arange(float(n)) for n in LENGTHS]) * 1.5
    return parts, positions, 10_000.0 ** (-torch.arange(0.0, dim, 2) / dim)


def alone(parts, positions, inv_freq):
    """out, dq, dk, dv of rotary and then attention by one process."""
    *leaves, dout = [x.clone().requires_grad_(i < 3) for i, x in enumerate(parts)]
    q, k = ak.rotary(*leaves[:2], positions, inv_freq, impl="reference")
    cu = boundaries(LENGTHS)
    out = ak.attention(q, k, leaves[2], cu_seqlens_q=cu, cu_seqlens_k=cu, causal=True, impl="reference")
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def on_a_rank(sp_group, plan, parts, positions, inv_freq):
    tokens = plan.tokens(sp_group.rank)
    *leaves, dout = [x[tokens].clone().requires_grad_(i < 3) for i, x in enumerate(parts)]
    angles = {"positions": positions[tokens], "inv_freq": inv_freq}
    out = sp_attention(*leaves, plan, sp_group, **angles, impl="reference")
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def over_threads(ulysses, ring, parts, positions, inv_freq):
    plan = a_plan(ulysses, ring, parts)
    ranks = SequenceParallel.virtual(ulysses, ring)
    found = in_threads(lambda rank: on_a_rank(ranks[rank], plan, parts, positions, inv_freq), plan.ranks)
    order = torch.argsort(torch.cat([plan.tokens(rank) for rank in range(plan.ranks)]))
    return [torch.cat(some)[order] for some in zip(*found, strict=True)], plan, ranks


def a_plan(ulysses, ring, parts):
    q, k = parts[:2]
    sizes = {"heads": q.shape[1], "kv_heads": k.shape[1], "head_dim": q.shape[2]}
    return make_plan(boundaries(LENGTHS), ulysses=ulysses, ring=ring, **sizes)


@pytest.mark.parametrize("split", [(1, 1), (1, 3), (2, 1), (3, 2), (4, 1), (7, 1), (8, 2), (28, 1)], ids=str)
def test_rotary_in_the_copy(split):
    """As rotary before it, one rank included, and the bytes are those of the plan."""
    batch = a_batch()
    found, plan, ranks = over_threads(*split, *batch)
    assert_same_but_rounding(found, in_orders(lambda: alone(*batch)))
    for rank, one in enumerate(ranks):
        promised = attention_bytes(plan, rank, 8)
        assert one.ulysses.sent == sum(promised["ulysses"].values())
        assert one.ring.sent == sum(promised["ring"].values())


def rotary_on(process, ulysses, ring):
    """On a rank of a gloo group."""
    ranks, (parts, *angles) = SequenceParallel.of(process, ulysses, ring), a_batch()
    plan = a_plan(ulysses, ring, parts)
    tokens = plan.tokens(ranks.rank)
    found = on_a_rank(ranks, plan, parts, *angles)
    assert_same_but_rounding(found, in_orders(lambda: [x[tokens] for x in alone(parts, *angles)]))
    assert ranks.ulysses.sent == sum(attention_bytes(plan, ranks.rank, 8)["ulysses"].values())


@pytest.mark.slow
@pytest.mark.parametrize("split", [(2, 1), (4, 1), (2, 2)], ids=str)
def test_rotary_between_processes(split):
    run(split[0] * split[1], rotary_on, *split)


def test_with_the_kernels():
    """The CUDA kernels in their emulation, under attention by the reference, in bfloat16: a KV head on two ranks."""
    batch = a_batch(6, 2, 16, torch.bfloat16)
    parts, *angles = batch
    oracle, same = alone([x.double() for x in parts], *angles), in_orders(lambda: alone(*batch))
    library("ulysses_permute")  # compiled once, not by every thread
    launched = []
    for impl in ("reference", "cuda"):
        launch = lambda *args, f=cuda.launch: launched.append(args[0]) or f(*args)  # noqa: E731
        with emulated(), ak.prefer(impl), mock.patch.object(cuda, "launch", launch):
            found = over_threads(3, 1, *batch)[0]
        for value, exact, *others in zip(found, oracle, *same, strict=True):
            assert_within_budget(value, others, exact, name=impl)
    # One pass each way, on each of three ranks.
    passes = ["pack_heads_rotary_bfloat16", "unpack_heads_bfloat16", "pack_heads", "unpack_heads_rotary_bfloat16"]
    assert sorted(launched) == sorted(3 * passes)


def test_attention_gets_views_of_what_came():
    """Nothing is unpacked: q, k and v are one buffer, and the output is sent as it lies."""
    q, k, v, _ = a_batch()[0]
    plan, ranks = a_plan(4, 1, (q, k)), SequenceParallel.virtual(4, 1)

    def work(rank):
        tokens, comm = plan.tokens(rank), ranks[rank].ulysses
        found = ulysses.scatter_heads(q[tokens], k[tokens], v[tokens], plan, comm, rank)
        assert len({x.untyped_storage().data_ptr() for x in found}) == 1
        assert [x.stride() for x in found] == [((7 + 2) * 8, 8, 1)] * 3
        with mock.patch.object(comm, "all_to_all", wraps=comm.all_to_all) as sent:
            out = found[0].contiguous()
            ulysses.gather_heads(out, plan, comm, rank)
        return sent.call_args.args[0].data_ptr() == out.data_ptr()

    assert in_threads(work, 4) == [True] * 4
