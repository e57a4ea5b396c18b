"""Packed attention in plain PyTorch as one op of a traced graph: what depends on the boundaries stays inside of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from afn_kernels._library import Boundary, plain
from afn_kernels.attention.window import flat


def one_op_when_traced(name: str) -> Callable:
    """Of an implementation in plain PyTorch: a packed call whose boundaries have no values to look at, because it is
    traced or its tensors are fake or on "meta", becomes ``afn::attention_packed``.
    """

    def decorate(attend: Callable) -> Callable:
        @wraps(attend)
        def call(q, k, v, **options):
            boundaries = options["cu_seqlens_q"]
            seen = not torch.compiler.is_compiling() and plain(q, k, v, boundaries) and not q.is_meta
            if boundaries is None or seen:
                return attend(q, k, v, **options)
            carry = options["carry"]
            tensors = *(carry or (None, None)), options["cu_seqlens_q"], options["cu_seqlens_k"]
            numbers = *flat(options["window"]), float(options["softcap"]), float(options["scale"])
            wants_lse = options["return_lse"] or carry is not None
            forward = FORWARD.op if q.is_meta else FORWARD
            out, lse = forward(q, k, v, *tensors, options["causal"], *numbers, wants_lse, name)
            return (out, lse) if wants_lse else out

        return call

    return decorate


def wide(x: Tensor) -> torch.dtype:
    """float32, and float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, out_c: Tensor | None, lse_c: Tensor | None, cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor, causal: bool, left: int, right: int, softcap: float, scale: float, return_lse: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = q.new_empty(q.shape, dtype=q.dtype if out_c is None else wide(q))
    return out, q.new_empty(q.shape[:2] if return_lse else 0, dtype=wide(q))


def _setup_context(ctx, inputs, output):
    tensors, ctx.options, ctx.return_lse = inputs[:7], inputs[7:-2], inputs[-2]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, dout, dlse):
    *tensors, out, lse = ctx.saved_tensors
    dout = torch.zeros_like(out) if dout is None else dout
    dq, dk, dv, dout_c, dlse_c = BACKWARD(
        dout, dlse if ctx.return_lse else None, out, lse, *tensors, *ctx.options, ctx.return_lse
    )
    return (dq, dk, dv) if tensors[3] is None else (dq, dk, dv, dout_c, dlse_c)


def _backward_fake(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out_c: Tensor | None,
    lse_c: Tensor | None, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, left: int, right: int,
    softcap: float, scale: float, return_lse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shapes = (0, 0) if out_c is None else (q.shape, q.shape[:2])
    carried = [q.new_empty(shape, dtype=q.dtype if out_c is None else wide(q)) for shape in shapes]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *carried


FORWARD = Boundary(
    "attention_packed",
    "afn_kernels.attention.packed:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("attention_packed_backward", "afn_kernels.attention.packed:backward", _backward_fake)
