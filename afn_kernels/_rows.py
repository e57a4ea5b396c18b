"""[..., D] as the rows [T, D] that a kernel walks, and how a program spreads one row."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """How one row is spread: ``warps`` per program; ``waves`` persistent programs per multiprocessor (backward)."""

    warps: int
    waves: int
    reason: str


def choose(rows: tuple[tuple[int, Config], ...], width: int) -> Config:
    """The configuration for rows of ``width`` elements, of a table by largest width."""
    return next(config for limit, config in rows if width <= limit)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x [..., D] as [T, D] with adjacent elements within a row; rows may be any distance apart. Copies if it must."""
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
