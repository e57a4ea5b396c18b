"""The order of samples: a function of seed and index, every record as often as its weight says."""

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afn_model.data.order import Draw, Order, Source, permute


@given(count=st.integers(1, 2000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_hits_everything_once(count, key):
    assert sorted(permute(i, count, key) for i in range(count)) == list(range(count))


def test_a_permutation_looks_random():
    """Neighbours land apart, keys differ, and no record is tied to a place: χ² over 20 bins of 4,000 keys."""
    count = 1000
    first = [permute(7, count, key) for key in range(4000)]
    bins = Counter(x * 20 // count for x in first)
    assert sum((bins[b] - 200) ** 2 / 200 for b in range(20)) < 45  # 19 degrees of freedom: p < 0.001
    near = sum(abs(permute(i, count, 1) - permute(i + 1, count, 1)) < 10 for i in range(count - 1))
    assert near < 60  # 19 expected


def test_known_values():
    """The stream of a seed may never change: a run that resumes must go on with the samples it would have seen."""
    order = Order((Source("a", 10), Source("b", 7, 0.5)), seed=3)
    assert [order[i] for i in (0, 1, 14, 1000)] == [Draw(0, 4, 0), Draw(0, 7, 0), Draw(1, 0, 1), Draw(0, 5, 71)]


def test_weights_count_visits():
    order = Order((Source("thrice", 50, 3.0), Source("half", 40, 0.5), Source("and a bit", 8, 1.25)), seed=1)
    assert len(order) == 150 + 20 + 10
    for epoch in range(4):
        draws = [order[epoch * len(order) + i] for i in range(len(order))]
        seen = Counter((draw.source, draw.record) for draw in draws)
        assert {seen[0, r] for r in range(50)} == {3}
        assert sum(seen[1, r] for r in range(40)) == 20
        assert max(seen[1, r] for r in range(40)) == 1
    everything = Counter((d.source, d.record) for d in map(order.__getitem__, range(4 * len(order))))
    assert {everything[1, r] for r in range(40)} == {2}, "four halves are two whole visits"
    assert {everything[2, r] for r in range(8)} == {5}


def test_epochs_and_seeds_differ():
    order, other = (Order((Source("a", 100),), seed) for seed in (0, 1))
    epochs = [[order[e * 100 + i].record for i in range(100)] for e in range(2)]
    assert epochs[0] != epochs[1] != [other[i].record for i in range(100)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(100))


def test_a_hundred_million_records_cost_nothing():
    start = time.perf_counter()
    order = Order((Source("large", 10**8, 0.7), Source("small", 1000, 20.0)), seed=5)
    draws = [order[i * 9973] for i in range(1000)]
    per_sample = (time.perf_counter() - start) / 1000
    assert len({draw.record for draw in draws if draw.source == 0}) > 990
    assert per_sample < 200e-6, "50 µs on a quiet machine"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Order((), 0), "no samples"),
        (lambda: Order((Source("a", 3, 0.1),), 0), "no samples"),
        (lambda: Order((Source("a", 3), Source("a", 4)), 0), "twice"),
        (lambda: Source("a", 0), "0 records"),
        (lambda: Source("a", 3, -1.0), "weight -1.0"),
        (lambda: Source("a", 3, float("nan")), "weight nan"),
        (lambda: permute(3, 3, 0), "outside 0..2"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(IndexError):
        Order((Source("a", 3),), 0)[-1]
