"""CUDA graphs of decoding: one for each number of rows, replayed instead of launching every kernel anew."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SIZES = (1, 2, 4, *range(8, 257, 8))  # rows; a step with fewer is padded, one with more is not captured


@dataclass
class RowInputs:
    """What a forward pass of R rows reads, all on the device.

    Args:
        ids, slots: [R] int64, the tokens and the places of their keys and values; -1 writes nothing.
        positions: [R] float32.
        table: [R, pages] int32.
        lengths: [R] int32, at least 1.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    table: Tensor
    lengths: Tensor

    @staticmethod
    def empty(rows: int, pages: int, device: torch.device) -> RowInputs:
        """Rows that are nobody's."""
        return RowInputs(
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, dtype=torch.float32, device=device),
            torch.full((rows,), -1, dtype=torch.int64, device=device),
            torch.zeros(rows, pages, dtype=torch.int32, device=device),
            torch.ones(rows, dtype=torch.int32, device=device),
        )

    def fill(self, other: RowInputs) -> None:
        """Takes the rows of another one, which has fewer; those behind them are nobody's."""
        rows, pages = other.table.shape
        self.ids[:rows].copy_(other.ids)
        self.positions[:rows].copy_(other.positions)
        self.slots[:rows].copy_(other.slots)
        self.slots[rows:].fill_(-1)
        self.table[:rows, :pages].copy_(other.table)
        self.lengths[:rows].copy_(other.lengths)
        self.lengths[rows:].fill_(1)


@dataclass
class GraphCapture:
    """Captures CUDA graphs that share memory: they are replayed one after another, and only what they return stays.

    Attributes:
        pool: of their memory, that of the first one.
    """

    pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """A graph of a function without arguments: what replays it, and the tensor that every replay writes.

        Threads that write and read offloaded pages may use CUDA meanwhile. A capture that fails gives the stream back.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and workspaces allocated before they are captured
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        with torch.cuda.stream(here), torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            out = run()
        self.pool = graph.pool()
        return graph.replay, out


@dataclass
class RowGraphs:
    """Graphs of ``forward``, captured when a number of rows first comes.

    Where a capture fails, one warning says so; from then on nothing is captured, and what was is replayed.

    Args:
        forward: of rows to logits [R, vocabulary], without host synchronisation.
        pages: width of the tables.
        device: of the inputs.
        sizes: numbers of rows, ascending.
        record: captures; replaced in tests, where there is no GPU.

    Attributes:
        failed: whether a capture has.
    """

    forward: Callable[[RowInputs], Tensor]
    pages: int
    device: torch.device
    sizes: tuple[int, ...] = SIZES
    record: Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]] = field(default_factory=GraphCapture)
    graphs: dict[int, tuple[RowInputs, Callable[[], object], Tensor]] = field(default_factory=dict)
    failed: bool = False

    def __call__(self, rows: RowInputs) -> Tensor:
        """Logits [R, vocabulary], which the next call overwrites."""
        count = len(rows.ids)
        at = bisect_left(self.sizes, count)
        if at == len(self.sizes) or rows.table.shape[1] > self.pages:
            return self.forward(rows)
        size = self.sizes[at]
        if size not in self.graphs and not self.failed:
            self._capture(size)
        if size not in self.graphs:
            return self.forward(rows)
        inputs, replay, out = self.graphs[size]
        inputs.fill(rows)
        replay()
        return out[:count]

    def _capture(self, size: int) -> None:
        inputs = RowInputs.empty(size, self.pages, self.device)
        try:
            self.graphs[size] = (inputs, *self.record(lambda: self.forward(inputs)))
        except Exception as error:  # of the driver, of memory, of a kernel that cannot be captured
            self.failed = True
            why = str(error).partition("\n")[0]
            warnings.warn(f"no CUDA graph of {size} rows, decoding goes on without: {why}", stacklevel=2)
