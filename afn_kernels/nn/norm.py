"""Normalisations, with the residual addition or the pooling before them."""

import torch
from torch import Tensor, nn

from afn_kernels.layer_norm import layer_norm
from afn_kernels.pool_norm import pool_norm
from afn_kernels.rms_norm import rms_norm


class RMSNorm(nn.RMSNorm):
    """y = h / sqrt(mean(h²) + eps) · weight with h = x + residual: torch.nn.RMSNorm over ``rms_norm``.

    Args:
        normalized_shape: the last axis or axes of x.
        eps: None is that of float32 (of float64 for float64 inputs), which is what PyTorch takes.
        elementwise_affine: whether there is a ``weight``.
        device, dtype: of the weight.
        impl: as ``rms_norm`` takes it.

    Returns:
        y like x; with ``residual`` also h, as ``rms_norm`` does.

    Raises:
        ValueError: what ``rms_norm`` raises; an input that does not end in ``normalized_shape``.
    """

    def __init__(
        self, normalized_shape, eps=None, elementwise_affine=True, device=None, dtype=None, *, impl: str = "auto"
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.impl = impl

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps if self.eps is None else self.eps
        rows, residual, weight = _rows(self.normalized_shape, x, residual, self.weight)
        return _shaped(rms_norm(rows, weight, residual=residual, eps=eps, impl=self.impl), x)


class LayerNorm(nn.LayerNorm):
    """y = (h − mean(h)) / sqrt(var(h) + eps) · weight + bias, h = x + residual: torch.nn.LayerNorm over ``layer_norm``.

    Args:
        normalized_shape: the last axis or axes of x.
        eps: added to the biased variance.
        elementwise_affine: whether there is a ``weight``.
        bias: whether there is a ``bias``.
        device, dtype: of the parameters.
        impl: as ``layer_norm`` takes it.

    Returns:
        y like x; with ``residual`` also h, as ``layer_norm`` does.

    Raises:
        ValueError: what ``layer_norm`` raises; an input that does not end in ``normalized_shape``.
    """

    def __init__(
        self,
        normalized_shape,
        eps=1e-5,
        elementwise_affine=True,
        bias=True,
        device=None,
        dtype=None,
        *,
        impl: str = "auto",
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.impl = impl

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        rows, residual, weight, bias = _rows(self.normalized_shape, x, residual, self.weight, self.bias)
        return _shaped(layer_norm(rows, weight, bias, residual=residual, eps=self.eps, impl=self.impl), x)


def _rows(shape: tuple[int, ...], x: Tensor, residual: Tensor | None, *parameters: Tensor | None) -> list:
    """Everything with the axes of ``shape`` made one."""
    if x.shape[-len(shape) :] != torch.Size(shape):
        raise ValueError(f"the input is {list(x.shape)}, which does not end in {list(shape)}")
    axes = len(shape)
    tensors = [x, residual, *parameters]
    return tensors if axes == 1 else [None if t is None else t.flatten(-axes) for t in tensors]


def _shaped(found: Tensor | tuple[Tensor, Tensor], x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    return tuple(y.view_as(x) for y in found) if isinstance(found, tuple) else found.view_as(x)


class PooledNorm(nn.Module):
    """y[t] = LayerNorm((x[2t] + x[2t+1]) / 2) over ``pool_norm``; ``weight`` and ``bias`` as torch.nn.LayerNorm.

    Args:
        width: D, the last axis of x.
        eps: added to the biased variance.
        device, dtype: of the parameters.
        impl: as ``pool_norm`` takes it.

    Returns:
        Called with x [..., S, D]: [..., S // 2, D]. Called with packed x [T, D] and ``cu_seqlens``: the rows of each
        sequence. ``total`` and ``rote`` as ``pool_norm`` takes them.

    Raises:
        ValueError: what ``pool_norm`` raises.
    """

    def __init__(self, width: int, eps: float = 1e-5, device=None, dtype=None, *, impl: str = "auto"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(width, device=device, dtype=dtype))
        self.eps, self.impl = eps, impl

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None, *, total: int | None = None, rote=None) -> Tensor:
        options = {"cu_seqlens": cu_seqlens, "total": total, "rote": rote}
        return pool_norm(x, self.weight, self.bias, eps=self.eps, impl=self.impl, **options)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"
