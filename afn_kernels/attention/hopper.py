"""What calls of csrc/include/afn/attention_forward.cuh share: tiles, shared memory, tensor maps and the launch."""

import torch

from afn_kernels import _cuda, _tensor_map, _triton
from afn_kernels.attention.config import CUDA_QUERIES
from afn_kernels.attention.providers import HALF

LOG2E = 1.4426950408889634
KEYS = 128  # of a block
STAGES = {64: 8, 128: 6}  # blocks of keys or values that are under way


def kernels(source: str) -> dict[tuple[torch.dtype, int], _cuda.Kernel]:
    """Those of csrc/cuda/<source>.cu, by dtype and width of heads."""
    return {
        (dtype, width): _cuda.Kernel(
            source,
            f"{source}_{str(dtype).removeprefix('torch.')}_{width}",
            "128s128s128sPPPPPPqiiiiiiiif36x",
            128 + 2 * queries,
        )
        for dtype in HALF
        for width, queries in CUDA_QUERIES.items()
    }


def supports(q: torch.Tensor, *, window=None, softcap: float = 0.0, scale: float = 1.0, **_) -> str:
    """Why none of the kernels takes such queries and options; empty when they do."""
    if q.shape[-1] not in CUDA_QUERIES:
        return f"a head of {q.shape[-1]} is not 64 or 128"
    if window is not None or softcap:
        return "it takes no window and caps no scores"
    if scale <= 0:
        return f"the scale {scale} is not above zero, and the maximum of the scores is taken before it"
    return ""


def shared(width: int) -> int:
    """Bytes of shared memory: a tile of queries, the ring of blocks, barriers."""
    stages = STAGES[width]
    return 2 * width * (CUDA_QUERIES[width] + stages * KEYS) + 8 * (2 * stages + 2)


def dense(x: torch.Tensor) -> torch.Tensor:
    """x in one piece from a multiple of 16 bytes on, as kernels read it by address. Copies only if it must."""
    return x if x.is_contiguous() and not x.data_ptr() % 16 else x.clone(memory_format=torch.contiguous_format)


def launch(
    kernel: _cuda.Kernel,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    carry: tuple[torch.Tensor, torch.Tensor] | None,
    table: torch.Tensor | None,
    pages: torch.Tensor | None,
    causal: bool,
    scale: float,
) -> None:
    """Queues the kernel. q [Tq, Hq, D]; k, v [Tk, Hk, D], or with ``pages`` [pages, page, Hk, D]; lse and that of the
    carry [Hq, Tq]; ``table`` of ``tile_table``, with the sequence in place of its first key where there are pages."""
    tokens, heads, width = q.shape
    rows, page = CUDA_QUERIES[width], 0 if pages is None else k.shape[1]
    tiles = -(-tokens // rows) if table is None else len(table)
    block = (1, min(page, KEYS), 1, 64) if page else (KEYS, 1, 64)
    held = [_tensor_map.mappable(x) for x in (q, k, v)]
    maps = [_tensor_map.encode(x, box, 128) for x, box in zip(held, ((rows, 1, 64), block, block), strict=True)]
    out_c, lse_c = carry or (None, None)
    kernel.launch(
        (min(tiles * heads, _triton.programs(q.device)), 1), shared(width), q.device,
        *maps, _cuda.pointer(table), out.data_ptr(), _cuda.pointer(lse), _cuda.pointer(out_c), _cuda.pointer(lse_c),
        _cuda.pointer(pages), 0 if pages is None else pages.stride(0), tokens, len(k), tiles, heads,
        heads // k.shape[-2], causal, page, len(k) if page else 0, scale * LOG2E,
    )  # fmt: skip
