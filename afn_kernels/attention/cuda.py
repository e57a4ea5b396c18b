"""The forward on Hopper by hand: a persistent block per multiprocessor, csrc/include/afn/attention_forward.cuh."""

import torch

from afn_kernels import _cuda, _tensor_map, _triton
from afn_kernels.attention.config import CUDA_QUERIES

LOG2E = 1.4426950408889634
KEYS = 128  # of a block
STAGES = {64: 8, 128: 6}  # blocks of keys or values that are under way
KERNELS = {
    (dtype, width): _cuda.Kernel(
        "attention",
        f"attention_{str(dtype).removeprefix('torch.')}_{width}",
        "128s128s128sPPPPPiiiiiif60x",
        128 + 2 * queries,
    )
    for dtype in (torch.bfloat16, torch.float16)
    for width, queries in CUDA_QUERIES.items()
}


def shared(width: int) -> int:
    """Bytes of shared memory: a tile of queries, the ring of blocks, barriers."""
    stages = STAGES[width]
    return 2 * width * (CUDA_QUERIES[width] + stages * KEYS) + 8 * (2 * stages + 2)


def mappable(x: torch.Tensor) -> torch.Tensor:
    """x with adjacent elements and rows at multiples of 16 bytes. Copies only if it must."""
    rows = [stride * x.element_size() for stride, n in zip(x.stride()[:-1], x.shape, strict=False) if n > 1]
    fits = x.stride(-1) == 1 and not any(row % 16 or not 0 < row < 1 << 40 for row in rows) and not x.data_ptr() % 16
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out_c: torch.Tensor | None,
    lse_c: torch.Tensor | None,
    table: torch.Tensor | None,
    dq_table: torch.Tensor | None,
    dkv_table: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [Tq, Hq, D], float32 with a carry, and lse [Tq, Hq], in memory [Hq, Tq]; neither a window nor a softcap.

    ``table`` has the tiles of a packed batch (``tile_table``); the other two are for the backward.
    """
    (tokens, heads, dim), carry = q.shape, out_c is not None
    out = torch.empty(q.shape, dtype=torch.float32 if carry else q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if not tokens or not heads or not len(k):
        return _without_keys(out, lse.t(), out_c, lse_c)
    queries = CUDA_QUERIES[dim]
    tiles = -(-tokens // queries) if table is None else len(table)
    boxes = queries, KEYS, KEYS
    held = [mappable(x) for x in (q, k, v)]
    maps = [_tensor_map.encode(x, (rows, 1, 64), 128) for x, rows in zip(held, boxes, strict=True)]
    if out_c is not None and lse_c is not None:
        out_c, lse_c = out_c.contiguous(), lse_c.t().contiguous()
    KERNELS[q.dtype, dim].launch(
        (min(tiles * heads, _triton.programs(q.device)), 1), shared(dim), q.device,
        *maps, _cuda.pointer(table), out.data_ptr(), lse.data_ptr(), _cuda.pointer(out_c), _cuda.pointer(lse_c),
        tokens, len(k), tiles, heads, heads // k.shape[1], causal, scale * LOG2E,
    )  # fmt: skip
    return out, lse.t()


def _without_keys(out, lse, out_c, lse_c) -> tuple[torch.Tensor, torch.Tensor]:
    if out_c is None:
        return out.zero_(), lse.fill_(float("-inf"))
    return out.copy_(out_c.masked_fill((lse_c == float("-inf"))[..., None], 0.0)), lse.copy_(lse_c)
