"""Argument checks shared by the ops. Each raises ValueError with the offending numbers, before any work."""

import itertools
import math

import torch

from afn_kernels._library import plain

_on_gpus = False


def check(on: bool = True) -> None:
    """Whether the ops read the values of a GPU's arguments too, to say what is wrong with them.

    On the CPU they always do: boundaries that do not cover the tokens, lengths and pages beyond a cache, labels beyond
    the classes and slots beyond its rows are each a ValueError. On a GPU looking waits for the device, so it is off,
    and what a call with such values gives is not defined. Turn it on to look for a fault. Nothing is read within
    torch.compile or while a CUDA graph is captured.

    Args:
        on: in this process, from now on.
    """
    global _on_gpus
    _on_gpus = bool(on)


def same_dtype_and_device(op: str, **tensors: torch.Tensor) -> None:
    """Every tensor shares the first one's dtype and device."""
    alike(op, **tensors)
    _floating(op, *next(iter(tensors.items())))


def _floating(op: str, name: str, x: torch.Tensor) -> None:
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise ValueError(f"{op}: {name} is {x.dtype}, expected a floating dtype of 16 bits or more")


def mixed(op: str, x: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """Parameters and residuals on the device of x, in its dtype or, where that has 16 bits, in float32."""
    alike(op, x=x)
    _floating(op, "x", x)
    if not x.dim():
        raise ValueError(f"{op}: x has no axes, expected [..., D]")
    dtypes = (x.dtype, torch.float32) if x.dtype.itemsize == 2 else (x.dtype,)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{op}: {name} is a {type(tensor).__name__}, expected a tensor")
        if tensor.dtype not in dtypes or tensor.device != x.device:
            found = f"{name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}"
            raise ValueError(f"{op}: {found}, expected {' or '.join(map(str, dtypes))} on {x.device}")


def alike(op: str, **tensors: torch.Tensor) -> None:
    """The same, of any dtype."""
    are_tensors(op, **tensors)
    first_name, first = next(iter(tensors.items()))
    dtype, device = first.dtype, first.device
    for name, tensor in tensors.items():
        if tensor.dtype != dtype or tensor.device != device:
            found = f"{name} is {tensor.dtype} on {tensor.device}, {first_name} is {first.dtype} on {first.device}"
            raise ValueError(f"{op}: {found}; cast or move one of them")


def beside(op: str, name: str, x: torch.Tensor, like: torch.Tensor) -> None:
    """A tensor on the device of another one."""
    are_tensors(op, **{name: x})
    if x.device != like.device:
        raise ValueError(f"{op}: {name} is on {x.device}, expected {like.device}, where the others are")


def integers(op: str, name: str, x: torch.Tensor) -> None:
    """Numbers without a fraction that may be negative: differences of unsigned ones would wrap."""
    if x.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"{op}: {name} is {x.dtype}, expected integers with a sign; cast it to int32")


def are_tensors(op: str, **given) -> None:
    """Nothing is a list, an array or None."""
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"{op}: {name} is a {type(x).__name__}, expected a tensor")


def misfit(op: str, **tensors: tuple[torch.Tensor, str]) -> ValueError:
    """The error of shapes that are not those named beside them, ``q=(q, "T H D")``. The op compares: that is faster."""
    found = ", ".join(f"{name} {tuple(x.shape)}" for name, (x, _) in tensors.items())
    wanted = ", ".join(f"[{axes.replace(' ', ', ')}]" for _, axes in tensors.values())
    return ValueError(f"{op}: the shapes {found} do not fit {wanted}")


def positions(op: str, x: torch.Tensor, like: torch.Tensor) -> None:
    """A position, float32 or float64, for every token of ``like``, and beside it."""
    beside(op, "positions", x, like)
    tokens = len(like)
    if x.shape != (tokens,) or x.dtype not in (torch.float32, torch.float64):
        hint = "" if x.dtype.is_floating_point else ", position_ids.flatten().float() for one"
        found = f"positions are {x.dtype} {tuple(x.shape)} for {tokens} tokens"
        raise ValueError(f"{op}: {found}, expected float32 or float64 [{tokens}]{hint}")


def inv_freq(op: str, x: torch.Tensor, pairs: int, device: torch.device) -> None:
    """A frequency, float32 or float64, for every pair: bfloat16 turns position 30,000 by another angle altogether."""
    are_tensors(op, inv_freq=x)
    last_dim(op, "inv_freq", x, pairs)
    if x.dtype not in (torch.float32, torch.float64):
        why = "model.bfloat16() and model.half() cast buffers too, and rounded frequencies turn long positions wrongly"
        raise ValueError(f"{op}: inv_freq is {x.dtype}, expected float32 or float64 ({why})")
    if x.device != device:
        raise ValueError(f"{op}: inv_freq is on {x.device}, q on {device}")


def slots(op: str, x: torch.Tensor, tokens: torch.Tensor) -> None:
    """The row of a cache, int64, that takes each of the tokens."""
    are_tensors(op, slots=x)
    if x.shape != tokens.shape[:1] or x.dtype != torch.int64 or x.device != tokens.device:
        found = f"slots are {x.dtype} {tuple(x.shape)} on {x.device}"
        raise ValueError(f"{op}: {found}, expected int64 [{len(tokens)}] on {tokens.device}")


