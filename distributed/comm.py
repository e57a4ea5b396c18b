"""Messages between the ranks of a group: over a process group, or between threads of one process.

Both count the bytes that a rank sends to others, which a plan has promised.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
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

    def all_to_all(self, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
        """The first sizes[0] elements go to rank 0, the next to rank 1, …; returns what came, wanted[i] from rank i.

        Both are flat, and nothing is copied but the messages.
        """
        ...

    def exchange(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> Callable[[], None]:
        """Starts sending to some ranks and filling tensors from others; the call it returns waits for both."""
        ...

    def gather_objects(self, value: Any) -> list[Any]:
        """What every rank has, on every rank."""
        ...


class GroupComm:
    """The ranks of a ``torch.distributed`` process group (NCCL or gloo)."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.sent = group, 0
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def all_to_all(self, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
        received = send.new_empty(sum(wanted))
        # As bytes: gloo does not know every dtype.
        sent, came = ([count * send.element_size() for count in counts] for counts in (sizes, wanted))
        dist.all_to_all_single(received.view(torch.uint8), send.view(torch.uint8), came, sent, group=self.group)
        self.sent += sum(sent) - sent[self.rank]
        return received

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
        # Where messages are copied on a GPU, beside the stream that computes.
        self.stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None


class VirtualComm:
    """A rank that is a thread of this process: the same messages as between processes, without any.

    As with a process group, messages between two ranks meet in the order in which both have posted them. On a GPU all
    ranks compute on one stream, and messages are copies on another: what is sent must not be overwritten.
    """

    def __init__(self, post: _Post, rank: int):
        self.post, self.rank, self.size, self.sent = post, rank, post.size, 0
        self.posted: dict[int, deque[tuple[Tensor, Any]]] = {peer: deque() for peer in range(post.size)}

    def put(self, peer: int, value: Any) -> None:
        if isinstance(value, Tensor):
            self.sent += value.nbytes if peer != self.rank else 0
            value = (value if value.is_cuda else value.clone(), _now(value))
        self.post.boxes[self.rank, peer].put(value)

    def get(self, peer: int) -> Any:
        try:
            return self.post.boxes[peer, self.rank].get(timeout=self.post.patience)
        except queue.Empty:
            raise RuntimeError(f"rank {self.rank}: nothing from rank {peer} in {self.post.patience} s") from None

    def deliver(self, peer: int) -> None:
        """What comes next from a rank, to the tensor that was posted for it."""
        (room, free), (value, ready) = self.posted[peer].popleft(), self.get(peer)
        if free is None:
            room.copy_(value.view(room.shape))
            return
        with torch.cuda.stream(self.post.stream):
            for event in (free, ready):
                self.post.stream.wait_event(event)
            room.copy_(value.view(room.shape))
        for tensor in (room, value):
            tensor.record_stream(self.post.stream)

    def all_to_all(self, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
        received = send.new_empty(sum(wanted))
        self.exchange(dict(enumerate(send.split(sizes))), dict(enumerate(received.split(wanted))))()
        return received

    def exchange(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> Callable[[], None]:
        for peer, tensor in sends.items():
            self.put(peer, tensor.contiguous())
        for peer, tensor in receives.items():
            self.posted[peer].append((tensor, _now(tensor)))

        def wait() -> None:
            for peer, tensor in receives.items():
                while any(tensor is room for room, _ in self.posted[peer]):
                    self.deliver(peer)
            if any(tensor.is_cuda for tensor in receives.values()):
                torch.cuda.current_stream().wait_stream(self.post.stream)

        return wait

    def gather_objects(self, value: Any) -> list[Any]:
        for peer in range(self.size):
            self.put(peer, value)
        return [self.get(peer) for peer in range(self.size)]


def _now(tensor: Tensor) -> Any:
    """An event where the current stream is now; None on a CPU."""
    return torch.cuda.current_stream().record_event() if tensor.is_cuda else None


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
