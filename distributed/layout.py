"""Which ranks work together on one sequence: Ulysses groups, ring groups and data-parallel groups."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Hybrid sequence parallelism over P = ``ulysses`` · ``ring`` ranks, data parallel over the rest.

    Ulysses groups are ``ulysses`` consecutive ranks (one node), ring groups have stride ``ulysses`` (across nodes),
    data-parallel groups have stride P.

    Args:
        world: number of ranks.
        ulysses: ranks that exchange heads for sequence by all-to-all.
        ring: ranks that pass K/V blocks around.

    Raises:
        ValueError: a size below 1, or a world that P does not divide.
    """

    world: int
    ulysses: int = 1
    ring: int = 1

    def __post_init__(self):
        if min(self.world, self.ulysses, self.ring) < 1 or self.world % self.sequence:
            raise ValueError(f"{self.world} ranks cannot be cut into ulysses {self.ulysses} x ring {self.ring} groups")

    @property
    def sequence(self) -> int:
        """P, the ranks that share one sequence."""
        return self.ulysses * self.ring

    def ulysses_groups(self) -> list[list[int]]:
        return [list(range(first, first + self.ulysses)) for first in range(0, self.world, self.ulysses)]

    def ring_groups(self) -> list[list[int]]:
        return [
            list(range(first + u, first + self.sequence, self.ulysses))
            for first in range(0, self.world, self.sequence)
            for u in range(self.ulysses)
        ]

    def data_groups(self) -> list[list[int]]:
        return [list(range(first, self.world, self.sequence)) for first in range(self.sequence)]
