"""Launch configurations of pool_norm, by the width of a row."""

from afn_kernels._rows import RowLaunch

ROWS = (
    # At 1280, 4 warps issue 1.5 to 1.8 times the instructions: a padded second 1024, and phases made twice.
    (1536, RowLaunch(warps=2, waves=6, reason="20 elements a thread at 1280; by instruction count, not timed")),
    (2048, RowLaunch(warps=4, waves=4, reason="16 a thread; by register count, not timed")),
    (4096, RowLaunch(warps=8, waves=2, reason="16 a thread; by register count, not timed")),
    (8192, RowLaunch(warps=16, waves=1, reason="16 a thread; by register count, not timed")),
    (32768, RowLaunch(warps=32, waves=1, reason="the widest program; by register count, not timed")),
)
