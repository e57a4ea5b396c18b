"""This process among the ranks of a run: started by torchrun, or alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# What torchrun sets, and what holds without it.
ENVIRONMENT = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


@dataclass(frozen=True)
class Process:
    """One rank.

    Attributes:
        rank: 0 .. world − 1.
        world: number of ranks.
        local_rank: number of this rank on its machine.
        device: where its tensors live.
        group: whether there is a process group; a run of one rank needs none.
        store: what the ranks of a process group share besides it; None for a rank alone.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    group: bool
    store: dist.Store | None = field(default=None, compare=False, repr=False)


def start(device: str | torch.device = "auto", *, group: bool = False, minutes: float = 10.0) -> Process:
    """Joins the ranks that torchrun started; without torchrun this is the only rank.

    Args:
        device: "auto" takes the GPU of the local rank where there is one, and else the CPU.
        group: make a process group of one rank too, as sharded weights need.
        minutes: how long a collective waits for the others. Over gloo a peer that dies is noticed at once; this is
            for one that hangs.

    Raises:
        ValueError: a device that is not there.
    """
    rank, world, local_rank = (int(os.environ.get(name, n)) for name, n in ENVIRONMENT.items())
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"rank {rank} wants {device}, but this machine has {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
    store = None
    if world > 1 or group:
        # The CPU group carries objects and checkpoints, beside the GPU's collectives.
        backend, patience = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timedelta(minutes=minutes)
        if world > 1:
            store, _, _ = next(dist.rendezvous("env://", timeout=patience))
            # Where torchrun keeps the store, it outlives the ranks: those it starts again must not read old words.
            store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        shared = store or dist.HashStore()
        dist.init_process_group(backend, timeout=patience, store=shared, rank=rank, world_size=world)
    return Process(rank, world, local_rank, device, world > 1 or group, store)


def stop() -> None:
    """Leaves the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over(tensor: Tensor) -> Tensor:
    """Σ over the ranks of a tensor that all of them have; the tensor itself stays as it is."""
    total = tensor.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def barrier() -> None:
    """Waits until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: Any, source: int = 0) -> Any:
    """What rank ``source`` has, on every rank; anything that pickles."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, source, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """What every rank has, on every rank; anything that pickles."""
    if not dist.is_initialized():
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
