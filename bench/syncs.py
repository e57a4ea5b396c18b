"""How often the host waits for the device in a forward and backward of the supervised loss, counted without a GPU.

    python -m bench.syncs --out bench/results/cpu/syncs.jsonl

A tiny model runs on a CPU behind tensors that say they are on another device. What a GPU would make the host wait for
is counted as it passes: values read back (``item``, ``nonzero``, an index by a mask, copies to the host) and copies
from the host's pageable memory. Kernels themselves run as one op here: what happens inside of them is not seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from afn_distributed.comm import in_threads
from afn_distributed.hybrid import SequenceParallel
from afn_model import AFNext, AFNextProcessor
from afn_model.prompt.batch import Batch

DEVICE = torch.device("lazy")  # autograd computes its gradients in the caller's thread, as for a CPU
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "unique_consecutive")
FOLDERS = ("afn_model/", "distributed/", "afn_kernels/")
ROOT = Path(__file__).parents[1]
SPLITS = {"one rank": None, "ulysses 2, ring 2": (2, 2), "ulysses 3, uneven heads": (3, 1), "ring 4": (1, 4)}


class OnDevice(Tensor):
    """A CPU tensor that says it is on ``DEVICE``."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        facts = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return Tensor._make_wrapper_subclass(cls, values.shape, **facts, device=DEVICE)  # pyright: ignore

    def __init__(self, values: Tensor):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return ran(func, args, kwargs or {})


def ran(func: Any, args: tuple, kwargs: dict) -> Any:
    """The op on the values; its results are where its arguments are, or where it is asked to make them."""
    found = [x for x in leaves((args, kwargs)) if isinstance(x, OnDevice)]
    wanted = kwargs.get("device")
    here = DEVICE.type == torch.device(wanted).type if wanted is not None else bool(found)
    kwargs = kwargs | ({"device": torch.device("cpu")} if wanted is not None else {})
    name = func.overloadpacket.__name__
    if name == "_to_copy" and wanted is None:
        here = bool(found)
    plain = func(*tree_map(values_of, args), **tree_map(values_of, kwargs))
    if name.endswith("_") and found and isinstance(args[0], Tensor):
        return args[0]
    if name == "_local_scalar_dense" or not here:
        return plain
    return tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, plain)


def values_of(x: Any) -> Any:
    return x.values if isinstance(x, OnDevice) else x


def leaves(tree: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(tree)


class Waits(TorchDispatchMode):
    """Counts, by the line of this project that is behind each, what the host would wait for."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if reason := waits(func, args, kwargs):
            self.found[f"{reason}: {line()}"] += 1
        return ran(func, args, kwargs)


def waits(func: Any, args: tuple, kwargs: dict) -> str:
    """Why an op makes the host wait; nothing where it does not."""
    name = func.overloadpacket.__name__
    tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, OnDevice)]
    away = [x for x in tensors if not isinstance(x, OnDevice)]
    if name in ("_to_copy", "copy_"):
        wanted = kwargs.get("device")
        target = DEVICE.type if name == "copy_" and isinstance(args[0], OnDevice) else ""
        target = torch.device(wanted).type if wanted is not None else target
        if here and target == "cpu" or (name == "copy_" and here and not target):
            return "copy to the host"
        unasked = not kwargs.get("non_blocking") and not (name == "copy_" and len(args) > 2 and args[2])
        return "copy from the host" if target == DEVICE.type and away and unasked else ""
    if not here:
        return ""
    if name in READS:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return name
    indices = [x for x in leaves(args[1:2]) if isinstance(x, Tensor)] if name in ("index", "index_put_") else []
    if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
        return "index by a mask"
    if any(not isinstance(x, OnDevice) for x in indices):
        return "index on the host"
    assert all(x.dim() == 0 for x in away), f"{func}: a GPU computes with no tensor of the host"
    return ""


def line() -> str:
    """The innermost line of the project's packages on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        name = path.split("/", 1)[0] if not path.startswith("/") else next((f for f in FOLDERS if f"/{f}" in path), "")
        if name:
            return f"{name}{path.rsplit(name, 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"


def to_device(model: nn.Module) -> nn.Module:
    """The model with its parameters on ``DEVICE``, in place."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.data), parameter.requires_grad)
    return model
