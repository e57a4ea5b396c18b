"""The compiled kernel of csrc/cpu/attend_simd.cpp: attention on a CPU, over a KV cache and of packed sequences."""

from collections.abc import Callable
from functools import lru_cache

import torch

from afn_kernels import cpu

DTYPES = (torch.float32, torch.bfloat16)
INDICES = (torch.int32, torch.int64)
WIDEST = 256  # of a head, as in csrc/include/afn/attend_simd.h


def supports(q: torch.Tensor, k_cache: torch.Tensor, *scales: torch.Tensor | None) -> str:
    """Why the kernel does not take these tensors, which share a device and fit; empty when it does."""
    if not q.is_cpu:
        return f"the tensors are on {q.device}"
    if k_cache.dtype not in DTYPES or q.dtype != k_cache.dtype:
        return f"{str(k_cache.dtype).removeprefix('torch.')} is computed by the reference"
    if any(x is not None for x in scales):
        return "scales of a cache are multiplied by the reference"
    return f"a head of {q.shape[-1]} elements is above {WIDEST}" if q.shape[-1] > WIDEST else ""


@lru_cache
def _compiled() -> Callable[..., bool]:
    from afn_kernels._cpu import cache_attention

    return cache_attention


def level() -> str:
    """The SIMD level of a call that names none."""
    from afn_kernels._cpu import simd_level

    return simd_level()


def attend(
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None,
    *,
    heads: int,
    fresh: int = 0,
    table: torch.Tensor | None = None,
    bounds: torch.Tensor | None = None,
    key_bounds: torch.Tensor | None = None,
    prefixes: torch.Tensor | None = None,
    causal: bool = True,
    left: int = -1,
    right: int = 0,
    scale: float = 1.0,
    softcap: float = 0.0,
    threads: int = 0,
    level: str = "",
) -> torch.Tensor | None:
    """Attention like that of the ops which call it; without q only looks whether the call fits.

    Each row and head is computed alone: an online softmax over steps of 64 keys, which begin at multiples of 64 in the
    sequence. So its bits depend on the query, the entries that it sees and the instruction set, and on nothing else.

    Args:
        q: [tokens, Hq, D] contiguous.
        k, v: [B, capacity, Hk, D] or [pages, page_size, Hk, D] with a table, or [1, Tk, Hk, D] with
            ``key_bounds``; contiguous in the last axis.
        lengths: [B] int32 or int64, contiguous; None with ``key_bounds``.
        heads: Hq.
        fresh: new tokens of every sequence, where there are no bounds.
        table: [B, pages] int32 or int64, contiguous in the last axis.
        bounds: [B + 1] int32, contiguous.
        key_bounds: [B + 1] int32, contiguous: boundaries of packed keys.
        prefixes: [groups] int32 or int64, contiguous.
        causal, left, right, scale, softcap: as ``attention.window.flat`` has them.
        threads: default PyTorch's. They change no bit.
        level: SIMD level; by default $AFN_SIMD or the fastest.

    Returns:
        Like q; None where a length or a page that is read is not there. Without q, also where a length is below its new
        tokens or a prefix is longer than what comes before them; an empty tensor where all is well.
    """
    nothing = (0, False)
    out = k.new_empty(0) if q is None else torch.empty_like(q)
    blocks, page, kv_heads, width = k.shape
    sequences = len(key_bounds) - 1 if lengths is None else len(lengths)
    done = _compiled()(
        0 if q is None else q.data_ptr(), 0 if q is None else out.data_ptr(), k.data_ptr(), k.stride()[:3],
        v.data_ptr(), v.stride()[:3], k.dtype == torch.bfloat16, blocks, page,
        nothing if table is None else (table.data_ptr(), table.dtype == torch.int64),
        0 if table is None else table.shape[1], 0 if table is None else table.stride(0),
        0 if bounds is None else bounds.data_ptr(), fresh,
        nothing if lengths is None else (lengths.data_ptr(), lengths.dtype == torch.int64),
        0 if key_bounds is None else key_bounds.data_ptr(), sequences,
        nothing if prefixes is None else (prefixes.data_ptr(), prefixes.dtype == torch.int64),
        1 if prefixes is None else sequences // max(1, len(prefixes)), heads, kv_heads, width, causal, left, right,
        scale, softcap, threads or torch.get_num_threads(), level,
    )  # fmt: skip
    return out if done else None


def fits(k: torch.Tensor, lengths: torch.Tensor, heads: int, **options) -> bool:
    """Whether lengths and pages are sure to be what they must; what is not is for somebody else to say."""
    if not lengths.is_cpu or cpu.usable():
        return False
    options |= {name: indices(options.get(name)) for name in ("table", "prefixes")}
    return attend(None, k, k, indices(lengths), heads=heads, **options) is not None


def indices(x: torch.Tensor | None) -> torch.Tensor | None:
    """Whole numbers as the kernel takes them."""
    if x is None:
        return None
    x = x if x.dtype in INDICES else x.long()
    return x if x.stride(-1) == 1 and x.dim() > 1 else x.contiguous()
