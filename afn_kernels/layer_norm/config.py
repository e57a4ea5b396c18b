"""Launch configurations of layer_norm, by the width of a row."""

from afn_kernels._rows import RowLaunch

ROWS = (
    (
        2048,
        RowLaunch(warps=4, waves=4, reason="10 elements a thread at 1280; 109 registers let 4 programs fit; not timed"),
    ),
    (4096, RowLaunch(warps=8, waves=2, reason="16 a thread, two sums live in the backward; not timed")),
    (8192, RowLaunch(warps=16, waves=1, reason="16 a thread; by register count, not timed")),
    (32768, RowLaunch(warps=32, waves=1, reason="the widest program; by register count, not timed")),
)
