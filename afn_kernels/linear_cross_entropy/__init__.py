"""The language-model head and its loss in one op, on supervised rows only."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(hidden, weight, labels, **_) -> str:
    return _triton.supports(hidden, weight, labels)


OP = Op(
    "linear_cross_entropy",
    (
        _triton.implementation(
            "afn_kernels.linear_cross_entropy.boundary:linear_cross_entropy",
            _supports,
            why="one chunk of logits in memory, three matrix products in all",
        ),
        Impl("reference", "afn_kernels.linear_cross_entropy.reference:linear_cross_entropy", why="plain PyTorch"),
    ),
)
OP_LOGPROB = Op(
    "linear_logprob",
    (
        _triton.implementation(
            "afn_kernels.linear_cross_entropy.boundary:linear_logprob",
            _supports,
            why="no logits in memory in the forward, a chunk of them in the backward",
        ),
        Impl("reference", "afn_kernels.linear_cross_entropy.reference:linear_logprob", why="plain PyTorch"),
    ),
)


def _check_arguments(op: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, ignore: int | None):
    _check.same_dtype_and_device(op, hidden=hidden, weight=weight)
    fits = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or labels.shape != hidden.shape[:1]:
        raise _check.misfit(op, hidden=(hidden, "T D"), weight=(weight, "V D"), labels=(labels, "T"))
    if labels.dtype != torch.int64 or labels.device != hidden.device:
        raise ValueError(f"{op}: labels are {labels.dtype} on {labels.device}, expected int64 on {hidden.device}")
    if _check.readable(labels):
        bad = (labels < 0) | (labels >= weight.shape[0])
        if ignore is not None:
            bad &= labels != ignore
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"{op}: label {int(labels[row])} at row {row} is outside 0..{weight.shape[0] - 1}")


def _check_supervised(supervised: int, labels: torch.Tensor, ignore_index: int):
    if not 0 <= supervised <= len(labels):
        raise ValueError(f"linear_cross_entropy: supervised is {supervised} for {len(labels)} rows")
    if _check.readable(labels):
        counted = int((labels != ignore_index).sum())
        if counted != supervised:
            raise ValueError(f"linear_cross_entropy: supervised is {supervised}, but {counted} rows have a label")


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
    supervised: int | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """loss = mean over supervised rows of lse − (W h)[label] + z_loss · lse² with lse = logsumexp(W h), float32.

    Rows whose label is ``ignore_index`` are never multiplied with the weight. Where a gradient is wanted, the "triton"
    implementation computes it in the forward, one chunk of rows at a time, so that only the logits of a chunk are in
    memory: below 0.5 GB besides the gradients for 131,072 rows of 3,584 in 16 bits and 151,672 classes. The weight's
    gradient is summed in float32 within a chunk (1,152 rows there) and rounded once per chunk. For the loss alone call
    it under ``torch.no_grad()``.

    Args:
        hidden: [T, D], any floating dtype; the caller has already shifted it against the labels.
        weight: [V, D], same dtype.
        labels: [T] int64, in 0..V−1 or ``ignore_index``.
        ignore_index: label of rows without supervision.
        reduction: "mean" over supervised rows (0 when there are none) or "sum"; also of the z-loss.
        z_loss: weight of lse², which keeps the logits from drifting.
        supervised: how many labels are not ``ignore_index``, where the caller knows. Without it that number is read
            back from the GPU, which is the op's only host synchronisation.
        impl: "auto" or the name of an implementation.

    Returns:
        A float32 scalar (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit; a label out of range, with its row, or a wrong ``supervised`` (both checked
            on the CPU; on a GPU the "triton" implementation then returns NaN).

    Source: z-loss, Chowdhery et al., 2022, arXiv:2204.02311, section 5.
    """
    _check_arguments("linear_cross_entropy", hidden, weight, labels, ignore_index)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"linear_cross_entropy: reduction is {reduction!r}, expected 'mean' or 'sum'")
    if supervised is not None:
        _check_supervised(supervised, labels, ignore_index)
    options = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "z_loss": z_loss,
        "supervised": supervised,
    }
    return OP.choose(impl, hidden, weight, labels, **options)(hidden, weight, labels, **options)


def linear_logprob(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, impl: str = "auto"
) -> torch.Tensor:
    """log p(target) = (W h)[target] − logsumexp(W h) for every row, float32.

    The backward of the "triton" implementation computes the logits again, one chunk of rows at a time, because the
    upstream gradient of a row is known only then. Memory and rounding are those of ``linear_cross_entropy``.

    Args:
        hidden: [T, D], any floating dtype.
        weight: [V, D], same dtype.
        targets: [T] int64 in 0..V−1.
        impl: "auto" or the name of an implementation.

    Returns:
        [T] float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit; a target out of range, with its row (checked on the CPU; on a GPU the
            "triton" implementation returns NaN for that row).
    """
    _check_arguments("linear_logprob", hidden, weight, targets, None)
    return OP_LOGPROB.choose(impl, hidden, weight, targets)(hidden, weight, targets)
