"""One launch of persistent blocks, each with an equal share of all keys: csrc/include/afn/decode_attention.cuh."""

from functools import lru_cache

import torch

from afn_kernels import _cuda, _triton
from afn_kernels._counters import counters
from afn_kernels._fp8_scales import FP8, count
from afn_kernels.attention.window import UNLIMITED
from afn_kernels.decode_attention.arguments import fitting_split
from afn_kernels.decode_attention.config import HEAD_DIMS, least_tiles

LOG2E = 1.4426950408889634
RUN = 16  # keys that are not divided
KERNELS = {
    (query, fp8, width): _cuda.Kernel(
        "decode_attention" if width == 128 else f"decode_attention_{width}",
        f"decode_attention_{query}{'_fp8' if fp8 else ''}_{width}",
        "PPPPPPPPPPqqqqqqqqqqqiiiiiiiiiiiiifff",
        256,
    )
    for query in ("bfloat16", "float16")
    for fp8 in (False, True)
    for width in HEAD_DIMS
}


@lru_cache
def sizes(width: int, fp8: bool) -> tuple[int, int]:
    """Keys of a tile, and bytes of shared memory: three tiles of keys and values, 64 queries and some numbers."""
    row = width * (1 if fp8 else 2)
    keys = min(256, 32768 >> (row - 1).bit_length())
    warps = 8 if width <= 128 else 4
    stage = max(2 * keys * _spread(row), 16 * warps * _spread(4 * width))
    return keys, 3 * stage + 64 * _spread(2 * width) + 64 * 4 + 128 * 8 + 8


def _spread(row: int) -> int:
    """Bytes between rows in shared memory: an odd multiple of 16 unless it is one of 128."""
    return row if row % 128 == 0 else (row // 16 | 1) * 16


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    split: int,
    left: int,
    softcap: float,
    scale: float,
) -> torch.Tensor:
    """[B, n, Hq, D], contiguous. The last axes of q, the caches and the table are contiguous."""
    batch, new, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    kv_heads, page = k_cache.shape[2:0:-1]
    capacity = page * (1 if block_table is None else block_table.shape[1])
    if not out.numel() or not capacity:
        return out.zero_()
    if (k_cache.data_ptr() | v_cache.data_ptr()) % 16:
        raise ValueError("decode_attention: a cache begins at no multiple of 16 bytes")
    fp8, rows, blocks = k_cache.dtype == FP8, new * heads // kv_heads, _triton.programs(q.device)
    keys, shared = sizes(width, fp8)
    split = fitting_split(split, capacity)
    if split:
        longest = capacity if left < 0 else min(capacity, left + new)
        stored = batch * kv_heads * max(1, -(-longest // split))
        blocks = min(blocks, stored)
    else:
        stored = 2 * blocks
    parts = torch.empty(stored * rows * (width + 2), dtype=torch.float32, device=q.device)
    KERNELS[str(q.dtype).removeprefix("torch."), fp8, width].launch(
        (blocks, 1), shared, q.device,
        q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), lengths.data_ptr(), _cuda.pointer(block_table),
        _cuda.pointer(k_scale), _cuda.pointer(v_scale), out.data_ptr(), parts.data_ptr(),
        counters(batch * kv_heads, q.device).data_ptr(), *_strides(q), *_strides(k_cache), *_strides(v_cache),
        0 if block_table is None else block_table.stride(0), stored,
        batch, capacity, kv_heads, heads // kv_heads, new, page, 0 if split else least_tiles(rows) * keys // RUN,
        lengths.dtype == torch.int64, block_table is not None and block_table.dtype == torch.int64,
        count(k_scale), count(v_scale), split // RUN, UNLIMITED if left < 0 else left,
        scale * LOG2E, softcap * LOG2E, 2 / softcap if softcap else 0.0,
    )  # fmt: skip
    return out


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    """In bytes, of all axes but the last."""
    a, b, c, _ = x.stride()
    size = x.element_size()
    return a * size, b * size, c * size
