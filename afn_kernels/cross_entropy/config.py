"""How the kernels of the losses walk over a row of logits."""

from dataclasses import dataclass

from afn_kernels import _rows


@dataclass(frozen=True)
class Walk:
    """How a program walks over a row of logits: ``block`` logits at a time."""

    block: int
    warps: int
    reason: str


WALKS = (
    (4096, Walk(block=4096, warps=8, reason="the row in one step; not timed")),
    (
        2**31,
        Walk(
            block=16384,
            warps=32,
            reason="16 logits a thread, one program per multiprocessor: 132 rows of 151,672 are 40 MB, so the second "
            "read of a row can come from the L2 cache; not timed",
        ),
    ),
)


OPTIONAL = Walk(
    block=8192, warps=32, reason="tanh and a second sum of 16 logits a thread do not fit 64 registers; not timed"
)


def walk(classes: int, *, plain: bool = True) -> Walk:
    """How to walk over rows of ``classes`` logits; ``plain`` without bias, smoothing and cap."""
    found = _rows.choose(WALKS, classes)
    return found if plain or found.block <= OPTIONAL.block else OPTIONAL
