"""The language-model head and its loss in one op, on supervised rows only."""

import torch

from afn_kernels import _check
from afn_kernels._registry import Impl, Op

OP = Op(
    "linear_cross_entropy",
    (Impl("reference", "afn_kernels.linear_cross_entropy.reference:linear_cross_entropy", why="plain PyTorch"),),
)
OP_LOGPROB = Op(
    "linear_logprob",
    (Impl("reference", "afn_kernels.linear_cross_entropy.reference:linear_logprob", why="plain PyTorch"),),
)


def _check_arguments(op: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, ignore: int | None):
    _check.same_dtype_and_device(op, hidden=hidden, weight=weight)
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"{op}: hidden is {tuple(hidden.shape)}, weight is {tuple(weight.shape)}")
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"{op}: labels are {labels.dtype} {tuple(labels.shape)} for {hidden.shape[0]} rows")
    if labels.device.type == "cpu":
        bad = (labels < 0) | (labels >= weight.shape[0])
        if ignore is not None:
            bad &= labels != ignore
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"{op}: label {int(labels[row])} at row {row} is outside 0..{weight.shape[0] - 1}")


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    impl: str = "auto",
) -> torch.Tensor:
    """loss = mean over supervised rows of logsumexp(W h) − (W h)[label], float32.

    Rows whose label is ``ignore_index`` are never multiplied with the weight.

    Args:
        hidden: [T, D], any floating dtype; the caller has already shifted it against the labels.
        weight: [V, D], same dtype.
        labels: [T] int64, in 0..V−1 or ``ignore_index``.
        ignore_index: label of rows without supervision.
        reduction: "mean" over supervised rows (0 when there are none) or "sum".
        impl: "auto" or the name of an implementation.

    Returns:
        A float32 scalar (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit; a label out of range, with its row (checked on the CPU).
    """
    _check_arguments("linear_cross_entropy", hidden, weight, labels, ignore_index)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"linear_cross_entropy: reduction is {reduction!r}, expected 'mean' or 'sum'")
    options = {"ignore_index": ignore_index, "reduction": reduction}
    return OP.choose(impl, hidden, weight, labels, **options)(hidden, weight, labels, **options)


def linear_logprob(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, impl: str = "auto"
) -> torch.Tensor:
    """log p(target) = (W h)[target] − logsumexp(W h) for every row, float32.

    Args:
        hidden: [T, D], any floating dtype.
        weight: [V, D], same dtype.
        targets: [T] int64 in 0..V−1.
        impl: "auto" or the name of an implementation.

    Returns:
        [T] float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit; a target out of range, with its row (checked on the CPU).
    """
    _check_arguments("linear_logprob", hidden, weight, targets, None)
    return OP_LOGPROB.choose(impl, hidden, weight, targets)(hidden, weight, targets)
