"""log_mel as torch.compile and autograd see it, and its Triton kernel."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary
from afn_kernels.log_mel.mel_config import decoded
from afn_kernels.log_mel.tables import HOP


def _features_fake(pcm: Tensor, n_mels: int, out_dtype: torch.dtype, impl: str) -> Tensor:
    return pcm.new_empty(pcm.shape[0], n_mels, pcm.shape[1] // HOP, dtype=out_dtype)


def _setup_context(ctx, inputs, output):
    pcm, ctx.n_mels, _, _ = inputs
    ctx.save_for_backward(pcm)


def _backward(ctx, grad):
    return BACKWARD(grad, *ctx.saved_tensors, ctx.n_mels)


def _backward_fake(grad: Tensor, pcm: Tensor, n_mels: int) -> Tensor:
    return torch.empty_like(pcm)


def _any_fake(pcm: Tensor, lengths: Tensor | None, config: str, out_dtype: torch.dtype, impl: str) -> Tensor:
    wanted = decoded(config)
    return pcm.new_empty(pcm.shape[0], wanted.n_mels, wanted.frames(pcm.shape[1]), dtype=out_dtype)


def _any_setup_context(ctx, inputs, output):
    pcm, lengths, ctx.config, _, _ = inputs
    ctx.save_for_backward(pcm, lengths)


def _any_backward(ctx, grad):
    return BACKWARD_ANY(grad, *ctx.saved_tensors, ctx.config)


def _any_backward_fake(grad: Tensor, pcm: Tensor, lengths: Tensor | None, config: str) -> Tensor:
    return torch.empty_like(pcm)


def _write_fake(pcm: Tensor, out: Tensor) -> None:
    pass


FORWARD = Boundary(
    "log_mel", "afn_kernels.log_mel:features", _features_fake, setup_context=_setup_context, backward=_backward
)
BACKWARD = Boundary("log_mel_backward", "afn_kernels.log_mel.gradient:backward", _backward_fake)
FORWARD_ANY = Boundary(
    "log_mel_any",
    "afn_kernels.log_mel:features_any",
    _any_fake,
    setup_context=_any_setup_context,
    backward=_any_backward,
)
BACKWARD_ANY = Boundary("log_mel_any_backward", "afn_kernels.log_mel.gradient:backward_any", _any_backward_fake)
WRITE = Boundary("log_mel_write", "afn_kernels.log_mel.triton:write", _write_fake, writes=("out",))
WRITE_CUDA = Boundary("log_mel_write_cuda", "afn_kernels.log_mel.cuda:write", _write_fake, writes=("out",))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def log_mel(pcm, *, n_mels, out_dtype, out):
    """The "triton" row of the op's table."""
    return _written(WRITE, pcm, n_mels, out_dtype, out)


def log_mel_cuda(pcm, *, n_mels, out_dtype, out):
    """The "cuda" row of the op's table."""
    return _written(WRITE_CUDA, pcm, n_mels, out_dtype, out)


def _written(write: Boundary, pcm, n_mels, out_dtype, out):
    if pcm.stride(1) != 1:
        pcm = pcm.contiguous()
    direct = out is not None and out.is_contiguous() and out_dtype in DTYPES
    dtype = out_dtype if out_dtype in DTYPES else torch.float32
    shape = (pcm.shape[0], n_mels, pcm.shape[1] // HOP)
    features = out if direct else torch.empty(shape, dtype=dtype, device=pcm.device)
    write(pcm.detach(), features)
    if direct:
        return out
    return features.to(out_dtype) if out is None else out.copy_(features)
