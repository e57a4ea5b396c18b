"""A head and its loss."""

import math

import torch
from torch import Tensor, nn

from afn_kernels.linear_cross_entropy import linear_cross_entropy, linear_logprob


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
