"""Launch configurations of istft, by hop."""

from dataclasses import dataclass

from afn_kernels import _rows


@dataclass(frozen=True)
class InverseTile:
    """``frames`` x ``samples`` outputs of a program on ``warps`` warps, ``bins`` numbers of the spectra at a time."""

    frames: int
    samples: int
    bins: int
    warps: int
    reason: str


def choose(hop: int) -> InverseTile:
    """The tile for frames of ``hop`` new samples."""
    return _rows.choose(ROWS, hop)


ROWS = (
    (16, InverseTile(128, 16, 16, 4, "16 sums a thread; float32 products need no matrix unit; not timed")),
    (2**62, InverseTile(64, 64, 16, 8, "16 sums a thread; not timed")),
)
