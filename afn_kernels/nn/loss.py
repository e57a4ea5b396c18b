"""A head and its loss."""

import math

import torch
from torch import Tensor, nn

from afn_kernels import _check
from afn_kernels.linear_cross_entropy import linear_cross_entropy


class LinearCrossEntropy(nn.Module):
    """loss = CrossEntropyLoss(W h + b, labels) without the logits: a head and its loss, over ``linear_cross_entropy``.

    Parameters are initialised as those of torch.nn.Linear(width, classes, bias) and have their keys; assign another
    module's weight to tie it. Reductions and smoothing are those of torch.nn.CrossEntropyLoss in float32, except that
    the mean over no supervised row is 0, not NaN. Parameters may be float32 beside 16-bit hidden states.

    It is no torch.nn.Linear, because a LoRA around it would be added to the loss: give peft ``target_parameters``
    ("head.weight") or ``modules_to_save``, not ``target_modules``.

    Args:
        width: D, features of a hidden state.
        classes: V, rows of ``weight``.
        ignore_index: label of rows without supervision.
        reduction: "mean" over supervised rows, "sum", or "none": one loss per label, 0 where it is ignored.
        z_loss: as ``linear_cross_entropy`` takes it.
        device, dtype: of the parameters.
        bias: adds a learnt bias to the logits.
        label_smoothing, softcap: as ``linear_cross_entropy`` takes them.
        impl: as ``linear_cross_entropy`` takes it.

    Returns:
        Called with hidden [..., D], shifted against labels [...]: a scalar, or with "none" the shape of the labels.

    Raises:
        ValueError: what ``linear_cross_entropy`` raises; labels of another shape; an option out of range.
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
        bias: bool = False,
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        impl: str = "auto",
    ):
        _check.loss_options("LinearCrossEntropy", reduction, label_smoothing, softcap)
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(classes, device=device, dtype=dtype)) if bias else None
        self.ignore_index, self.reduction, self.z_loss, self.impl = ignore_index, reduction, z_loss, impl
        self.label_smoothing, self.softcap = label_smoothing, softcap
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters again, as torch.nn.Linear does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = self.weight.shape[1] ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        if labels.shape != hidden.shape[:-1]:
            raise ValueError(f"labels are {list(labels.shape)}, hidden is {list(hidden.shape)}")
        loss = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            self.weight,
            labels.flatten(),
            bias=self.bias,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            softcap=self.softcap,
            z_loss=self.z_loss,
            impl=self.impl,
        )
        return loss.view(labels.shape) if self.reduction == "none" else loss

    def extra_repr(self) -> str:
        classes, width = self.weight.shape
        on = {"z_loss": self.z_loss, "label_smoothing": self.label_smoothing, "softcap": self.softcap}
        on["bias"] = self.bias is not None
        more = "".join(f", {name}={value}" for name, value in on.items() if value)
        return f"{width}, {classes}, ignore_index={self.ignore_index}, reduction={self.reduction!r}{more}"
