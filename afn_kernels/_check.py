"""Argument checks shared by the ops. Each raises ValueError with the offending numbers, before any work."""

import itertools

import torch

from afn_kernels._library import plain


def same_dtype_and_device(op: str, **tensors: torch.Tensor) -> None:
    """Every tensor shares the first one's dtype and device."""
    (first_name, first), *rest = tensors.items()
    if not first.is_floating_point():
        raise ValueError(f"{op}: {first_name} is {first.dtype}, expected a floating dtype")
    for name, tensor in rest:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} is {tensor.dtype} on {tensor.device}, {first_name} is {first.dtype} on {first.device}"
            )


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
    """Whether values can be looked at for nothing: on the CPU, not fake, and not while torch.compile traces."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and plain(x)


def cu_seqlens(op: str, name: str, cu: torch.Tensor, total: int) -> None:
    """int32 [N + 1], from 0 to ``total``, never falling. Values are read only on the CPU, where that is free."""
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


def last_dim(op: str, name: str, tensor: torch.Tensor, size: int) -> None:
    """A one-dimensional parameter of the given size."""
    if tensor.shape != (size,):
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected ({size},)")


def same_as(op: str, name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Same shape, dtype and device."""
    same_dtype_and_device(op, **{other_name: other, name: tensor})
    if tensor.shape != other.shape:
        raise ValueError(f"{op}: {name} is {tuple(tensor.shape)}, {other_name} is {tuple(other.shape)}")
