"""Cross-entropy from logits, for models that have them anyway."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(logits, labels, **_) -> str:
    return _triton.supports(logits, labels)


OP = Op(
    "cross_entropy",
    (
        _triton.implementation(
            "afn_kernels.cross_entropy.boundary:cross_entropy",
            _supports,
            why="one read of the logits in the forward, one read and the gradient's write in the backward",
        ),
        Impl("reference", "afn_kernels.cross_entropy.reference:cross_entropy", why="plain PyTorch"),
    ),
)


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    impl: str = "auto",
) -> torch.Tensor:
    """loss = lse − (1 − ε) x[label] − ε mean(x) + z_loss · lse² with lse = logsumexp(x), ε = label_smoothing, float32.

    x are the logits, or c · tanh(logits / c) with a ``softcap`` c. Computing is in float32 whatever their dtype. The
    "triton" implementation keeps two numbers per row for the backward and allocates there nothing but the gradient.
    Where logits would be made for the loss alone, ``linear_cross_entropy`` spares them.

    Args:
        logits: [..., V], any floating dtype.
        labels: [...] int64, in 0..V−1 or ``ignore_index``.
        ignore_index: label of rows without supervision, whose loss and gradient are 0.
        label_smoothing: ε in 0..1: how much of the target is spread evenly over the classes, as
            torch.nn.CrossEntropyLoss has it.
        softcap: c > 0, as Gemma 2 caps its logits; None caps nothing.
        z_loss: weight of lse², which keeps the logits from drifting.
        reduction: "mean" over supervised rows (0 when there are none), "sum", or "none": one loss per row.
        impl: "auto" or the name of an implementation.

    Returns:
        A float32 scalar, with "none" the shape of the labels (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit; an option out of range; a label out of range, with its row (checked on the
            CPU; on a GPU the "triton" implementation then returns NaN for that row).

    Source: label smoothing, Szegedy et al., 2016, arXiv:1512.00567; soft-capping, Gemma Team, 2024, arXiv:2408.00118;
    z-loss, Chowdhery et al., 2022, arXiv:2204.02311, section 5.
    """
    _check.same_dtype_and_device("cross_entropy", logits=logits)
    _check.are_tensors("cross_entropy", labels=labels)
    if not logits.dim() or labels.shape != logits.shape[:-1]:
        raise _check.misfit("cross_entropy", logits=(logits, "... V"), labels=(labels, "..."))
    _check.loss_options("cross_entropy", reduction, label_smoothing, softcap)
    _check.labels("cross_entropy", labels, logits, logits.shape[-1], ignore_index)
    options = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "softcap": None if softcap is None else float(softcap),
        "z_loss": z_loss,
        "reduction": reduction,
    }
    return OP.choose(impl, logits, labels, **options)(logits, labels, **options)
