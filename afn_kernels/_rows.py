"""[..., D] as the rows [T, D] that a kernel walks, and how its launch is chosen by their width."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowLaunch:
    """How one row is spread: ``warps`` per program; ``waves`` persistent programs per multiprocessor (backward).

    ``forward``: warps of the forward, where they are others. ``wide``: waves beside a float32 residual stream, whose
    rows take more registers. As many waves as are resident at once: one more makes a tail.
    """

    warps: int
    waves: int
    reason: str
    forward: int | None = None
    wide: int | None = None

    def programs(self, stream: torch.dtype, multiprocessors: int) -> int:
        """Persistent programs of the backward with a residual stream of this dtype."""
        return multiprocessors * (self.wide if self.wide and stream == torch.float32 else self.waves)


@dataclass(frozen=True)
class GatedTile:
    """What one program of a gated activation computes: ``rows`` x ``columns`` elements on ``warps`` warps."""

    rows: int
    columns: int
    warps: int
    reason: str


def choose(rows: tuple[tuple, ...], *sizes: int):
    """The configuration of the first row (limit, …, configuration) whose limits hold the sizes."""
    return next(found for *limits, found in rows if all(size <= most for size, most in zip(sizes, limits, strict=True)))


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x [..., D] as [T, D] with adjacent elements within a row; rows may be any distance apart. Copies if it must."""
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
