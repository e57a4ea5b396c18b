"""One launch of persistent blocks, each with an equal share of all keys: csrc/cuda/decode_attention.cu."""

import torch

from afn_kernels import _cuda, _triton
from afn_kernels._counters import counters
from afn_kernels._fp8_scales import FP8, count
from afn_kernels.decode_attention.config import least_tiles

LOG2E = 1.4426950408889634
RUN, SIDE = 16, 32768  # keys that are not divided; bytes of a tile's keys
# Three tiles of keys and values, the queries, a factor for each, maxima and sums of each warp's rows, an int.
SHARED = 3 * 2 * SIDE + 64 * 256 + 64 * 4 + 128 * 8 + 8
KERNELS = {
    (query, fp8): _cuda.Kernel(
        "decode_attention", f"decode_attention_{query}{'_fp8' if fp8 else ''}", "PPPPPPPPPPqqqqqqqqqqiiiiiiiiiiif", 256
    )
    for query in ("bfloat16", "float16")
    for fp8 in (False, True)
}


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """[B, n, Hq, 128], contiguous. The last axes of q, the caches and the table are contiguous."""
    batch, new, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    kv_heads, page = k_cache.shape[2:0:-1]
    capacity = page * (1 if block_table is None else block_table.shape[1])
    if not out.numel() or not capacity:
        return out.zero_()
    if (k_cache.data_ptr() | v_cache.data_ptr()) % 16:
        raise ValueError("decode_attention: a cache begins at no multiple of 16 bytes")
    fp8, rows, blocks = k_cache.dtype == FP8, new * heads // kv_heads, _triton.programs(q.device)
    tile = SIDE // (width * k_cache.element_size())
    parts = torch.empty(blocks * 2 * rows * (width + 2), dtype=torch.float32, device=q.device)
    KERNELS[str(q.dtype).removeprefix("torch."), fp8].launch(
        (blocks, 1), SHARED, q.device,
        q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), lengths.data_ptr(), _cuda.pointer(block_table),
        _cuda.pointer(k_scale), _cuda.pointer(v_scale), out.data_ptr(), parts.data_ptr(),
        counters(batch * kv_heads, q.device).data_ptr(), *_strides(q), *_strides(k_cache), *_strides(v_cache),
        0 if block_table is None else block_table.stride(0), batch, capacity, kv_heads, heads // kv_heads, new, page,
        least_tiles(rows) * tile // RUN, lengths.dtype == torch.int64,
        block_table is not None and block_table.dtype == torch.int64, count(k_scale), count(v_scale), scale * LOG2E,
    )  # fmt: skip
    return out


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    """In bytes, of all axes but the last."""
    a, b, c, _ = x.stride()
    size = x.element_size()
    return a * size, b * size, c * size
