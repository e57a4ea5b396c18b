"""What sequence parallelism costs a rank: by hand for a small case, and as real calls and the plan have it."""

import numpy as np
import pytest
import torch

from afn_distributed.comm import in_threads
from afn_distributed.costs import attention_bytes, sequence_load
from afn_distributed.hybrid import SequenceParallel, sp_attention
from afn_distributed.plan import make_plan
from afn_distributed.ring import GATHERED

MIXES = ([64], [5, 0, 40, 9, 1, 30], [3] * 11)


def counted(lengths, ulysses, ring, dtype, transport) -> tuple[list, list]:
    """What ranks sent in a forward and in its backward, and what the plan says, per rank and transport."""
    heads, kv_heads, dim = 28, 4, 4
    cu = np.concatenate(([0], np.cumsum(lengths)))
    plan = make_plan(cu, ulysses=ulysses, ring=ring, heads=heads, kv_heads=kv_heads, head_dim=dim)
    ranks = SequenceParallel.virtual(ulysses, ring)

    def work(rank: int):
        rows = plan.part_rows(rank)
        q = torch.randn(rows, heads, dim, dtype=dtype, requires_grad=True)
        k, v = (torch.randn(rows, kv_heads, dim, dtype=dtype, requires_grad=True) for _ in range(2))
        groups = {"ulysses": ranks[rank].ulysses, "ring": ranks[rank].ring}
        out = sp_attention(q, k, v, plan, ranks[rank], transport=transport, impl="reference")
        forward = {name: comm.sent for name, comm in groups.items()}
        out.sum().backward()
        return {name: {"forward": forward[name], "backward": groups[name].sent - forward[name]} for name in groups}

    size = torch.empty((), dtype=dtype).element_size()
    return in_threads(work, ulysses * ring), [attention_bytes(plan, rank, size) for rank in range(plan.ranks)]


@pytest.mark.parametrize(("ulysses", "ring"), [(1, 1), (1, 3), (4, 2), (8, 2)])
@pytest.mark.parametrize("lengths", MIXES, ids=("one", "mixed", "short"))
def test_bytes_are_those_that_a_real_call_sends(ulysses, ring, lengths):
    sent, promised = counted(lengths, ulysses, ring, torch.float32, "ring")
    assert sent == promised
    assert (sum(x["ulysses"]["forward"] for x in sent) > 0) == (ulysses > 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_bytes_in_other_precisions_and_gathered(dtype):
    sent, promised = counted([30, 9, 1, 61], 2, 2, dtype, "gather")
    assert sent == promised
    assert sum(x["ring"]["backward"] for x in sent) > 0


def test_a_ring_of_two_by_hand():
    """Eight tokens in four pieces: rank 0 has 0, 1, 6, 7 and rank 1 has 2 to 5."""
    load = sequence_load((8,), 1, 2)
    assert load.rows.tolist() == load.shard_rows.tolist() == [4, 4]
    assert load.pairs.tolist() == [[10, 2 * 4], [4 * 2, 10]]
    assert load.keys.tolist() == [[4, 4], [2, 4]]
    assert load.attended(0).tolist() == [28 * 10] * 2
    assert load.attended(1).tolist() == [28 * 8] * 2
    # A key and its value: 4 heads of 128, 2 bytes each. Rank 0 reads 4 of rank 1, which reads 2 of rank 0.
    assert load.key_bytes(1).tolist() == [4 * 2048, 2 * 2048]
    assert (load.transport, load.steps(), load.imbalance) == ("gather", [[1]], 1.0)


def test_ulysses_of_two_by_hand():
    """Eight rows, four a rank: to the peer go 14 query heads and 2 times 2 KV heads of 128, back 14 heads."""
    load = sequence_load((8,), 2, 1)
    out, home = load.head_bytes()
    assert out.tolist() == [4 * (14 + 2 * 2) * 128 * 2] * 2
    assert home.tolist() == [4 * 14 * 128 * 2] * 2
    assert (load.steps(), load.spread.tolist(), load.kv.tolist()) == ([], [2, 2], [2, 2])


@pytest.mark.parametrize(("ulysses", "ring"), [(1, 8), (7, 4)])
def test_messages_are_those_of_the_plan(ulysses, ring):
    load = sequence_load((9000, 7000, 4000, 4000, 576), ulysses, ring)
    keys = sum(load.key_bytes(t) for t in range(1, ring))
    out, home = load.head_bytes()
    promised = [attention_bytes(load.plan, rank, 2) for rank in range(load.plan.ranks)]
    # What all ranks receive of keys is what all send, and the backward sends float32 gradients of them too.
    assert sum(x["ring"]["forward"] for x in promised) == keys.sum()
    assert sum(x["ring"]["backward"] for x in promised) == 3 * keys.sum()
    assert [x["ulysses"]["forward"] for x in promised] == (out + home).tolist()
    assert load.imbalance == pytest.approx(load.plan.imbalance()[0])
    assert [t for step in load.steps() for t in step] == [t for t in range(1, ring) if load.key_bytes(t).any()]


def test_the_transport_is_the_rings_own():
    """Keys and values of 4 heads of 128 in 16 bits take 2,048 bytes a token."""
    most = GATHERED // 2048
    assert sequence_load((most,), 1, 2).transport == "gather"
    more = sequence_load((most + 2,), 1, 4)
    assert (more.transport, more.steps()) == ("ring", [[1], [2], [3]])
    assert sequence_load((most + 2,), 4, 2).transport == "gather", "a rank of four has one head"
