"""torch.autocast for the ops: casts what its lists cast for PyTorch's own, and is off inside an implementation."""

from collections.abc import Callable
from typing import Any

import torch


def enabled(x: torch.Tensor) -> bool:
    """Whether a call on ``x`` is made under ``torch.autocast`` of its device."""
    kind = x.device.type
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)


def lower(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's dtype, as of linear, matmul and scaled_dot_product_attention; float64 stays."""
    first = _first(tensors)
    if first is None or not enabled(first):
        return tensors
    return _cast(tensors, torch.get_autocast_dtype(first.device.type))


def widest(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors in the widest dtype among them, as of torch.cat and index_put."""
    first = _first(tensors)
    if first is None or not enabled(first):
        return tensors
    dtype = first.dtype
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype) if isinstance(x, torch.Tensor) else dtype
    return _cast(tensors, dtype)


def full(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The tensors in float32, as of layer_norm on a GPU, whose list is longer than that of a CPU; float64 stays."""
    first = _first(tensors)
    if first is None or not first.is_cuda or not enabled(first):
        return tensors
    return _cast(tensors, torch.float32)


def _first(tensors: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    for x in tensors:  # torch.compile of PyTorch 2.8 does not trace next() of a generator
        if isinstance(x, torch.Tensor):
            return x
    return None


def _cast(tensors: tuple[torch.Tensor | None, ...], dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
    return tuple(x.to(dtype) if isinstance(x, torch.Tensor) and _castable(x) else x for x in tensors)


def _castable(x: torch.Tensor) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def outside(function: Callable, device: torch.device) -> Callable:
    """``function`` with autocast off: PyTorch's ops in it compute in the dtypes that they are given."""

    def run(*args, **kwargs):
        with torch.autocast(device.type, enabled=False):
            return function(*args, **kwargs)

    return run
