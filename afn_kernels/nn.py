"""Modules over the ops, for people who build their own model.

Parameters, defaults, initialisation and state-dict keys are those of the PyTorch module of the same name where there
is one. Each takes ``impl=`` as its op does, and a parameter has the dtype of the input: cast the whole module.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_kernels.layer_norm import layer_norm
from afn_kernels.linear_cross_entropy import linear_cross_entropy, linear_logprob
from afn_kernels.log_mel import log_mel
from afn_kernels.pool_norm import pool_norm
from afn_kernels.rms_norm import rms_norm
from afn_kernels.rote import rote
from afn_kernels.swiglu import swiglu

__all__ = [
    "AudioFrontEnd",
    "LayerNorm",
    "LinearCrossEntropy",
    "PooledNorm",
    "RMSNorm",
    "RotaryTimeEmbedding",
    "SwiGLU",
]


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
        if weight is None:
            weight = rows.new_ones(rows.shape[-1])
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
        weight = rows.new_ones(rows.shape[-1]) if weight is None else weight
        bias = rows.new_zeros(rows.shape[-1]) if bias is None else bias
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


class RotaryTimeEmbedding(nn.Module):
    """Rotates features by a phase that grows with time, φ = −2π t · position / period · f_k: a module over ``rote``.

    It has no parameters and no buffers.

    Args:
        options: ``rotary_dim``, ``theta``, ``period``, ``window_factor``, ``frame_factor``, ``seconds_per_frame``,
            ``frames_per_window``, ``phase_dtype`` and ``impl``, as ``rote`` takes them.

    Returns:
        Called with x [..., D] and integers ``window`` and ``frame`` [...]: x rotated, same shape and dtype.

    Raises:
        ValueError: what ``rote`` raises; an option that it does not have.
    """

    def __init__(self, **options):
        super().__init__()
        known = set(rote.__kwdefaults__)
        if not options.keys() <= known:
            raise ValueError(f"rote has no option {sorted(options.keys() - known)}; it has {sorted(known)}")
        self.options = options

    def forward(self, x: Tensor, window: Tensor, frame: Tensor) -> Tensor:
        if window.shape != x.shape[:-1] or frame.shape != x.shape[:-1]:
            shapes = f"window {list(window.shape)}, frame {list(frame.shape)}"
            raise ValueError(f"{shapes}; expected one of each for every row of x {list(x.shape)}")
        return rote(x.reshape(-1, x.shape[-1]), window.flatten(), frame.flatten(), **self.options).view(x.shape)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


class SwiGLU(nn.Module):
    """y = W_down (silu(W_gate x) · W_up x): the MLP of Llama and Qwen2, with their keys, over ``swiglu``.

    Args:
        width: D, the last axis of x and y.
        hidden: D', between the projections.
        bias: whether the three projections have biases.
        device, dtype: of the parameters.
        impl: as ``swiglu`` takes it.

    Returns:
        Called with x [..., D]: [..., D].

    Raises:
        ValueError: what ``swiglu`` raises.
    """

    def __init__(self, width: int, hidden: int, bias: bool = False, device=None, dtype=None, *, impl: str = "auto"):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias, device, dtype)
        self.up_proj = nn.Linear(width, hidden, bias, device, dtype)
        self.down_proj = nn.Linear(hidden, width, bias, device, dtype)
        self.impl = impl

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), impl=self.impl))


class LinearCrossEntropy(nn.Module):
    """loss = CrossEntropyLoss(W h, labels) without the logits: a head and its loss, over ``linear_cross_entropy``.

    ``weight`` is initialised as that of torch.nn.Linear(width, classes, bias=False) and has its key; assign another
    module's parameter to tie it. The reductions are those of torch.nn.CrossEntropyLoss in float32, except that the
    mean over no supervised row is 0, not NaN.

    Args:
        width: D, features of a hidden state.
        classes: V, rows of ``weight``.
        ignore_index: label of rows without supervision.
        reduction: "mean" over supervised rows, "sum", or "none": one loss per label, 0 where it is ignored.
        z_loss: as ``linear_cross_entropy`` takes it; not with "none".
        device, dtype: of the weight.
        impl: as ``linear_cross_entropy`` takes it.

    Returns:
        Called with hidden [..., D], shifted against labels [...]: a scalar, or with "none" the shape of the labels.

    Raises:
        ValueError: what ``linear_cross_entropy`` raises; labels of another shape; another reduction.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        ignore_index: int = -100,
        reduction: str = "mean",
        z_loss: float = 0.0,
        device=None,
        dtype=None,
        *,
        impl: str = "auto",
    ):
        if reduction not in ("mean", "sum", "none") or (z_loss and reduction == "none"):
            raise ValueError(f"reduction={reduction!r} with z_loss={z_loss}; it is mean, sum, or none without z_loss")
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.ignore_index, self.reduction, self.z_loss, self.impl = ignore_index, reduction, z_loss, impl

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        if labels.shape != hidden.shape[:-1]:
            raise ValueError(f"labels are {list(labels.shape)}, hidden is {list(hidden.shape)}")
        rows, targets = hidden.reshape(-1, hidden.shape[-1]), labels.flatten()
        if self.reduction == "none":
            ignored = targets == self.ignore_index
            logprob = linear_logprob(rows, self.weight, targets.masked_fill(ignored, 0), impl=self.impl)
            return -logprob.masked_fill(ignored, 0.0).view(labels.shape)
        options = {"ignore_index": self.ignore_index, "reduction": self.reduction, "z_loss": self.z_loss}
        return linear_cross_entropy(rows, self.weight, targets, impl=self.impl, **options)

    def extra_repr(self) -> str:
        classes, width = self.weight.shape
        return f"{width}, {classes}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"


