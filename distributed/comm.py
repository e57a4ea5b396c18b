"""Messages between the ranks of a group: over a process group, or between threads of one process.

Both count the bytes that a rank sends to others, which a plan has promised.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Comm(Protocol):
    """One rank of a group.

    Attributes:
        rank, size: its number in the group, and how many there are.
        sent: bytes sent to other ranks so far.
    """

    rank: int
    size: int
    sent: int

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """parts[i] goes to rank i; returns what rank i sent here, of shapes[i] and the parts' dtype."""

    def exchange(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> Callable[[], None]:
        """Starts sending to some ranks and filling tensors from others; the call it returns waits for both."""

    def gather_objects(self, value: Any) -> list[Any]:
        """What every rank has, on every rank."""


class GroupComm:
    """The ranks of a ``torch.distributed`` process group (NCCL or gloo)."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.sent = group, 0
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        dtype, device = parts[0].dtype, parts[0].device
        # As bytes: gloo does not know every dtype.
        send = torch.cat([part.reshape(-1) for part in parts]).view(torch.uint8)
        sizes = [part.numel() * part.element_size() for part in parts]
        wanted = [torch.Size(shape).numel() * dtype.itemsize for shape in shapes]
        received = torch.empty(sum(wanted), dtype=torch.uint8, device=device)
        dist.all_to_all_single(received, send, wanted, sizes, group=self.group)
        self.sent += sum(sizes) - sizes[self.rank]
        found = received.split(wanted)
        return [bytes_.view(dtype).view(torch.Size(shape)) for bytes_, shape in zip(found, shapes, strict=True)]

    def exchange(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> Callable[[], None]:
        held = [tensor.contiguous() for tensor in sends.values()]  # until they are sent
        moves = [
            dist.P2POp(dist.isend, tensor.view(-1).view(torch.uint8), group=self.group, group_peer=peer)
            for peer, tensor in zip(sends, held, strict=True)
            if tensor.numel()
        ]
        moves += [
            dist.P2POp(dist.irecv, tensor.view(-1).view(torch.uint8), group=self.group, group_peer=peer)
            for peer, tensor in receives.items()
            if tensor.numel()
        ]
        self.sent += sum(tensor.nbytes for tensor in held)
        works = dist.batch_isend_irecv(moves) if moves else []

        def wait() -> None:
            for work in works:
                work.wait()
            held.clear()

        return wait

    def gather_objects(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found


@dataclass
class _Post:
    """Where threads leave messages for each other: a queue from every rank to every rank."""

    size: int
    patience: float = 60.0
    boxes: dict[tuple[int, int], queue.Queue] = field(default_factory=dict)

    def __post_init__(self):
        self.boxes = {(a, b): queue.Queue() for a in range(self.size) for b in range(self.size)}


class VirtualComm:
    """A rank that is a thread of this process: the same messages as between processes, without any."""

    def __init__(self, post: _Post, rank: int):
        self.post, self.rank, self.size, self.sent = post, rank, post.size, 0

    def put(self, peer: int, value: Any) -> None:
        if isinstance(value, Tensor) and peer != self.rank:
            self.sent += value.nbytes
        self.post.boxes[self.rank, peer].put(value.clone() if isinstance(value, Tensor) else value)

    def get(self, peer: int) -> Any:
        try:
            return self.post.boxes[peer, self.rank].get(timeout=self.post.patience)
        except queue.Empty:
            raise RuntimeError(f"rank {self.rank}: nothing from rank {peer} in {self.post.patience} s") from None

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        for peer, part in enumerate(parts):
            self.put(peer, part.contiguous())
        return [self.get(peer).view(torch.Size(shape)) for peer, shape in enumerate(shapes)]

    def exchange(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> Callable[[], None]:
        for peer, tensor in sends.items():
            self.put(peer, tensor)

        def wait() -> None:
            for peer, tensor in receives.items():
                tensor.copy_(self.get(peer))

        return wait

    def gather_objects(self, value: Any) -> list[Any]:
        for peer in range(self.size):
            self.put(peer, value)
        return [self.get(peer) for peer in range(self.size)]


def virtual_group(size: int, patience: float = 60.0) -> list[VirtualComm]:
    """The ranks of a group of threads."""
    post = _Post(size, patience)
    return [VirtualComm(post, rank) for rank in range(size)]


def in_threads(work: Callable[[int], Any], ranks: int) -> list[Any]:
    """``work(rank)`` in a thread for each rank; the results in order.

    Raises:
        Exception: what the first of the ranks that failed raised.
    """
    found: list[Any] = [None] * ranks
    failed: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(rank)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found
