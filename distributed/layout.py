"""Which ranks form Ulysses, ring and data-parallel groups."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RankLayout:
    """Hybrid sequence parallelism over P = ``ulysses`` · ``ring`` ranks, data parallelism over the rest.

    rank = d · P + r · ulysses + u. A Ulysses group is ``ulysses`` consecutive ranks (one node), a ring group has stride
    ``ulysses`` (across nodes), a data-parallel group has stride P.

    Args:
        world_size: number of ranks.
        ulysses: ranks that exchange heads for sequence by all-to-all.
        ring: ranks that exchange keys and values.

    Raises:
        ValueError: a size below 1, or a world size that P does not divide.
    """

    world_size: int
    ulysses: int = 1
    ring: int = 1

    def __post_init__(self):
        if min(self.world_size, self.ulysses, self.ring) < 1 or self.world_size % self.sp_size:
            sizes = f"ulysses {self.ulysses} x ring {self.ring}"
            raise ValueError(f"{self.world_size} ranks cannot be cut into {sizes} groups")

    @property
    def sp_size(self) -> int:
        """P, the ranks that share one sequence."""
        return self.ulysses * self.ring

    @property
    def dp_size(self) -> int:
        """Number of sequence-parallel groups, which are data parallel."""
        return self.world_size // self.sp_size

    def ulysses_groups(self) -> list[list[int]]:
        """Ranks of each Ulysses group."""
        return [list(range(first, first + self.ulysses)) for first in range(0, self.world_size, self.ulysses)]

    def ring_groups(self) -> list[list[int]]:
        """Ranks of each ring group."""
        return [
            list(range(first + u, first + self.sp_size, self.ulysses))
            for first in range(0, self.world_size, self.sp_size)
            for u in range(self.ulysses)
        ]

    def data_groups(self) -> list[list[int]]:
        """Ranks of each data-parallel group."""
        return [list(range(first, self.world_size, self.sp_size)) for first in range(self.sp_size)]
