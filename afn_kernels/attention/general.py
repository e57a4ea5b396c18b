"""Our own attention from boundaries instead of tables, for calls that another kernel refused or cannot take back."""

from __future__ import annotations

import torch
from torch import Tensor

from afn_kernels.attention import OP, packed
from afn_kernels.attention.boundary import BACKWARD, attention
from afn_kernels.attention.schedule import AttentionSchedule
from afn_kernels.attention.window import given


def _by_triton(q, k, v, cu_q, cu_k, scale) -> bool:
    row = next(row for row in OP.impls if row.name == "triton")
    return not (row.available() or row.supports(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, scale=scale))


def _boundaries(x: Tensor, cu: Tensor | None) -> Tensor:
    return torch.tensor([0, len(x)], dtype=torch.int32, device=x.device) if cu is None else cu


def forward(
    q, k, v, out_c, lse_c, cu_q, cu_k, causal, left, right, softcap, scale
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out, float32 with a carry, and lse."""
    carry = None if out_c is None else (out_c, lse_c)
    if _by_triton(q, k, v, cu_q, cu_k, scale):
        options = {"causal": causal, "window": given(left, right), "softcap": softcap, "scale": scale}
        with torch.no_grad():
            return attention(
                q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_lse=True, carry=carry, schedule=None, **options
            )
    boundaries = _boundaries(q, cu_q), _boundaries(k, cu_k)
    numbers = causal, left, right, softcap, scale
    out, lse = packed.forward(q, k, v, out_c, lse_c, *boundaries, *numbers, True, "reference")
    return out, lse.t().contiguous().t()


def backward(
    dout, dlse, q, k, v, out, lse, out_c, lse_c, cu_q, cu_k, causal, left, right, softcap, scale,
    need_dq, need_dkv, need_carry,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, and with a carry of its out and lse."""
    numbers, needs = (causal, left, right, softcap, scale), (need_dq, need_dkv, need_carry)
    if _by_triton(q, k, v, cu_q, cu_k, scale):
        tables = [None, None]
        if cu_q is not None:
            tables = AttentionSchedule(cu_q, cu_k, causal, len(q), len(k)).of(("dq", "dkv"), q.shape[-1], q.dtype)
        return BACKWARD(dout, dlse, q, k, v, out, lse, out_c, lse_c, *tables, *numbers, *needs)
    boundaries = _boundaries(q, cu_q), _boundaries(k, cu_k)
    dq, dk, dv, *carried = packed.backward(dout, dlse, out, lse, q, k, v, out_c, lse_c, *boundaries, *numbers, True)
    empty = q.new_empty(0, dtype=torch.float32)
    dout_c, dlse_c = carried if need_carry else (empty, empty)
    grads = dq if need_dq else q.new_empty(0), *(x if need_dkv else x.new_empty(0) for x in (dk, dv))
    return *grads, dout_c, dlse_c.t().contiguous().t() if need_carry else dlse_c
