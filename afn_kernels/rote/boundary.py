"""rote as torch.compile and autograd see its Triton kernel."""

import torch

from afn_kernels._library import Boundary
from afn_kernels._rows import as_rows


def _fake(x, *_):
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output):
    _, window, frame, *ctx.options = inputs
    ctx.save_for_backward(window, frame)


def _backward(ctx, dy):
    *options, inverse = ctx.options
    return ROTATE(as_rows(dy), *ctx.saved_tensors, *options, not inverse)


CONSTANTS = (
    "int rotary_dim, float theta, float period, float window_factor, float frame_factor, float seconds_per_frame,"
    " int frames_per_window, bool accurate"
)
ROTATE = Boundary(
    f"rote(Tensor x, Tensor window, Tensor frame, {CONSTANTS}, bool inverse) -> Tensor",
    "afn_kernels.rote.triton:rotate",
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)


def constants(*, phase_dtype: torch.dtype, **options) -> list:
    """The options as CONSTANTS has them."""
    names = (
        "rotary_dim", "theta", "period", "window_factor", "frame_factor", "seconds_per_frame", "frames_per_window",
    )  # fmt: skip
    return [*(options[name] for name in names), phase_dtype == torch.float64]


def rote(x, window, frame, **options):
    """The "triton" row of the op's table."""
    return ROTATE(as_rows(x), window.contiguous(), frame.contiguous(), *constants(**options), False)
