"""Balanced assignment against the optimum, and rows that are dispatched to other ranks and back with gradients."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from afn_distributed.comm import GroupComm, in_threads, virtual_group
from afn_distributed.dispatch import DispatchPlan, assign_balanced, dispatch

from tests.distributed.ranks import run


def loads(costs, assigned, ranks) -> np.ndarray:
    return np.bincount(assigned, weights=costs, minlength=ranks)


def smallest_maximum(costs, ranks) -> float:
    """The smallest largest load of all assignments."""
    everything = itertools.product(range(ranks), repeat=len(costs))
    return min(loads(costs, np.array(assigned, int), ranks).max() for assigned in everything)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_largest_load_is_within_grahams_bound(ranks):
    random, bound = np.random.default_rng(ranks), 4 / 3 - 1 / (3 * ranks)
    for _ in range(25):
        costs = random.integers(1, 20, random.integers(1, 8)).astype(float)
        found = loads(costs, assign_balanced(costs, ranks), ranks).max()
        assert found <= bound * smallest_maximum(costs, ranks) + 1e-9, costs


def test_the_bound_is_reached():
    costs = [3.0, 3.0, 2.0, 2.0, 2.0]
    assert loads(costs, assign_balanced(costs, 2), 2).max() == 7
    assert smallest_maximum(costs, 2) == 6


def test_assignments_by_hand():
    assert assign_balanced([1, 5, 1, 1, 1, 1], 2).tolist() == [1, 0, 1, 1, 1, 1]
    assert assign_balanced([4, 4, 4], 5).tolist() == [0, 1, 2]
    assert assign_balanced([], 3).tolist() == []


def test_a_plan_by_hand():
    """Rows 0 .. 4 are on ranks 0 1 0 1 1 and go to ranks 1 1 0 0 1."""
    src_rank, dst_rank = np.array([0, 1, 0, 1, 1]), np.array([1, 1, 0, 0, 1])
    first, second = (DispatchPlan.of(src_rank, dst_rank, rank, 2) for rank in range(2))
    # Rank 0 has rows 0 and 2, rank 1 has rows 1, 3 and 4: indices count among those.
    assert [rows.tolist() for rows in first.send_rows] == [[1], [0]]
    assert [rows.tolist() for rows in second.send_rows] == [[1], [0, 2]]
    assert (first.receive_counts, second.receive_counts) == ((1, 1), (1, 2))
    assert first.order.tolist() == [0, 1]
    assert second.order.tolist() == [0, 1, 2]


def test_the_order_undoes_the_sorting_by_source():
    """Rank 0 needs rows 0, 1, 2 of ranks 1, 0, 1: they arrive as 1, 0, 2."""
    plan = DispatchPlan.of(np.array([1, 0, 1]), np.zeros(3, int), 0, 2)
    assert plan.receive_counts == (1, 2)
    assert plan.order.tolist() == [1, 0, 2]


def round_trip(comm, src_rank, dst_rank) -> None:
    """Rows to where they are needed and back; every row's gradient is the weight that it had there."""
    rank, ranks, total = comm.rank, comm.size, len(src_rank)
    values = torch.randn(total, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(total, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine, needed = (torch.from_numpy(np.flatnonzero(where == rank)) for where in (src_rank, dst_rank))
    x = values[mine].clone().requires_grad_()
    there = dispatch(x, DispatchPlan.of(src_rank, dst_rank, rank, ranks), comm)
    assert torch.equal(there, values[needed])
    back = dispatch(there * weights[needed], DispatchPlan.of(dst_rank, src_rank, rank, ranks), comm)
    assert torch.equal(back, (values * weights)[mine])
    (back * values[mine]).sum().backward()
    assert torch.equal(x.grad, (weights * values)[mine])


def placements(ranks, rows=40):
    random = np.random.default_rng(rows)
    yield random.integers(0, ranks, rows), random.integers(0, ranks, rows)
    # A rank that has nothing, and one that needs nothing.
    yield random.integers(1, ranks, rows), random.integers(0, ranks - 1, rows)
    yield np.zeros(0, int), np.zeros(0, int)


@pytest.mark.parametrize("ranks", [2, 5])
def test_there_and_back_between_threads(ranks):
    for src_rank, dst_rank in placements(ranks):
        comms = virtual_group(ranks)
        in_threads(lambda rank, s=src_rank, d=dst_rank, comms=comms: round_trip(comms[rank], s, d), ranks)


def there_and_back(process):
    for src_rank, dst_rank in placements(process.world_size):
        round_trip(GroupComm(dist.group.WORLD), src_rank, dst_rank)


def test_there_and_back_between_processes():
    run(3, there_and_back)
