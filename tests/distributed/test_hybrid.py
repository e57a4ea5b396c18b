"""Attention over several ranks against one: threads for every factorisation, processes for some."""

import itertools

import numpy as np
import pytest
import torch

from afn_distributed import RankLayout
from afn_distributed.comm import in_threads, virtual_group
from afn_distributed.hybrid import SequenceParallel, agree, sp_attention
from afn_distributed.plan import SCHEMES, make_plan
from bench.sequence_parallel import boundaries, one_rank, over_threads
from tests.distributed.inputs import check, qkv
from tests.distributed.ranks import run

SPLITS = [(u, r) for u, r in itertools.product((1, 2, 3, 4, 5, 7, 8), (1, 2, 3, 4, 8)) if 1 < u * r <= 8]


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_factorisation(split):
    random = np.random.default_rng(split)
    lengths = random.integers(0, 30, 6) * random.integers(0, 2, 6)
    cu = boundaries([1, *lengths.tolist()])
    parts = qkv(int(cu[-1]), 28, 4)
    ways = zip(SCHEMES, ("ring", "gather") * 2, strict=True)
    check(cu, parts, *(over_threads(cu, parts, *split, scheme, transport) for scheme, transport in ways))


@pytest.mark.parametrize("ulysses", [6, 14, 28])
def test_as_many_ranks_as_heads(ulysses):
    cu = boundaries([33, 5, 0, 1, 40])
    parts = qkv(79, 28, 4)
    check(cu, parts, over_threads(cu, parts, ulysses, 2))


@pytest.mark.parametrize("lengths", [[1], [200], [3, 0, 0, 2], [1] * 5])
def test_few_tokens_many_ranks(lengths):
    cu = boundaries(lengths)
    parts = qkv(sum(lengths), 4, 2)
    check(cu, parts, *(over_threads(cu, parts, 2, 4, scheme) for scheme in SCHEMES))


def attention_on(process, ulysses, ring, lengths, seed):
    """On a rank of a gloo group: all ranks' rows together are what one process computes."""
    sp_group = SequenceParallel.of(process, ulysses, ring)
    assert sp_group.rank == process.rank
    cu = boundaries(lengths)
    torch.manual_seed(seed)
    parts = qkv(sum(lengths), 28, 4)
    plan = make_plan(cu, ulysses=ulysses, ring=ring, head_dim=8)
    ways = [one_rank(sp_group, plan, *parts, transport) for transport in ("ring", "gather")]
    of_ranks = sp_group.all.gather_objects(ways)
    if process.rank == 0:
        order = torch.argsort(torch.cat([plan.tokens(rank) for rank in range(plan.ranks)]))
        wholes = [
            [torch.cat(some)[order] for some in zip(*found, strict=True)] for found in zip(*of_ranks, strict=True)
        ]
        check(cu, parts, *wholes)


@pytest.mark.slow
@pytest.mark.parametrize("split", [(2, 1), (1, 2), (2, 2), (7, 1), (4, 2)], ids=str)
def test_processes(split):
    run(split[0] * split[1], attention_on, *split, [60, 3, 0, 41, 1], torch.initial_seed())


def groups_on(process, ulysses, ring):
    """On a rank of a gloo group: the groups are those of the layout."""
    sp_group, layout = SequenceParallel.of(process, ulysses, ring), RankLayout(process.world_size, ulysses, ring)
    assert (sp_group.rank, sp_group.size) == (process.rank % layout.sp_size, layout.sp_size)
    first = process.rank - sp_group.rank
    wanted = {"ulysses": layout.ulysses_groups(), "ring": layout.ring_groups()}
    wanted["all"] = [list(range(first, first + layout.sp_size))]
    for name, groups in wanted.items():
        members = getattr(sp_group, name).gather_objects(process.rank)
        assert members in groups
        assert members[getattr(sp_group, name).rank] == process.rank


def test_groups_beside_data_parallel_ranks():
    run(4, groups_on, 2, 1)


def test_groups_of_threads():
    sp_groups, layout = SequenceParallel.virtual(2, 3), RankLayout(6, 2, 3)

    def work(rank):
        mine = sp_groups[rank]
        assert (mine.rank, mine.size) == (rank, 6)
        return [comm.gather_objects(rank) for comm in (mine.ulysses, mine.ring, mine.all)]

    for ulysses, ring, everyone in in_threads(work, 6):
        assert ulysses in layout.ulysses_groups()
        assert ring in layout.ring_groups()
        assert everyone == list(range(6))


def test_ranks_with_another_plan_are_named_on_every_rank():
    comms = virtual_group(3)
    plans = [make_plan([0, 5], ring=ring).digest() for ring in (1, 2, 1)]

    def work(rank):
        agree(comms[rank], {"the batch": "same"})
        with pytest.raises(ValueError, match="the plan of rank 1 of the group differ from those of rank 0"):
            agree(comms[rank], {"the batch": "same", "the plan": plans[rank]})
        return True

    assert all(in_threads(work, 3))


def test_tensors_that_are_not_the_plans():
    sp_group = SequenceParallel.virtual(1, 1)[0]
    plan = make_plan([0, 8], heads=4, kv_heads=2, head_dim=8)
    q, k, v, _ = qkv(8, 4, 2)
    with pytest.raises(ValueError, match=r"rank 0: q, k, v are \(7, 4, 8\)"):
        sp_attention(q[:7], k, v, plan, sp_group)
    with pytest.raises(ValueError, match="transport 'pigeon'"):
        sp_attention(q, k, v, plan, sp_group, transport="pigeon")


def test_positions_without_frequencies():
    q, k, v, _ = qkv(8, 4, 2)
    for ulysses in (1, 2):
        plan = make_plan([0, 8], ulysses=ulysses, heads=4, kv_heads=2, head_dim=8)
        sp_group, tokens = SequenceParallel.virtual(ulysses, 1)[0], plan.tokens(0)
        with pytest.raises(ValueError, match="rank 0: positions and inv_freq go together"):
            sp_attention(q[tokens], k[tokens], v[tokens], plan, sp_group, positions=tokens.float())
