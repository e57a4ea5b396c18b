"""Attention on a padded batch made from the packed one: batched matrix products, or PyTorch's fused attention."""

import itertools

import torch
import torch.nn.functional as F

from afn_kernels.attention.ragged import Ragged
from afn_kernels.attention.traced import one_op_when_traced
from afn_kernels.attention.window import UNLIMITED, Window, limits

WASTE = 1.5


def pad_all(q, k, v, cu_seqlens_q, cu_seqlens_k) -> tuple[Ragged, Ragged, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [N, Sq, Hq, D], k and v [N, Sk, Hk, D], and how they were packed."""
    rq = Ragged.of(q, cu_seqlens_q)
    rk = rq if cu_seqlens_k is cu_seqlens_q and len(k) == len(q) else Ragged.of(k, cu_seqlens_k)
    return rq, rk, rq.pad(q), rk.pad(k), rk.pad(v)


def visible_NQK(rq: Ragged, rk: Ragged, causal: bool, window: Window | None) -> torch.Tensor | None:
    """Which query may see which key, [N or 1, Sq, Sk]; None when all may see all."""
    key = torch.arange(rk.longest, device=rk.lengths.device)
    mask = None
    if not rk.full:
        mask = (key < rk.lengths[:, None])[:, None, :]
    if (found := limits(causal, window)) is not None:
        left, right = found
        own = torch.arange(rq.longest, device=rk.lengths.device)[:, None]  # the key that is a query's own
        own = own + (rk.lengths - rq.lengths)[:, None, None] if rq is not rk else own[None]
        seen = key <= own + right
        if left < UNLIMITED:
            seen = seen & (key >= own - left)
        mask = seen if mask is None else mask & seen
    return mask


@one_op_when_traced("matmul")
def matmul(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, window, softcap, scale, **_):
    dtype = q.dtype
    if softcap:  # tanh of scores that were rounded to 16 bits would be a dozen times less accurate than fused kernels
        q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (q, k, v))
    rq, rk, q_NQHD, k_NKHD, v_NKHD = pad_all(q, k, v, cu_seqlens_q, cu_seqlens_k)
    heads, kv_heads = q.shape[1], k.shape[1]
    # The query heads of one KV head become rows of one product, so K and V are never repeated.
    q_NHXD = (q_NQHD * scale).unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    score = q_NHXD @ k_NKHD.permute(0, 2, 3, 1)
    if softcap:
        score = softcap * (score / softcap).tanh()
    mask = visible_NQK(rq, rk, causal, window)
    if mask is not None:
        score = score.unflatten(2, (heads // kv_heads, -1))
        # The lowest finite number, not -inf: a row without keys must not become NaN.
        score = score.masked_fill(~mask[:, None, None], torch.finfo(score.dtype).min).flatten(2, 3)
    out = (score.softmax(-1) @ v_NKHD.transpose(1, 2)).to(dtype)
    out = out.unflatten(2, (heads // kv_heads, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return rq.unpad(without_keys_zero(out, rq, rk, mask))


@one_op_when_traced("sdpa")
def sdpa(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, window, scale, **_):
    groups = alike(cu_seqlens_q) if cu_seqlens_k is cu_seqlens_q and len(k) == len(q) else None
    if groups is None:
        return padded_sdpa(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, window, scale)
    # Sequences in order of length, so that a group of them is a slice.
    lengths = cu_seqlens_q.diff().long()
    order = torch.argsort(lengths, stable=True)
    cu = F.pad(lengths[order].cumsum(0), (1, 0))
    rows = torch.repeat_interleave(cu_seqlens_q[:-1][order] - cu[:-1], lengths[order])
    rows = rows + torch.arange(len(q), device=q.device)
    parts = []
    for first, end in itertools.pairwise(groups):
        cu_group = cu[first : end + 1]
        x = (x.index_select(0, rows[cu_group[0] : cu_group[-1]]) for x in (q, k, v))
        parts.append(padded_sdpa(*x, *[(cu_group - cu_group[0]).int()] * 2, causal, window, scale))
    return torch.cat(parts).index_select(0, torch.argsort(rows))


def alike(cu_seqlens: torch.Tensor | None) -> list[int] | None:
    """Bounds of groups of sequences, in order of length, that may be padded to each other; None where all may.

    A group ends where one more sequence would cost it more than ``WASTE`` times its own scores.
    """
    if cu_seqlens is None or len(cu_seqlens) < 3 or cu_seqlens.is_cuda:
        return None
    lengths = sorted(cu_seqlens.diff().tolist())
    bounds, wanted = [0], 0
    for i, length in enumerate(lengths):
        wanted += length**2
        if (i + 1 - bounds[-1]) * length**2 > WASTE * wanted:
            bounds.append(i)
            wanted = length**2
    return [*bounds, len(lengths)] if len(bounds) > 1 else None


def padded_sdpa(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, window, scale):
    rq, rk, q_NQHD, k_NKHD, v_NKHD = pad_all(q, k, v, cu_seqlens_q, cu_seqlens_k)
    q_NHQD, k_NHKD, v_NHKD = (x.transpose(1, 2) for x in (q_NQHD, k_NKHD, v_NKHD))
    # Queries past their sequence's end are thrown away, so causality alone masks the padding of self-attention.
    plain_causal = causal and window is None and rq is rk
    mask = None if plain_causal else visible_NQK(rq, rk, causal, window)
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}  # a branch: with symbolic shapes != is no bool
    out = F.scaled_dot_product_attention(
        q_NHQD,
        k_NHKD,
        v_NHKD,
        attn_mask=None if mask is None else mask[:, None],
        is_causal=plain_causal,
        scale=scale,
        **grouped,
    )
    return rq.unpad(without_keys_zero(out.transpose(1, 2), rq, rk, mask))


def without_keys_zero(out_NQHD: torch.Tensor, rq: Ragged, rk: Ragged, mask: torch.Tensor | None) -> torch.Tensor:
    """Zeros for queries that see no key, which can only be when queries and keys are cut differently."""
    if mask is None or rq is rk:
        return out_NQHD
    return torch.where(mask.any(-1)[..., None, None], out_NQHD, 0.0)
