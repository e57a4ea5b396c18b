"""Plans: every pair of a query and a key once, work and tokens even, quick to make."""

import itertools
import time

import numpy as np
import pytest
import torch
from afn_distributed.plan import SCHEMES, make_plan, split_heads

from bench.packing import mix


def boundaries(lengths):
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def pairs_of(plan) -> np.ndarray:
    """How often each query of the batch meets each key, by walking through all exchanges."""
    found = np.zeros((plan.total, plan.total), int)
    for rank, source in itertools.product(range(plan.ring), repeat=2):
        exchange = plan.exchange(rank, source)
        if exchange is None:
            continue
        queries, keys = plan.shard(rank), plan.shard(source)[exchange.rows.numpy()]
        cu_q, cu_k = exchange.cu_q.tolist(), exchange.cu_k.tolist()
        assert (cu_q[-1], cu_k[-1]) == (len(queries), len(keys))
        before = found.sum()
        for q0, q1, k0, k1 in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
            seen = np.tri(q1 - q0, k1 - k0, dtype=int) if rank == source else np.ones((q1 - q0, k1 - k0), int)
            found[np.ix_(queries[q0:q1], keys[k0:k1])] += seen
        assert found.sum() - before == exchange.pairs
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_query_meets_each_of_its_keys_once(scheme):
    random = np.random.default_rng(0)
    for _ in range(40):
        count = random.integers(0, 9)
        lengths = random.integers(0, 40, count) * random.integers(0, 2, count)
        plan = make_plan(
            boundaries(lengths), ulysses=int(random.integers(1, 29)), ring=int(random.integers(1, 9)), scheme=scheme
        )
        document = np.repeat(np.arange(count), lengths)
        token = np.arange(plan.total)
        wanted = (document[:, None] == document) & (token[:, None] >= token)
        assert np.array_equal(pairs_of(plan), wanted), (lengths, plan)
        held = torch.cat([plan.tokens(rank) for rank in range(plan.ranks)])
        assert sorted(held.tolist()) == token.tolist()
        assert np.array_equal(plan.rank_of_token()[held.numpy()], np.repeat(np.arange(plan.ranks), parts(plan)))
        assert plan.work.sum() == 28 * wanted.sum()


def parts(plan):
    return [plan.part_rows(rank) for rank in range(plan.ranks)]


@pytest.mark.parametrize("lengths", [[1], [5], [1] * 3, [0, 0, 7, 0], [130], []])
def test_more_ranks_than_tokens_or_documents(lengths):
    for scheme in SCHEMES:
        plan = make_plan(boundaries(lengths), ulysses=3, ring=4, scheme=scheme)
        assert sum(parts(plan)) == sum(lengths)
        assert str(plan)


@pytest.mark.parametrize("heads", [(28, 4), (32, 8), (16, 16), (7, 1)])
def test_every_query_head_is_with_its_kv_head(heads):
    total, kv_heads = heads
    for ranks in range(1, total + 1):
        found = split_heads(total, kv_heads, ranks)
        assert [h for part in found for h in part.q] == list(range(total))
        assert max(len(part.q) for part in found) - min(len(part.q) for part in found) <= 1
        for part in found:
            assert [part.kv[place] for place in part.reads] == [h // (total // kv_heads) for h in part.q]
            assert set(part.reads) == set(range(len(part.kv)))
    with pytest.raises(ValueError, match=f"over {total + 1} ranks"):
        split_heads(total, kv_heads, total + 1)


def batches(context: int, count: int):
    lengths = iter(mix(200 * count, context).tolist())
    for _ in range(count):
        documents, room = [], context
        for length in itertools.takewhile(lambda length: length <= room, lengths):  # noqa: B023
            documents.append(length)
            room -= length
        yield boundaries(documents)


@pytest.mark.parametrize(("ranks", "limit"), [(8, 1.05), (64, 1.10)])
@pytest.mark.parametrize("ulysses", [1, 2, 4])
def test_work_and_tokens_are_even_on_realistic_batches(ranks, limit, ulysses):
    for cu in batches(131_072, 12):
        work, tokens = make_plan(cu, ulysses=ulysses, ring=ranks // ulysses).imbalance()
        assert work <= limit
        assert tokens <= limit


def test_balanced_documents_move_less_than_all_of_them_cut():
    for cu in batches(131_072, 4):
        moved = [
            sum(len(x.rows) for r, s in itertools.permutations(range(8), 2) if (x := plan.exchange(r, s)) is not None)
            for plan in (make_plan(cu, ring=8, scheme=scheme) for scheme in ("balanced", "documents"))
        ]
        assert moved[0] < 0.8 * moved[1]


@pytest.mark.parametrize("ring", [2, 4, 7])
def test_tokens_that_do_not_divide_are_spread(ring):
    """Documents with a token more than their 2 · ring pieces: each rank gets that of its share of them."""
    plan = make_plan(boundaries([2 * ring + 1] * 700), ring=ring, scheme="documents")
    assert abs(plan.rows - (2 + 1 / ring) * 700).max() <= 2


def test_a_plan_of_a_thousand_documents_is_quick():
    """Deal and one rank's exchanges at 128 ranks, in processor time: below 2 ms, with room for a slow machine."""
    cu = boundaries(np.random.default_rng(0).integers(10, 250, 1000))
    spent = []
    for _ in range(7):
        start = time.process_time()
        plan = make_plan(cu, ulysses=4, ring=32)
        for source in range(32):
            plan.exchange(3, source)
        spent.append(time.process_time() - start)
    assert min(spent) < 6e-3


def test_plans_are_compared_by_what_they_hold():
    cu = boundaries([5, 9, 2])
    plan = make_plan(cu, ring=2)
    assert plan.digest() == make_plan(torch.from_numpy(cu), ring=2).digest()
    others = [make_plan(cu, ring=3), make_plan(cu, ulysses=2), make_plan(boundaries([5, 8, 3]), ring=2)]
    others.append(make_plan(cu, ring=2, scheme="contiguous"))
    assert plan.digest() not in {other.digest() for other in others}


@pytest.mark.parametrize(
    ("cu", "options", "message"),
    [
        ([0, 5, 3], {}, "do not rise from 0"),
        ([1, 5], {}, "do not rise from 0"),
        ([0, 5], {"scheme": "fair"}, "scheme 'fair' is none of balanced"),
        ([0, 5], {"ring": 0}, "ring 0"),
        ([0, 5], {"ulysses": 29}, "28 query and 4 KV heads cannot be split over 29 ranks"),
        ([0, 5], {"heads": 6}, "6 query and 4 KV heads"),
    ],
)
def test_bad_input(cu, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(cu, **options)
