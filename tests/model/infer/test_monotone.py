"""Monotone paths against all paths, and medians against sorted neighbours."""

import numpy as np
import pytest
import torch

from afn_model.infer.monotone import median_filter, warp


def least(cost, rows, columns):
    """The least sum over all monotone paths, cell by cell."""
    table = np.full((rows, columns), np.inf)
    for i in range(rows):
        for j in range(columns):
            ways = [table[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
            table[i, j] = cost[i, j] + min(ways, default=0.0)
    return table[-1, -1]


@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (4, 9), (6, 3), (5, 1), (7, 40)])
def test_no_path_is_cheaper(rows, columns):
    cost = np.random.default_rng(rows).normal(size=(rows, columns))
    starts = warp(cost)
    assert starts[0] == 0
    assert (np.diff(starts) >= 0).all()
    # A row goes on up to the column before the next one begins, or shares that column with it.
    sums = {0.0}
    for row, last in enumerate([*starts[1:], columns]):
        ends = {last, last + 1} if row < rows - 1 else {last}
        sums = {total + cost[row, starts[row] : end].sum() for total in sums for end in ends if end > starts[row]}
    assert min(abs(total - least(cost, rows, columns)) for total in sums) < 1e-9


def test_a_clear_diagonal_is_found():
    cost = np.ones((4, 20))
    for row, (first, last) in enumerate([(0, 3), (3, 9), (9, 10), (10, 20)]):
        cost[row, first:last] = -1
    assert warp(cost).tolist() == [0, 3, 9, 10]
    late = np.concatenate((np.ones((4, 6)), cost), 1)
    assert warp(late).tolist() == [0, 9, 15, 16]
    assert warp(late, open_begin=True).tolist() == [6, 9, 15, 16]


@pytest.mark.parametrize("cost", [np.zeros((0, 3)), np.zeros(3), np.full((2, 2), np.nan)])
def test_what_cannot_be_warped(cost):
    with pytest.raises(ValueError, match="finite matrix"):
        warp(cost)


def test_medians():
    rows = torch.randn(3, 30, generator=torch.Generator().manual_seed(0))
    mirrored = torch.nn.functional.pad(rows[None], (3, 3), mode="reflect")[0]
    assert torch.equal(median_filter(rows, 7), mirrored.unfold(1, 7, 1).median(-1).values)
    assert torch.equal(median_filter(rows[:, :3], 7), rows[:, :3])
    with pytest.raises(ValueError, match="odd"):
        median_filter(rows, 4)