class AudioFrontEnd(nn.Module):
    """y = log_mel(pcm), and with ``width`` y = GELU(conv2(GELU(conv1(log_mel(pcm)))))ᵀ, as Whisper's encoder begins.

    Args:
        n_mels: 128 or 80.
        width: D of the convolutions ``conv1`` and ``conv2``, whose keys and initialisation are those of
            transformers' WhisperEncoder; None has no convolutions and no parameters.
        out_dtype: dtype of the features without convolutions; with them it is that of ``conv1.weight``.
        device, dtype: of the parameters.
        impl: as ``log_mel`` takes it.

    Returns:
        Called with pcm [B, T] float32 in [−1, 1] or int16 at 16 kHz, T a multiple of 160: [B, n_mels, T / 160], or
        with ``width`` [B, ⌈T / 320⌉, D].

    Raises:
        ValueError: what ``log_mel`` raises; ``out_dtype`` together with ``width``.
    """

    def __init__(
        self,
        n_mels: int = 128,
        width: int | None = None,
        out_dtype: torch.dtype | None = None,
        device=None,
        dtype=None,
        *,
        impl: str = "auto",
    ):
        if width is not None and out_dtype is not None:
            raise ValueError(f"out_dtype={out_dtype} has no meaning with width={width}: use dtype")
        super().__init__()
        self.n_mels, self.out_dtype, self.impl = n_mels, out_dtype or torch.float32, impl
        self.conv1 = self.conv2 = None
        if width is not None:
            self.conv1 = nn.Conv1d(n_mels, width, 3, padding=1, device=device, dtype=dtype)
            self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1, device=device, dtype=dtype)

    def forward(self, pcm: Tensor) -> Tensor:
        if self.conv1 is None:
            return log_mel(pcm, n_mels=self.n_mels, out_dtype=self.out_dtype, impl=self.impl)
        mel = log_mel(pcm, n_mels=self.n_mels, out_dtype=self.conv1.weight.dtype, impl=self.impl)
        return F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"n_mels={self.n_mels}"
