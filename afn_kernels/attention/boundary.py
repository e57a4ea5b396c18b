"""attention as torch.compile and autograd see its Triton kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    out_c: Tensor | None, lse_c: Tensor | None, causal: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return q.new_empty(q.shape, dtype=q.dtype if out_c is None else torch.float32), lse.t()


def _setup_context(ctx, inputs, output):
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, dout, dlse):
    q, k, v, cu_seqlens_q, cu_seqlens_k, out_c, lse_c, out, lse = ctx.saved_tensors
    need = ctx.needs_input_grad
    dout = torch.zeros_like(out) if dout is None else dout
    dq, dk, dv, dout_c, dlse_c = BACKWARD(
        dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, out_c, lse_c, ctx.causal, ctx.scale,
        need[0], need[1] or need[2], need[5] or need[6],
    )  # fmt: skip
    return dq, dk, dv, None, None, dout_c, dlse_c


def _backward_fake(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, out_c: Tensor | None, lse_c: Tensor | None,
    causal: bool, scale: float, need_dq: bool, need_dkv: bool, need_carry: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dlse_c = q.new_empty((q.shape[1], q.shape[0]) if need_carry else 0, dtype=torch.float32)
    return (
        q.new_empty(q.shape if need_dq else 0),
        k.new_empty(k.shape if need_dkv else 0),
        v.new_empty(v.shape if need_dkv else 0),
        q.new_empty(q.shape if need_carry else 0, dtype=torch.float32),
        dlse_c.t() if need_carry else dlse_c,
    )


FORWARD = Boundary(
    "attention",
    "afn_kernels.attention.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("attention_backward", "afn_kernels.attention.triton_backward:backward", _backward_fake)


def attention(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, scale, return_lse, carry):
    """The "triton" row of the op's table."""
    out_c, lse_c = carry or (None, None)
    out, lse = FORWARD(q, k, v, cu_seqlens_q, cu_seqlens_k, out_c, lse_c, causal, float(scale))
    return (out, lse) if return_lse or carry is not None else out
