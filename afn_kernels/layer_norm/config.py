"""Launch configurations of layer_norm, by the width of a row."""

from afn_kernels._rows import RowLaunch

ROWS = (
    (
        2048,
        RowLaunch(
            warps=4,
            waves=4,
            forward=1,
            reason="forward: a warp a row, 28 rows at a time and no barrier; backward: 109 registers, 4 fit; not timed",
        ),
    ),
    (4096, RowLaunch(warps=8, waves=2, reason="16 a thread, two sums live in the backward; not timed")),
    (8192, RowLaunch(warps=16, waves=1, reason="16 a thread; by register count, not timed")),
    (32768, RowLaunch(warps=32, waves=1, reason="the widest program; by register count, not timed")),
)