def slots_within(op: str, x: torch.Tensor, rows: int) -> None:
    """No slot is past the rows of the cache; looked at only where that is free."""
    if readable(x) and x.numel() and int(x.max()) >= rows:
        raise ValueError(f"{op}: slot {int(x.max())} is past the {rows} rows of the cache")


def labels(op: str, x: torch.Tensor, like: torch.Tensor, classes: int, ignore: int | None) -> None:
    """int64 classes beside ``like``, below ``classes`` or ``ignore``; looked at only where that is free."""
    if x.dtype != torch.int64 or x.device != like.device:
        hint = "" if x.dtype.is_floating_point or x.device != like.device else ": labels.long()"
        raise ValueError(f"{op}: labels are {x.dtype} on {x.device}, expected int64 on {like.device}{hint}")
    if not readable(x):
        return
    bad = (x < 0) | (x >= classes)
    if ignore is not None:
        bad &= x != ignore
    if bad.any():
        row = int(bad.flatten().nonzero()[0])
        raise ValueError(f"{op}: label {int(x.flatten()[row])} at row {row} is outside 0..{classes - 1}")


def loss_options(op: str, reduction: str, label_smoothing: float, softcap: float | None) -> None:
    """Options of a loss within their ranges."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{op}: reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing is {label_smoothing}, expected 0 to 1")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"{op}: softcap is {softcap}, expected a finite number above 0, or None for no cap")


def cache_rows(op: str, name: str, cache: torch.Tensor) -> torch.Tensor:
    """A cache [..., Hk, D] as rows [R, Hk, D] in the same memory."""
    if cache.stride(-1) != 1 or (
        cache.dim() == 4 and cache.shape[0] > 1 and cache.stride(0) != cache.shape[1] * cache.stride(1)
    ):
        raise ValueError(f"{op}: {name} of strides {cache.stride()} is not one run of rows")
    return cache if cache.dim() == 3 else cache.view(cache.shape[0] * cache.shape[1], *cache.shape[2:])


def kernel_takes(tensors: tuple[torch.Tensor | None, ...], dtypes: tuple[torch.dtype, ...], *, cpu: bool) -> str:
    """Why a kernel does not take these tensors: where they are, or their dtype. Empty when it does; None is skipped."""
    here = [tensor for tensor in tensors if tensor is not None]
    for tensor in here:
        if tensor.device != here[0].device:
            return f"the tensors are on {here[0].device} and {tensor.device}"
        if tensor.device.type == "cpu" and not cpu:
            return "the tensors are on the CPU"
        if tensor.is_floating_point() and tensor.dtype not in dtypes:
            return f"{str(tensor.dtype).removeprefix('torch.')} is computed by the reference"
    return ""


def readable(x: torch.Tensor) -> bool:
    """Whether values can be looked at: on the CPU, or anywhere after ``check(True)``; not fake, not within a graph."""
    if x.device.type != "cpu" and not (_on_gpus and x.is_cuda and not torch.cuda.is_current_stream_capturing()):
        return False
    return not torch.compiler.is_compiling() and plain(x)


def cu_seqlens(op: str, name: str, cu: torch.Tensor, total: int, like: torch.Tensor | None = None) -> None:
    """int32 [N + 1], from 0 to ``total``, never falling; beside ``like``. Read where that is free."""
    are_tensors(op, **{name: cu})
    if like is not None:
        beside(op, name, cu, like)
    if cu.dim() != 1 or cu.dtype != torch.int32 or cu.numel() < 1:
        raise ValueError(f"{op}: {name} must be int32 of shape [N + 1], got {cu.dtype} {tuple(cu.shape)}")
    if not readable(cu):
        return
    values = cu.tolist()
    if values[0] != 0 or values[-1] != total:
        raise ValueError(f"{op}: {name} runs from {values[0]} to {values[-1]}, expected 0 to {total}")
    for i, (a, b) in enumerate(itertools.pairwise(values)):
        if b < a:
            raise ValueError(f"{op}: {name} falls from {a} to {b} at sequence {i}")


def lengths_within(op: str, lengths: list[int], samples: int) -> None:
    """Every row has between none and all of its samples."""
    if lengths and not 0 <= min(lengths) <= max(lengths) <= samples:
        raise ValueError(f"{op}: lengths from {min(lengths)} to {max(lengths)} in rows of {samples} samples")


def last_dim(op: str, name: str, tensor: torch.Tensor, size: int) -> None:
    """A one-dimensional parameter of the given size."""
    alike(op, **{name: tensor})
    if tensor.shape != (size,):
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected ({size},)")


def same_as(op: str, name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor, check=None) -> None:
    """Same shape, dtype and device; ``check=alike`` where the dtype may be a narrow one."""
    both = isinstance(tensor, torch.Tensor) and isinstance(other, torch.Tensor)
    if not (both and tensor.dtype == other.dtype == torch.float32 and tensor.device == other.device):  # quickly
        (check or same_dtype_and_device)(op, **{other_name: other, name: tensor})
    same_shape(op, name, tensor, other_name, other)


def approximation(op: str, approximate: str) -> None:
    """How a GELU is computed."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"{op}: approximate is {approximate!r}, expected 'none' or 'tanh'")


def same_shape(op: str, name: str, tensor: torch.Tensor | None, other_name: str, other: torch.Tensor) -> None:
    """The same shape; None has any."""
    if tensor is not None and tensor.shape != other.shape:
        raise ValueError(f"{op}: {name} is {tuple(tensor.shape)}, {other_name} is {tuple(other.shape)}")
