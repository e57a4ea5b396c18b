"""log_mel as torch.compile and autograd see it, and its Triton kernel."""

import torch

from afn_kernels._library import Boundary
from afn_kernels.log_mel.tables import HOP


def _features_fake(pcm, n_mels, out_dtype, impl):
    return pcm.new_empty(pcm.shape[0], n_mels, pcm.shape[1] // HOP, dtype=out_dtype)


def _setup_context(ctx, inputs, output):
    pcm, ctx.n_mels, _, _ = inputs
    ctx.save_for_backward(pcm)


def _backward(ctx, grad):
    return BACKWARD(grad, ctx.saved_tensors[0], ctx.n_mels), None, None, None


def _backward_fake(grad, pcm, n_mels):
    return torch.empty_like(pcm)


FORWARD = Boundary(
    "log_mel(Tensor pcm, int n_mels, ScalarType out_dtype, str impl) -> Tensor",
    "afn_kernels.log_mel:features",
    _features_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary(
    "log_mel_backward(Tensor grad, Tensor pcm, int n_mels) -> Tensor",
    "afn_kernels.log_mel.gradient:backward",
    _backward_fake,
)
WRITE = Boundary(
    "log_mel_write(Tensor pcm, Tensor(a!) out) -> ()",
    "afn_kernels.log_mel.triton:write",
    lambda pcm, out: None,
)
WRITE_CUDA = Boundary(
    "log_mel_write_cuda(Tensor pcm, Tensor(a!) out) -> ()",
    "afn_kernels.log_mel.cuda:write",
    lambda pcm, out: None,
)
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
