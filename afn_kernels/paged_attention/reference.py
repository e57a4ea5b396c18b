import itertools

import torch

from afn_kernels._library import plain
from afn_kernels.attention import reference
from afn_kernels.attention.window import flat, given
from afn_kernels.paged_attention.traced import PLAIN


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    lengths: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    causal: bool,
    window: tuple[int, int] | None,
    softcap: float,
    scale: float,
) -> torch.Tensor:
    tensors = q, k_cache, v_cache, block_table, cu_seqlens_q, lengths, k_scale, v_scale
    numbers = causal, *flat(window), float(softcap), float(scale)
    if torch.compiler.is_compiling() or not plain(*tensors):
        return PLAIN(*tensors, *numbers)
    return gathered(*tensors, *numbers)


def gathered(
    q, k_cache, v_cache, block_table, cu_seqlens_q, lengths, k_scale, v_scale, causal, left, right, softcap, scale
) -> torch.Tensor:  # fmt: skip
    """Sequence by sequence, from a copy of its pages in float32 (float64 for float64 queries)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    bounds, out = cu_seqlens_q.tolist(), torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for row, (begin, end) in enumerate(itertools.pairwise(bounds)):
        length = int(lengths[row])
        used = block_table[row, : -(-length // k_cache.shape[1])].long().clamp(0, max(0, len(k_cache) - 1))
        k, v = (
            cache[used].flatten(0, 1)[:length].to(wide) * (1.0 if factor is None else factor.to(wide).reshape(-1, 1))
            for cache, factor in ((k_cache, k_scale), (v_cache, v_scale))
        )
        first = 0 if left < 0 else max(0, length - (end - begin) - left)
        k, v = (x[first:] for x in (k, v))  # what lies before a window may hold anything
        window = given(left, right)
        found, _ = reference.one_sequence(q[begin:end].to(wide), k, v, causal, window, softcap, scale)
        out[begin:end] = found.to(q.dtype)
    return out
