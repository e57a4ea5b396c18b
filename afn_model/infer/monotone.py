"""Which columns of a matrix belong to which row, where both only go forward: dynamic time warping, median filter."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def warp(cost: np.ndarray, *, open_begin: bool = False) -> np.ndarray:
    """The column in which each row begins on the cheapest path from the first cell to the last.

    A path goes on by one column, one row, or both: c[i, j] = cost[i, j] + min(c[i-1, j-1], c[i-1, j], c[i, j-1]). A row
    is computed at once: with S_j the sum of its costs up to j and e_j = min(c[i-1, j-1], c[i-1, j]),
    c[i, j] = S_j + min over k <= j of (e_k - S_{k-1}).

    Args:
        cost: [rows, columns], finite.
        open_begin: the path may begin in any column of the first row, and what is before that costs nothing.

    Returns:
        [rows] int64, never falling.

    Raises:
        ValueError: no matrix with rows and columns, or a cost that is no number.

    Source: Sakoe and Chiba, 1978, doi:10.1109/TASSP.1978.1163055; open ends: Müller, 2007, Information Retrieval for
    Music and Motion, section 4.4.
    """
    if cost.ndim != 2 or not cost.size or not np.isfinite(cost).all():
        raise ValueError(f"a cost to warp must be a finite matrix with rows and columns, got {list(cost.shape)}")
    rows, columns = cost.shape
    sums = np.cumsum(cost.astype(np.float64), 1)
    before = np.pad(sums[:, :-1], ((0, 0), (1, 0)))
    entry = np.empty((rows, columns), dtype=np.int64)  # where the path through a cell has entered its row
    diagonal = np.zeros((rows, columns), dtype=bool)
    places = np.arange(columns)
    reached = np.full(columns, np.inf)
    for row in range(rows):
        shifted = np.append(np.inf if row else 0.0, reached[:-1])  # the first row is entered in the first column alone,
        if not row and open_begin:
            shifted = np.zeros(columns)  # or in any
        diagonal[row] = shifted <= reached
        ways = np.minimum(shifted, reached) - before[row]
        best = np.minimum.accumulate(ways)
        fresh = np.append(True, ways[1:] < best[:-1])
        entry[row] = np.maximum.accumulate(np.where(fresh, places, 0))
        reached = sums[row] + best
    starts, column = np.empty(rows, dtype=np.int64), columns - 1
    for row in range(rows - 1, -1, -1):
        starts[row] = entry[row, column]
        column = starts[row] - diagonal[row, starts[row]]
    return starts


def median_filter(rows: Tensor, width: int) -> Tensor:
    """The median of ``width`` neighbours along the last dimension, mirrored at both ends; rows of width // 2 or less
    stay as they are.

    The neighbours are sorted by exchanges of whole matrices, which is faster than a sort of each.

    Args:
        rows: [R, n].
        width: odd.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"a median needs an odd number of neighbours, got {width}")
    half, count = width // 2, rows.shape[-1]
    if count <= half:
        return rows
    padded = F.pad(rows[None], (half, half), mode="reflect")[0]
    taps = [padded[:, place : place + count] for place in range(width)]
    for turn in range(width):
        for place in range(turn % 2, width - 1, 2):
            low, high = taps[place : place + 2]
            taps[place : place + 2] = torch.minimum(low, high), torch.maximum(low, high)
    return taps[half]
