"""attention as torch.compile and autograd see its kernels."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels.attention.gradients import empty_gradients
from afn_kernels.attention.schedule import CUDA_BACKWARD, TRITON_BACKWARD, tables_of
from afn_kernels.attention.window import flat


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, out_c: Tensor | None, lse_c: Tensor | None,
    table: Tensor | None, dq_table: Tensor | None, dkv_table: Tensor | None, causal: bool, left: int, right: int,
    softcap: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return q.new_empty(q.shape, dtype=q.dtype if out_c is None else torch.float32), lse.t()


def _setup_context(ctx, inputs, output):
    (q, k, v, out_c, lse_c, table, dq_table, dkv_table), ctx.options = inputs[:8], inputs[8:]
    ctx.packed = table is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, out_c, lse_c, dq_table, dkv_table)


def _backward(ctx, dout, dlse):
    return _gradients(BACKWARD, ctx, dout, dlse)


def _backward_cuda(ctx, dout, dlse):
    return _gradients(BACKWARD_CUDA, ctx, dout, dlse)


def _gradients(backward: Boundary, ctx, dout, dlse):
    need, tensors = ctx.needs_input_grad, ctx.saved_tensors
    assert not ctx.packed or all(x is not None for x in tensors[-2:]), "packed gradients need their tables"
    dout = torch.zeros_like(tensors[3]) if dout is None else dout
    needs = need[0], need[1] or need[2], need[3] or need[4]
    return backward(dout, dlse, *tensors, *ctx.options, *needs)


def _backward_fake(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    out_c: Tensor | None, lse_c: Tensor | None, dq_table: Tensor | None, dkv_table: Tensor | None,
    causal: bool, left: int, right: int, softcap: float, scale: float, need_dq: bool, need_dkv: bool, need_carry: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return empty_gradients(q, k, v, need_dq, need_dkv, need_carry)


def _forward_cpu_fake(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, causal: bool, left: int,
    right: int, softcap: float, scale: float,
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape)


FORWARD = Boundary(
    "attention",
    "afn_kernels.attention.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
FORWARD_CUDA = Boundary(
    "attention_cuda",
    "afn_kernels.attention.cuda:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward_cuda,
)
BACKWARD = Boundary("attention_backward", "afn_kernels.attention.triton_backward:backward", _backward_fake)
BACKWARD_CUDA = Boundary("attention_backward_cuda", "afn_kernels.attention.cuda_backward:backward", _backward_fake)
FORWARD_CPU = Boundary("attention_cpu", "afn_kernels.attention.cpu:forward", _forward_cpu_fake)


def attention(q, k, v, *, carry, **options):
    """The "triton" row of the op's table."""
    kernels = "forward" if carry is None else "carry", *TRITON_BACKWARD
    return _attend(FORWARD, kernels, q, k, v, carry=carry, **options)


def attention_cuda(q, k, v, **options):
    """The "cuda" row of the op's table."""
    return _attend(FORWARD_CUDA, ("cuda", *CUDA_BACKWARD), q, k, v, **options)


def _attend(
    forward: Boundary, kernels: tuple[str, ...], q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, window, softcap, scale,
    return_lse, carry, schedule, **_,
):  # fmt: skip
    out_c, lse_c = carry or (None, None)
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *(carry or ())))
    kernels = kernels if wanted else kernels[:1]
    tables = []
    if schedule is not None:
        tables = schedule.of(kernels, q.shape[-1], q.dtype)
    elif cu_seqlens_q is not None:
        tables = tables_of(kernels, cu_seqlens_q, cu_seqlens_k, causal, len(q), len(k), q.shape[-1], q.dtype)
    table, dq_table, dkv_table = (*tables, *[None] * (3 - len(tables)))
    out, lse = forward(
        q, k, v, out_c, lse_c, table, dq_table, dkv_table, causal, *flat(window), float(softcap), float(scale)
    )
    return (out, lse) if return_lse or carry is not None else out


def attention_cpu(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, window, softcap, scale, **_):
    """The "cpu" row of the op's table."""
    tensors = q.contiguous(), *(x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    return FORWARD_CPU(*tensors, cu_seqlens_q, cu_seqlens_k, causal, *flat(window), float(softcap), float(scale))
