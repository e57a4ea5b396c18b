import itertools

import pytest
from afn_distributed import RankLayout


def test_the_papers_example():
    layout = RankLayout(world_size=16, ulysses=4, ring=2)
    assert layout.ulysses_groups()[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert layout.ring_groups()[:5] == [[0, 4], [1, 5], [2, 6], [3, 7], [8, 12]]
    assert layout.data_groups()[:2] == [[0, 8], [1, 9]]


@pytest.mark.parametrize(("ulysses", "ring", "data"), list(itertools.product((1, 2, 7), (1, 3), (1, 4))))
def test_every_rank_is_in_one_group_of_each_kind(ulysses, ring, data):
    layout = RankLayout(ulysses * ring * data, ulysses, ring)
    for groups, size in (
        (layout.ulysses_groups(), ulysses),
        (layout.ring_groups(), ring),
        (layout.data_groups(), data),
    ):
        assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))
        assert {len(group) for group in groups} == {size}


def test_groups_of_different_kinds_share_one_rank():
    layout = RankLayout(24, ulysses=2, ring=3)
    for a, b in itertools.combinations((layout.ulysses_groups(), layout.ring_groups(), layout.data_groups()), 2):
        assert all(len(set(x) & set(y)) <= 1 for x in a for y in b)


@pytest.mark.parametrize("sizes", [(8, 3, 1), (8, 0, 1), (0, 1, 1), (8, 4, 4)])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match=str(sizes[0])):
        RankLayout(*sizes)
