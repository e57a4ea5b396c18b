"""Arrival counters: zeros on the device that a kernel leaves at zero, so that no launch has to clear them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from afn_kernels._kept import TABLES, made_alone

SIZE = 1 << 18  # 1 MB per device: 2,340 captured graphs of 28 layers at batch 1 and 4 KV heads


@dataclass
class _Block:
    zeros: torch.Tensor
    used: int = 0
    of_stream: dict[int, torch.Tensor] = field(default_factory=dict)

    def take(self, count: int) -> torch.Tensor | None:
        if self.used + count > len(self.zeros):
            return None
        self.used += count
        return self.zeros[self.used - count : self.used]


def counters(count: int, device: torch.device) -> torch.Tensor:
    """``count`` int32 zeros that no launch running at the same time shares.

    Launches of one stream follow each other and share a slice. A launch being captured into a graph gets a slice of
    its own, since graphs may be replayed on any stream; the slice is not given back, since nothing tells when a graph
    is gone or will not be replayed again. ``SIZE`` bounds that: where no slice is left, a graph makes its zeros anew
    (one more launch, into the graph's memory).
    """
    if device.type == "meta":
        return torch.empty(count, dtype=torch.int32, device=device)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    with _LOCK:
        found = _captured(count, device) if capturing else _of_stream(count, device)
    return torch.zeros(count, dtype=torch.int32, device=device) if found is None else found


def _captured(count: int, device: torch.device) -> torch.Tensor | None:
    return _BLOCKS[device].take(count) if device in _BLOCKS else None


def _of_stream(count: int, device: torch.device) -> torch.Tensor | None:
    if device not in _BLOCKS:
        zeros = lambda: torch.zeros(SIZE, dtype=torch.int32, device=device)  # noqa: E731
        _BLOCKS[device] = _Block(made_alone(zeros, device))
    block = _BLOCKS[device]
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    found = block.of_stream.get(stream)
    if found is None or len(found) < count:
        found = block.take(max(256, 1 << (count - 1).bit_length()))
        if found is not None:
            block.of_stream[stream] = found
    return found


_BLOCKS: dict[torch.device, _Block] = {}
TABLES.append(_BLOCKS)
_LOCK = threading.Lock()
