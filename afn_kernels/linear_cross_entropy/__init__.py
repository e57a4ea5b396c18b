"""The language-model head and its loss in one op, on supervised rows only."""

import torch

from afn_kernels import _autocast, _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(hidden, weight, labels, *, bias=None, **_) -> str:
    return _triton.supports(hidden, weight, labels, bias)


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


def _check_arguments(op: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias, ignore):
    _check.same_dtype_and_device(op, hidden=hidden)
    _check.are_tensors(op, labels=labels)
    _check_parameter(op, "weight", weight, hidden)
    fits = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or labels.shape != hidden.shape[:1]:
        raise _check.misfit(op, hidden=(hidden, "T D"), weight=(weight, "V D"), labels=(labels, "T"))
    if bias is not None:
        _check_parameter(op, "bias", bias, hidden)
        _check.last_dim(op, "bias", bias, weight.shape[0])
    _check.labels(op, labels, hidden, weight.shape[0], ignore)


def _check_parameter(op: str, name: str, x: torch.Tensor, hidden: torch.Tensor):
    """Of the dtype of the hidden states, or float32 beside 16 bits."""
    _check.alike(op, **{name: x})
    if x.dtype == torch.float32 and hidden.dtype.itemsize == 2 and x.device == hidden.device:
        return
    if x.dtype != hidden.dtype or x.device != hidden.device:
        or_wide = " or torch.float32" if hidden.dtype.itemsize == 2 else ""
        expected = f"expected {hidden.dtype}, as hidden,{or_wide} on {hidden.device}"
        raise ValueError(f"{op}: {name} is {x.dtype} on {x.device}, {expected}: cast it or hidden")


def _cast(*tensors: torch.Tensor | None) -> tuple:
    """Under autocast hidden states are in its dtype and so is the product; float32 parameters are cast inside."""
    if not isinstance(tensors[0], torch.Tensor) or not _autocast.enabled(tensors[0]):
        return tensors
    low = _autocast.lower(*tensors)
    return low[0], *(
        b if a is None or a.dtype != torch.float32 else a for a, b in zip(tensors[1:], low[1:], strict=True)
    )


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
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    supervised: int | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """loss = ``cross_entropy`` of x = W h + b: lse − (1 − ε) x[label] − ε mean(x) + z_loss · lse², lse = logsumexp(x).

    ε is ``label_smoothing``; with a ``softcap`` c, x = c · tanh((W h + b) / c). The product has the dtype of ``hidden``
    and all after it is float32. Rows whose label is ``ignore_index`` are never multiplied with the weight.

    Where a gradient is wanted, the "triton" implementation computes it in the forward, one chunk of rows at a time, so
    that only the logits of a chunk are in memory: below 0.5 GB besides the gradients for 131,072 rows of 3,584 in 16
    bits and 151,672 classes. The weight's gradient is summed in float32 within a chunk (1,152 rows there) and rounded
    once per chunk. With "none" the backward computes the logits again. For the loss alone call it under
    ``torch.no_grad()``.

    A float32 weight beside 16-bit ``hidden`` is copied to their dtype while the call runs, and its gradient is float32:
    chunks add up without rounding. Under torch.autocast ``hidden`` is cast to its dtype, as for a linear layer.

    Args:
        hidden: [T, D], any floating dtype; the caller has already shifted it against the labels.
        weight: [V, D], same dtype, or float32 beside 16 bits.
        labels: [T] int64, in 0..V−1 or ``ignore_index``.
        bias: [V], as the weight; None adds nothing.
        ignore_index: label of rows without supervision.
        reduction: "mean" over supervised rows (0 when there are none), "sum", or "none": one loss per row, 0 without
            supervision; also of the z-loss.
        label_smoothing: ε in 0..1, as torch.nn.CrossEntropyLoss has it.
        softcap: c > 0, as Gemma 2 caps its logits; None caps nothing.
        z_loss: weight of lse², which keeps the logits from drifting.
        supervised: how many labels are not ``ignore_index``, where the caller knows. Without it that number is read
            back from the GPU (with "none" in the backward too), which is the op's only host synchronisation.
        impl: "auto" or the name of an implementation.

    Returns:
        A float32 scalar, [T] with "none" (float64 for float64 inputs). Gradients have the dtypes of their inputs.

    Raises:
        ValueError: shapes or dtypes that do not fit; an option out of range; a label out of range, with its row, or a
            wrong ``supervised`` (both checked on the CPU; on a GPU the "triton" implementation then returns NaN).

    Source: z-loss, Chowdhery et al., 2022, arXiv:2204.02311, section 5; see ``cross_entropy`` for the other options.
    """
    hidden, weight, bias = _cast(hidden, weight, bias)
    _check_arguments("linear_cross_entropy", hidden, weight, labels, bias, ignore_index)
    _check.loss_options("linear_cross_entropy", reduction, label_smoothing, softcap)
    if supervised is not None:
        _check_supervised(supervised, labels, ignore_index)
    options = {
        "bias": bias,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "softcap": None if softcap is None else float(softcap),
        "z_loss": z_loss,
        "supervised": supervised,
    }
    return OP.choose(impl, hidden, weight, labels, **options)(hidden, weight, labels, **options)


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """log p(target) = x[target] − logsumexp(x) for every row, float32, with the logits x of ``linear_cross_entropy``.

    The backward of the "triton" implementation computes the logits again, one chunk of rows at a time, because the
    upstream gradient of a row is known only then. Memory, rounding, dtypes and autocast are as for
    ``linear_cross_entropy``.

    Args:
        hidden: [T, D], any floating dtype.
        weight: [V, D], same dtype, or float32 beside 16 bits.
        targets: [T] int64 in 0..V−1.
        bias: [V], as the weight; None adds nothing.
        softcap: c > 0: x = c · tanh((W h + b) / c); None caps nothing.
        impl: "auto" or the name of an implementation.

    Returns:
        [T] float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes or dtypes that do not fit; a target out of range, with its row (checked on the CPU; on a GPU
            the "triton" implementation returns NaN for that row).
    """
    hidden, weight, bias = _cast(hidden, weight, bias)
    _check_arguments("linear_logprob", hidden, weight, targets, bias, None)
    _check.loss_options("linear_logprob", "none", 0.0, softcap)
    options = {"bias": bias, "softcap": None if softcap is None else float(softcap)}
    return OP_LOGPROB.choose(impl, hidden, weight, targets, **options)(hidden, weight, targets, **options)
