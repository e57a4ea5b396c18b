"""Gradient offload: float32 sums of the micro-batches' gradients in host memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from afn_model.train.host_memory import Lane


class HostGradients:
    """What backwards add gradients to, one parameter after another; each sum is on the GPU while it is added to.

    The sum of the parameter that comes next, by the order of the backward before, is fetched meanwhile. Every sum is
    rounded once a micro-batch as it would be on the GPU, and its norm is what ``torch.nn.utils`` would compute.

    Args:
        device: of the gradients.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.outward, self.inward = Lane(device), Lane(device)
        self.places: dict[nn.Parameter, Tensor] = {}
        self.norms: dict[nn.Parameter, Tensor] = {}
        self.sent: dict[nn.Parameter, Any] = {}
        self.coming: dict[nn.Parameter, tuple[Tensor, Any]] = {}
        self.leaving: deque[tuple[Tensor, Any]] = deque()
        self.following: dict[nn.Parameter, nn.Parameter] = {}
        self.passed: dict[nn.Parameter, None] = {}  # of the backward under way
        self.last: nn.Parameter | None = None
        self.scale: Tensor | None = None

    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Adds a backward's gradient; the first of a step begins a new sum."""
        if parameter in self.norms:
            total = self.arrived(parameter)
            total.add_(gradient)
        else:
            total = gradient.float()
        self.norms[parameter] = torch._foreach_norm([total])[0]
        self.sent[parameter] = self.outward.copy(self.places[parameter], total, self.outward.reached())
        self.leaving.append((total, self.sent[parameter]))
        self.release(1)
        if parameter in self.passed:  # another backward has begun
            self.passed.clear()
        if self.passed and self.last is not None:
            self.following[self.last] = parameter
        self.passed[parameter], self.last = None, parameter
        following = self.following.get(parameter)
        if following in self.norms and following not in self.passed and following not in self.coming:
            assert following is not None
            self.fetch(following)

    def fetch(self, parameter: nn.Parameter) -> None:
        """Begins to bring a sum to the GPU."""
        there = torch.empty_like(self.places[parameter], device=self.device)
        event = self.inward.copy(there, self.places[parameter], self.inward.reached(), self.sent[parameter])
        self.coming[parameter] = there, event

    def arrived(self, parameter: nn.Parameter) -> Tensor:
        if parameter not in self.coming:
            self.fetch(parameter)
        there, event = self.coming.pop(parameter)
        self.inward.wait(event)
        return there

    def release(self, most: int) -> None:
        """Lets go of sums on the GPU that have left, but for so many of the last."""
        while len(self.leaving) > most:
            self.outward.wait(self.leaving[0][1])
            self.leaving.popleft()

    def settle(self) -> None:
        """All sums are on the host, and none on the GPU, for what the current stream is given from now on."""
        self.release(0)
        for _, event in self.coming.values():
            self.inward.wait(event)
        self.coming.clear()

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """The norm of all sums, scalar; ``scale`` becomes min(1, largest / norm), for each to be multiplied with."""
        norms = [self.norms[parameter] for parameter in parameters if parameter in self.norms]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=self.device)
        self.scale = torch.clamp(largest / (norm + 1e-6), max=1.0)
        return norm

    def clear(self) -> None:
        self.settle()
        self.norms.clear()
        self.scale = None
