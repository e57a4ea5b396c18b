"""Work that any rank may do, dealt evenly, and its results sent to the ranks that want them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from afn_distributed.comm import Comm
from afn_distributed.ulysses import all_to_all


def deal(costs: Sequence[float], ranks: int) -> np.ndarray:
    """The rank that does each piece of work, [pieces] int64: the dearest first, to the rank that has least."""
    heap, owner = [(0.0, rank) for rank in range(ranks)], np.zeros(len(costs), np.int64)
    for piece in np.argsort(-np.asarray(costs, float), kind="stable").tolist():
        load, rank = heap[0]
        owner[piece] = rank
        heapq.heapreplace(heap, (load + costs[piece], rank))
    return owner


@dataclass(frozen=True)
class Routes:
    """Rows of all ranks, from the ranks that make them to the ranks that hold their places.

    Args:
        sends: for each rank the rows, counted among those made here, that go to it.
        receives: for each rank how many rows come from it.
        order: [rows held here] where each of them is in what comes, rank after rank.
    """

    sends: tuple[Tensor, ...]
    receives: tuple[int, ...]
    order: Tensor

    @staticmethod
    def of(maker: np.ndarray, holder: np.ndarray, rank: int, ranks: int) -> Routes:
        """The routes of rows in one order that all ranks share.

        Args:
            maker, holder: [rows] the rank that makes each, and the rank that wants it; a rank makes its rows, and wants
                them, in the order given here.
            rank, ranks: this rank, and how many there are.
        """
        makes, holds = np.flatnonzero(maker == rank), np.flatnonzero(holder == rank)
        sends = tuple(torch.from_numpy(np.flatnonzero(holder[makes] == peer)) for peer in range(ranks))
        comes = [np.flatnonzero(maker[holds] == peer) for peer in range(ranks)]
        order = torch.from_numpy(np.argsort(np.concatenate(comes)))
        return Routes(sends, tuple(map(len, comes)), order)


def route(x: Tensor, routes: Routes, comm: Comm) -> Tensor:
    """Rows made here [made, ...] to the rows wanted here [wanted, ...]; gradients return the same way."""
    each = math.prod(x.shape[1:])
    sizes, wanted = [len(rows) * each for rows in routes.sends], [count * each for count in routes.receives]
    came = all_to_all(comm, x[torch.cat(routes.sends).to(x.device)].reshape(-1), sizes, wanted)
    return came.view(len(routes.order), *x.shape[1:])[routes.order.to(x.device)]
