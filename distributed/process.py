"""This process among the ranks of a run: started by torchrun, or alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Environment variables of torchrun, and their values without it.
ENVIRONMENT = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


@dataclass(frozen=True)
class Process:
    """One rank.

    Attributes:
        rank: 0 .. world_size − 1.
        world_size: number of ranks.
        local_rank: number of this rank on its machine.
        device: where its tensors are.
        group: whether there is a process group; a single rank does not need one.
        store: the key-value store of the ranks; None for a single rank.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    group: bool
    store: dist.Store | None = field(default=None, compare=False, repr=False)


def start(device: str | torch.device = "auto", *, group: bool = False, minutes: float = 10.0) -> Process:
    """Joins the ranks that torchrun started, or runs as the only rank if torchrun did not start this process.

    Args:
        device: "auto" is the GPU with the local rank's number if this machine has GPUs, otherwise the CPU.
        group: create a process group for a single rank too, which sharded weights need.
        minutes: time-out of collectives. gloo reports a peer that dies at once; the time-out is for a peer that hangs.

    Returns:
        This rank.

    Raises:
        ValueError: a GPU that this machine does not have.
    """
    rank, world_size, local_rank = (int(os.environ.get(name, n)) for name, n in ENVIRONMENT.items())
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"rank {rank} wants {device}, but this machine has {torch.cuda.device_count()} GPUs")
        # Read when the context is made: FSDP's, NCCL's and the computation's streams are more than CUDA's 8 queues.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
        torch.cuda.set_device(device)
    store = None
    if world_size > 1 or group:
        # Objects and checkpoints go through the CPU back end, also in a GPU run.
        backend, patience = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timedelta(minutes=minutes)
        if world_size > 1:
            store, _, _ = next(dist.rendezvous("env://", timeout=patience))
            # torchrun's store survives a restart of the ranks, which must not read keys of the attempt before.
            store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        shared = store or dist.HashStore()
        dist.init_process_group(backend, timeout=patience, store=shared, rank=rank, world_size=world_size)
    return Process(rank, world_size, local_rank, device, world_size > 1 or group, store)


def stop() -> None:
    """Destroys the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def destroy(groups: Iterable[dist.ProcessGroup]) -> None:
    """Destroys process groups, all their ranks together; that of all ranks stays, which a device mesh may share.

    A group takes sockets, threads and on a GPU hundreds of megabytes until then, and until nothing refers to it.
    """
    for group in dict.fromkeys(groups):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def sum_over(tensor: Tensor) -> Tensor:
    """Σ over the ranks of a tensor of the same shape on each; not in place, without gradient."""
    total = tensor.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def barrier() -> None:
    """Waits until every rank has called this."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: Any, source: int = 0) -> Any:
    """Rank ``source``'s value on every rank; anything that can be pickled."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, source, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, by rank, on every rank; anything that can be pickled."""
    if not dist.is_initialized():
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
