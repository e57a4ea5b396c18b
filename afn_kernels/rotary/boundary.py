"""rotary as torch.compile and autograd see its Triton kernel."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary


def _adjacent(x: Tensor) -> Tensor:
    """Tokens and heads may be any distance apart, the elements of a head may not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _forward_fake(
    q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, interleaved: bool, given: bool
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[2:4])
    ctx.options = inputs[4:]


def _backward(ctx, dq, dk):
    grads = [
        _adjacent(x) if x is not None and need else None
        for x, need in zip((dq, dk), ctx.needs_input_grad[:2], strict=True)
    ]
    if grads[0] is None and grads[1] is None:
        return None
    rotated = BACKWARD(*grads, *ctx.saved_tensors, *ctx.options)
    return tuple(None if x is None else y for x, y in zip(grads, rotated, strict=True))


def _backward_fake(
    dq: Tensor | None, dk: Tensor | None, positions: Tensor, inv_freq: Tensor, interleaved: bool, given: bool
) -> tuple[Tensor, Tensor]:
    like = dk if dq is None else dq
    return tuple(like.new_empty(0 if x is None else x.shape) for x in (dq, dk))


def _write_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _forward_cpu_fake(
    q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


FORWARD = Boundary(
    "rotary",
    "afn_kernels.rotary.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("rotary_backward", "afn_kernels.rotary.triton:backward", _backward_fake)
WRITE = Boundary("rotary_write", "afn_kernels.rotary.triton:write", _write_fake, writes=("k_cache", "v_cache"))
FORWARD_CPU = Boundary("rotary_cpu", "afn_kernels.rotary.cpu:forward", _forward_cpu_fake)
WRITE_CPU = Boundary("rotary_write_cpu", "afn_kernels.rotary.cpu:write", _write_fake, writes=("k_cache", "v_cache"))


def rotary(q, k, positions, inv_freq, **options):
    """The "triton" row of the op's table."""
    return _turned(lambda *args: FORWARD(*args, False), WRITE, q, k, positions, inv_freq, **options)


def rotary_cpu(q, k, positions, inv_freq, **options):
    """The "cpu" row of the op's table."""
    return _turned(FORWARD_CPU, WRITE_CPU, q, k, positions, inv_freq, **options)


def _turned(forward, write, q, k, positions, inv_freq, *, interleaved, v, k_cache, v_cache, slots):
    q, k, positions, inv_freq = _adjacent(q), _adjacent(k), positions.contiguous(), inv_freq.contiguous()
    if slots is None:
        return forward(q, k, positions, inv_freq, interleaved)
    rotated = write(q, k, _adjacent(v), positions, inv_freq, slots.contiguous(), k_cache, v_cache, interleaved)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version((k_cache, v_cache))  # a direct launch is no write that autograd sees
    return rotated


def apply_rotary(q, k, cos, sin, *, interleaved):
    """The "triton" row of the other op's table."""
    if cos.stride() != sin.stride() or cos.stride(1) != 1:
        cos, sin = cos.contiguous(), sin.contiguous()
    return FORWARD(_adjacent(q), _adjacent(k), cos, sin, interleaved, True)
