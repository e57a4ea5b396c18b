"""Balanced assignment of independent jobs to ranks, and the all-to-all that takes their results to other ranks."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from afn_distributed.comm import Comm
from afn_distributed.ulysses import all_to_all
from torch import Tensor


def assign_balanced(costs: Sequence[float], ranks: int) -> np.ndarray:
    """Assigns jobs to ranks, longest processing time first: the most expensive one left to the least loaded rank.

    Largest load ≤ (4/3 − 1/(3 · ranks)) · the smallest largest load that any assignment has.

    Args:
        costs: [jobs] cost of each, in any unit.
        ranks: number of ranks.

    Returns:
        [jobs] int64, the rank of each.

    Source: Graham, 1969, Bounds on multiprocessing timing anomalies.
    """
    heap, assigned = [(0.0, rank) for rank in range(ranks)], np.zeros(len(costs), np.int64)
    for job in np.argsort(-np.asarray(costs, float), kind="stable").tolist():
        load, rank = heap[0]
        assigned[job] = rank
        heapq.heapreplace(heap, (load + costs[job], rank))
    return assigned


@dataclass(frozen=True)
class DispatchPlan:
    """Which rows a rank sends to which rank, and where the rows that it receives belong.

    Args:
        send_rows: for each rank, int64 indices of the local rows that go to it.
        receive_counts: for each rank, how many rows come from it.
        order: [received] int64, for each row of the result its place in the receive buffer, which is by source rank.
    """

    send_rows: tuple[Tensor, ...]
    receive_counts: tuple[int, ...]
    order: Tensor

    @staticmethod
    def of(src_rank: np.ndarray, dst_rank: np.ndarray, rank: int, ranks: int) -> DispatchPlan:
        """One rank's part of moving rows that are numbered alike on all ranks.

        Args:
            src_rank: [rows] the rank that has each row; it has its rows in ascending order.
            dst_rank: [rows] the rank that needs each row; it gets its rows in ascending order.
            rank: this rank.
            ranks: number of ranks.
        """
        sent, received = np.flatnonzero(src_rank == rank), np.flatnonzero(dst_rank == rank)
        send_rows = tuple(torch.from_numpy(np.flatnonzero(dst_rank[sent] == peer)) for peer in range(ranks))
        from_peers = [np.flatnonzero(src_rank[received] == peer) for peer in range(ranks)]
        order = torch.from_numpy(np.argsort(np.concatenate(from_peers)))
        return DispatchPlan(send_rows, tuple(map(len, from_peers)), order)


def dispatch(x: Tensor, plan: DispatchPlan, comm: Comm) -> Tensor:
    """Moves rows to the ranks that need them, in one all-to-all; gradients return the same way.

    Args:
        x: [sent, ...] this rank's rows.
        plan: of this rank.
        comm: the group of the plan's ranks.

    Returns:
        [received, ...] in the order of the rows' numbers.
    """
    row = math.prod(x.shape[1:])
    sizes, wanted = [len(rows) * row for rows in plan.send_rows], [count * row for count in plan.receive_counts]
    received = all_to_all(comm, x[torch.cat(plan.send_rows).to(x.device)].reshape(-1), sizes, wanted)
    return received.view(len(plan.order), *x.shape[1:])[plan.order.to(x.device)]
