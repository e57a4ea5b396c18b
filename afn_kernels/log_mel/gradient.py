"""Gradient of log_mel, whichever implementation computed it: that of the reference, from the samples alone."""

import torch

from afn_kernels.log_mel.mel_config import decoded
from afn_kernels.log_mel.reference import log_mel


def backward(grad: torch.Tensor, pcm: torch.Tensor, n_mels: int) -> torch.Tensor:
    """Gradient with respect to ``pcm``."""
    with torch.enable_grad():
        pcm = pcm.detach().requires_grad_()
        features = log_mel(pcm, n_mels=n_mels, out_dtype=grad.dtype)
    return torch.autograd.grad(features, pcm, grad)[0]


def backward_any(grad: torch.Tensor, pcm: torch.Tensor, lengths: torch.Tensor | None, config: str) -> torch.Tensor:
    """The same of any front end, which is given by its ``text``."""
    with torch.enable_grad():
        pcm = pcm.detach().requires_grad_()
        features = log_mel(pcm, config=decoded(config), lengths=lengths, out_dtype=grad.dtype)
    return torch.autograd.grad(features, pcm, grad)[0]
