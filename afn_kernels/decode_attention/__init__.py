"""Attention of a few new tokens per sequence over a long KV cache."""

import torch

from afn_kernels import _check
from afn_kernels._registry import Impl, Op

OP = Op(
    "decode_attention",
    (Impl("reference", "afn_kernels.decode_attention.reference:decode_attention", why="plain PyTorch"),),
)


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """out = softmax(scale · q kᵀ) v over each sequence's cache, causal among the new tokens.

    The cache already holds the new tokens' keys and values: new token i of a sequence sees the first
    lengths[b] − n + 1 + i entries.

    Args:
        q: [B, n, Hq, D] queries of the n newest tokens, any floating dtype.
        k_cache: [B, capacity, Hk, D], or [pages, page_size, Hk, D] with ``block_table``; dtype of q.
        v_cache: like k_cache.
        lengths: [B] integer, valid entries of each sequence, the new tokens included.
        block_table: [B, max_pages] integer, the pages of each sequence in order.
        scale: multiplier of the scores; default D^(−1/2).
        impl: "auto" or the name of an implementation.

    Returns:
        [B, n, Hq, D], dtype of q.

    Raises:
        ValueError: shapes, dtypes or head counts that do not fit; a length past the capacity (on the CPU).
    """
    _check.same_dtype_and_device("decode_attention", q=q, k_cache=k_cache, v_cache=v_cache)
    if q.dim() != 4 or k_cache.dim() != 4 or k_cache.shape != v_cache.shape or q.shape[-1] != k_cache.shape[-1]:
        shapes = tuple(q.shape), tuple(k_cache.shape), tuple(v_cache.shape)
        raise ValueError(f"decode_attention: q, k_cache, v_cache have shapes {shapes}")
    if q.shape[2] % k_cache.shape[2]:
        raise ValueError(f"decode_attention: {q.shape[2]} query heads over {k_cache.shape[2]} KV heads")
    if block_table is None:
        sequences, capacity = k_cache.shape[:2]
    else:
        sequences, capacity = len(block_table), block_table.shape[1] * k_cache.shape[1]
    if not len(q) == sequences == len(lengths):
        raise ValueError(f"decode_attention: {len(q)} queries, {sequences} caches, {len(lengths)} lengths")
    if lengths.device.type == "cpu" and len(lengths) and not q.shape[1] <= int(lengths.min()):
        raise ValueError(f"decode_attention: length {int(lengths.min())} is below the {q.shape[1]} new tokens")
    if lengths.device.type == "cpu" and len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"decode_attention: length {int(lengths.max())} is past the capacity {capacity}")
    options = {"block_table": block_table, "scale": q.shape[-1] ** -0.5 if scale is None else scale}
    return OP.choose(impl, q, k_cache, v_cache, lengths, **options)(q, k_cache, v_cache, lengths, **options)
