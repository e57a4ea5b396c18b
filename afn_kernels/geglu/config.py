"""Launch configurations of geglu, by the width of a row."""

from afn_kernels._rows import GatedTile

ROWS = (
    (64, GatedTile(64, 64, 8, "the same 16 elements a thread on narrow rows; not timed")),
    (2**62, GatedTile(8, 512, 8, "16 elements a thread, two 16-byte loads per tensor; 512 divides 14336; not timed")),
)
