"""istft as torch.compile and autograd see its Triton kernel."""

from torch import Tensor

from afn_kernels._library import Boundary


def _forward_fake(spectrum: Tensor, window: Tensor, state: Tensor | None, hop: int) -> Tensor:
    batch, frames = spectrum.shape[:2]
    return window.new_empty(batch, frames * hop + window.shape[0] - hop)


def _setup_context(ctx, inputs, output):
    spectrum, window, _, ctx.hop = inputs
    ctx.frames, ctx.dtype = spectrum.shape[1], spectrum.dtype
    ctx.save_for_backward(window)


def _backward(ctx, dwhole):
    (window,) = ctx.saved_tensors
    need_dspectrum, _, need_dstate = ctx.needs_input_grad[:3]
    dspectrum = BACKWARD(dwhole, window, ctx.frames, ctx.hop).to(ctx.dtype) if need_dspectrum else None
    return dspectrum, None, dwhole[:, : window.shape[0] - ctx.hop] if need_dstate else None


def _backward_fake(dwhole: Tensor, window: Tensor, frames: int, hop: int) -> Tensor:
    return dwhole.new_empty(dwhole.shape[0], frames, window.shape[0] // 2 + 1, 2)


FORWARD = Boundary(
    "istft",
    "afn_kernels.istft.triton:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("istft_backward", "afn_kernels.istft.gradient:backward", _backward_fake)


def istft(spectrum, window, *, hop, state):
    """The "triton" row of the op's table."""
    if spectrum.stride(3) != 1 or spectrum.stride(2) != 2:
        spectrum = spectrum.contiguous()
    whole = FORWARD(spectrum, window.contiguous(), None if state is None else state.contiguous(), hop)
    new = spectrum.shape[1] * hop
    return whole[:, :new], whole[:, new:]
