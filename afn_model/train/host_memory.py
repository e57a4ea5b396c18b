"""Page-locked memory of the host, and copies between it and a GPU on streams of their own."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHUNK = 2**30  # bytes of an arena's pieces, or four of the tensors that are larger than a fourth of it
ALIGNED = 256
PORTABLE = 1  # cudaHostRegisterPortable: locked for every context


class Pages(mmap.mmap):
    """Zeros in pages of their own, which are unlocked before they are unmapped."""

    locked = 0

    def __del__(self):
        if self.locked:
            runtime().cudaHostUnregister(self.locked)


def runtime() -> Any:
    """CUDA's, as PyTorch has loaded it."""
    return torch.cuda.cudart()


def host_memory(size: int, device: torch.device) -> Tensor:
    """[size] zero bytes on the host, page-locked where the device is a GPU.

    PyTorch's own page-locked memory is rounded up to a power of two; this is not.

    Raises:
        ValueError: the host cannot give or lock so much.
    """
    try:
        pages = Pages(-1, max(size, 1))
    except OSError as error:
        raise ValueError(f"the host has no {size / 1e9:.1f} GB for what is offloaded: {error.strerror}") from None
    found = torch.frombuffer(pages, dtype=torch.uint8)[:size]
    if device.type == "cuda" and size:
        failed = int(runtime().cudaHostRegister(found.data_ptr(), size, PORTABLE))
        if failed:
            raise ValueError(f"the host cannot lock {size / 1e9:.1f} GB for what is offloaded: CUDA error {failed}")
        pages.locked = found.data_ptr()
    return found


def available() -> float:
    """Bytes of the host that a new process may take: those that are free or can be freed, and what a cgroup leaves."""
    found = [float("inf")]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        found.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf"):
            found.append(float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES"))
    try:
        group = Path("/sys/fs/cgroup")
        most, used = ((group / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
        found.append(float(int(most) - int(used)))
    except (OSError, ValueError):  # no cgroup of the second version, or no limit
        pass
    return min(found)


class Lane:
    """Copies one behind another on a stream of their own; on a CPU each is done when ``copy`` returns."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, to: Tensor, of: Tensor, *after: Any) -> Any:
        """Begins a copy behind the events ``after``; the event of its end, None on a CPU.

        Neither tensor may be freed or written to by another stream until that has waited for the event.
        """
        if self.stream is None:
            to.copy_(of)
            return None
        for event in after:
            if event is not None:
                self.stream.wait_event(event)
        with torch.cuda.stream(self.stream):
            to.copy_(of, non_blocking=True)
            return self.stream.record_event()

    def reached(self) -> Any:
        """An event behind all that the current stream has been given; None on a CPU."""
        return None if self.stream is None else torch.cuda.current_stream(self.stream.device).record_event()

    def wait(self, event: Any) -> None:
        """What the current stream is given from now on waits for the event."""
        if self.stream is not None and event is not None:
            torch.cuda.current_stream(self.stream.device).wait_event(event)


class Arena:
    """Host memory handed out piece by piece, which begins anew when nothing of it is in use."""

    def __init__(self, device: torch.device):
        self.device = device
        self.chunks: list[Tensor] = []
        self.at = self.used = self.live = 0

    def take(self, like: Tensor, owner: Any) -> Tensor:
        """Memory for a contiguous tensor like this one, until its owner is garbage."""
        while self.at < len(self.chunks) and self.used + like.nbytes > len(self.chunks[self.at]):
            self.at, self.used = self.at + 1, 0
        if self.at == len(self.chunks):
            self.chunks.append(host_memory(max(CHUNK, 4 * like.nbytes), self.device))
        found = self.chunks[self.at][self.used : self.used + like.nbytes].view(like.dtype).view(like.shape)
        self.used += -(-like.nbytes // ALIGNED) * ALIGNED
        self.live += 1
        weakref.finalize(owner, self.give).atexit = False
        return found

    def give(self) -> None:
        self.live -= 1
        if not self.live:
            self.at = self.used = 0
