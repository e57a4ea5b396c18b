"""Launch configurations of rms_norm, by the width of a row."""

from afn_kernels._rows import RowLaunch

ROWS = (
    (1024, RowLaunch(warps=4, waves=8, reason="8 elements a thread: one 16-byte load; by register count, not timed")),
    (
        4096,
        RowLaunch(
            warps=8, waves=3, wide=2, reason="16 a thread; 80 registers let 3 programs of the backward fit; not timed"
        ),
    ),
    (8192, RowLaunch(warps=16, waves=2, reason="16 a thread; by register count, not timed")),
    (65536, RowLaunch(warps=32, waves=1, reason="the widest program; by register count, not timed")),
)
