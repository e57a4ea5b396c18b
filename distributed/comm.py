"""Messages between the ranks of a group: over a process group, or between threads of one process.

Both count the bytes that a rank sends to other ranks; tests compare them with the bytes that a plan predicts.
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
    """A rank's end of a group.

    Attributes:
        rank: number of this rank in the group.
        size: number of ranks in the group.
        sent: bytes sent to other ranks so far.
    """

    rank: int
    size: int
    sent: int

    def all_to_all(self, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
        """Sends a part of a flat tensor to each rank and receives one from each.

        Args:
            send: [Σ sizes] elements, the first sizes[0] for rank 0, the next sizes[1] for rank 1, …
            sizes: elements to each rank.
            wanted: elements from each rank.

        Returns:
            [Σ wanted], by source rank, same dtype.
        """
        ...

    def exchange(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> Callable[[], None]:
        """Starts sending tensors to ranks and receiving into tensors from ranks.

        Args:
            sends: tensor for each destination rank; it must not be overwritten before the wait.
            receives: contiguous tensor to fill for each source rank.

        Returns:
            A function that waits until all of them are sent and received.
        """
        ...

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on every rank; anything that can be pickled."""
        ...


class GroupComm:
    """A ``Comm`` over a ``torch.distributed`` process group (NCCL or gloo)."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.sent = group, 0
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def all_to_all(self, send: Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
        received = send.new_empty(sum(wanted))
        # As bytes, because gloo does not support every dtype.
        sent, due = ([count * send.element_size() for count in counts] for counts in (sizes, wanted))
        dist.all_to_all_single(received.view(torch.uint8), send.view(torch.uint8), due, sent, group=self.group)
        self.sent += sum(sent) - sent[self.rank]
        return received

    def exchange(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> Callable[[], None]:
        held = [tensor.contiguous() for tensor in sends.values()]  # keeps the copies alive until they are sent
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
class _Mailboxes:
    """Mailboxes of a group of threads: a queue from every rank to every rank."""

    size: int
    patience: float = 60.0
    boxes: dict[tuple[int, int], queue.Queue] = field(default_factory=dict)

    def __post_init__(self):
        self.boxes = {(a, b): queue.Queue() for a in range(self.size) for b in range(self.size)}
        # On a GPU, messages are copied on a stream of their own.
        self.stream: Any = torch.cuda.Stream() if torch.cuda.is_available() else None


class VirtualComm:
    """A ``Comm`` between threads of one process, each of which is a rank.

    As in a process group, the n-th send from rank a to rank b fills the n-th receive that b posted for a. On a GPU all
    ranks compute on one stream and messages are copied on another, so a sent tensor must not be overwritten.
    """

    def __init__(self, mail: _Mailboxes, rank: int):
        self.mail, self.rank, self.size, self.sent = mail, rank, mail.size, 0
        self.posted: dict[int, deque[tuple[Tensor, Any]]] = {peer: deque() for peer in range(mail.size)}

    def put(self, peer: int, value: Any) -> None:
        if isinstance(value, Tensor):
            self.sent += value.nbytes if peer != self.rank else 0
            value = (value if value.is_cuda else value.clone(), _now(value))
        self.mail.boxes[self.rank, peer].put(value)

    def get(self, peer: int) -> Any:
        try:
            return self.mail.boxes[peer, self.rank].get(timeout=self.mail.patience)
        except queue.Empty:
            raise RuntimeError(f"rank {self.rank}: nothing from rank {peer} in {self.mail.patience} s") from None

    def deliver(self, peer: int) -> None:
        """Copies the next message from a rank into the tensor that was posted for it."""
        (target, free), (value, ready) = self.posted[peer].popleft(), self.get(peer)
        if free is None:
            target.copy_(value.view(target.shape))
            return
        with torch.cuda.stream(self.mail.stream):
            for event in (free, ready):
                self.mail.stream.wait_event(event)
            target.copy_(value.view(target.shape))
        for tensor in (target, value):
            tensor.record_stream(self.mail.stream)

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
                while any(tensor is target for target, _ in self.posted[peer]):
                    self.deliver(peer)
            if any(tensor.is_cuda for tensor in receives.values()):
                torch.cuda.current_stream().wait_stream(self.mail.stream)

        return wait

    def gather_objects(self, value: Any) -> list[Any]:
        for peer in range(self.size):
            self.put(peer, value)
        return [self.get(peer) for peer in range(self.size)]


def _now(tensor: Tensor) -> Any:
    """An event recorded on the current CUDA stream; None for a CPU tensor."""
    return torch.cuda.current_stream().record_event() if tensor.is_cuda else None


def virtual_group(size: int, patience: float = 60.0) -> list[VirtualComm]:
    """The ends of a group of ``size`` threads; a receive raises RuntimeError after ``patience`` seconds."""
    mail = _Mailboxes(size, patience)
    return [VirtualComm(mail, rank) for rank in range(size)]


def in_threads(work: Callable[[int], Any], ranks: int) -> list[Any]:
    """Runs ``work(rank)`` in a thread for each rank and returns the results by rank.

    Raises:
        Exception: that of the first rank that failed.
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
