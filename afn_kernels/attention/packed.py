"""Packed attention in plain PyTorch as a graph calls it, and its gradients without autograd."""

import torch

from afn_kernels import _check
from afn_kernels.attention import dense, reference
from afn_kernels.attention.traced import wide
from afn_kernels.attention.window import given, visible

EAGER = {"sdpa": dense.sdpa, "matmul": dense.matmul, "reference": reference.attention}


def forward(
    q, k, v, out_c, lse_c, cu_seqlens_q, cu_seqlens_k, causal, left, right, softcap, scale, return_lse, impl
):  # fmt: skip
    for name, cu, x in (("cu_seqlens_q", cu_seqlens_q, q), ("cu_seqlens_k", cu_seqlens_k, k)):
        _check.cu_seqlens("attention", name, cu, len(x))  # a graph has no values to look at
    same = cu_seqlens_q if torch.equal(cu_seqlens_q, cu_seqlens_k) else cu_seqlens_k
    options = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": same, "causal": causal, "scale": scale}
    options |= {"window": given(left, right), "softcap": softcap}
    carry = None if out_c is None else (out_c, lse_c)
    found = EAGER[impl](q, k, v, **options, return_lse=return_lse, carry=carry)
    out, lse = found if return_lse else (found, q.new_empty(0, dtype=wide(q)))
    return out.contiguous(), lse.contiguous()


def backward(
    dout, dlse, out, lse, q, k, v, out_c, lse_c, cu_seqlens_q, cu_seqlens_k,
    causal, left, right, softcap, scale, return_lse,
):  # fmt: skip
    """p = exp(scale · q kᵀ − lse), dv = pᵀ dout, ds = p ∘ (dout vᵀ − Σ dout ∘ out + dlse), dq = scale · ds k and
    dk = scale · dsᵀ q; with c = exp(lse_c − lse), dout_c = c dout and dlse_c = c (Σ dout ∘ (out_c − out) + dlse)."""
    dtype, group = wide(q), q.shape[1] // k.shape[1]
    dout, out = dout.to(dtype), out.to(dtype)
    moved = -(dout * out).sum(-1)
    moved = moved if dlse is None else moved + dlse
    dq, dk, dv = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for q0, q1, k0, k1 in zip(bounds_q[:-1], bounds_q[1:], bounds_k[:-1], bounds_k[1:], strict=True):
        q_QHD, dout_QHD = q[q0:q1].to(dtype), dout[q0:q1]
        k_KHD, v_KHD = (x[k0:k1].to(dtype).repeat_interleave(group, dim=1) for x in (k, v))
        score_HQK = torch.einsum("qhd,khd->hqk", q_QHD, k_KHD) * scale
        if softcap:
            capped_HQK = (score_HQK / softcap).tanh()
            score_HQK = softcap * capped_HQK
        seen = visible(q1 - q0, k1 - k0, causal, given(left, right), q.device)
        if seen is not None:
            score_HQK = score_HQK.masked_fill(~seen, float("-inf"))
        lse_HQ = lse[q0:q1].T if return_lse else score_HQK.logsumexp(-1)
        p_HQK = (score_HQK - lse_HQ.masked_fill(lse_HQ == float("-inf"), 0.0)[..., None]).exp()
        ds_HQK = p_HQK * (torch.einsum("qhd,khd->hqk", dout_QHD, v_KHD) + moved[q0:q1].T[..., None])
        if softcap:
            ds_HQK = ds_HQK * (1 - capped_HQK.square())
        dq[q0:q1] = scale * torch.einsum("hqk,khd->qhd", ds_HQK, k_KHD)
        dk[k0:k1] = scale * torch.einsum("hqk,qhd->khd", ds_HQK, q_QHD).unflatten(1, (-1, group)).sum(2)
        dv[k0:k1] = torch.einsum("hqk,qhd->khd", p_HQK, dout_QHD).unflatten(1, (-1, group)).sum(2)
    found = dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
    if out_c is None:
        return *found, q.new_empty(0), q.new_empty(0)
    safe = lse.masked_fill(lse == float("-inf"), 0.0)
    weight = (lse_c - safe).exp()
    # Not Σ dout ∘ out_c less Σ dout ∘ out: where the carry has most of the weight, these are nearly the same.
    moved = (dout * (out_c - out)).sum(-1)
    moved = moved if dlse is None else moved + dlse
    return *found, weight[..., None] * dout, weight * moved
