"""Launch configurations of swiglu, by the width of a row."""

from afn_kernels._rows import GatedTile

ROWS = (
    (64, GatedTile(64, 64, 8, "the same 16 elements a thread on narrow rows; not timed")),
    (2**62, GatedTile(8, 512, 8, "16 elements a thread, two 16-byte loads per tensor; 512 divides 18944; not timed")),
)

# Of a program that quantises a row or a part of one: 8 to 32 elements a thread of two inputs; by register count, not
# timed. What shares a scale decides how long a part may be; with 2048 several programs fit a multiprocessor.
FP8_PART = 2048
FP8_WARPS = ((1024, 4), (4096, 8), (8192, 16), (65536, 32))
