"""Optimiser offload: moments, and master weights, in host memory; a step runs on the GPU, a bucket at a time."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from afn_distributed.shard import clip_grad_norm
from afn_model.train.adamw8bit import AdamW8bit, local, new_state
from afn_model.train.gradient_offload import HostGradients
from afn_model.train.host_memory import ALIGNED, Lane, host_memory

BUCKET = 2**29  # bytes of states that move together; a larger parameter is a bucket of its own
MASTER = "master"  # attribute of a parameter in lower precision: its float32 weights on the host


@dataclass
class BucketPart:
    """What of one parameter is in a bucket.

    Args:
        parameter: of the model.
        group: its number among the optimiser's groups.
        places: of each state: first byte in the bucket, and the tensor there.
        beside: states that stay where they are.
        sum_at: byte among the bucket's sums of gradients.
    """

    parameter: nn.Parameter
    group: int
    places: dict[str, tuple[int, Tensor]]
    beside: dict[str, Tensor]
    sum_at: int


@dataclass
class Bucket:
    """States that move together, in one piece of host memory, and the sums of gradients, where they are on the host."""

    memory: Tensor
    sums: Tensor
    parts: list[BucketPart] = field(default_factory=list)


@dataclass
class Gradient:
    """What the gradient clip sees of a parameter with master weights."""

    grad: Tensor


class OffloadedOptimiser(torch.optim.Optimizer):
    """AdamW, or AdamW with moments in 8 bits, whose states are in host memory between its steps.

    In a step they are copied to the GPU in buckets, two at a time: while one is updated, the one before leaves and the
    next arrives. The update is the optimiser's own on the same numbers, so weights and moments are the same to the
    last bit. A GPU needs room for two buckets in a step, when the activations are gone.

    With ``compute`` the model's trained weights become rounded copies in that dtype; the float32 weights are among the
    states. Gradients are then summed over micro-batches in float32 in ``gradients``, as FSDP2 does: a parameter has
    none of its own.

    Args:
        inner: of parameters on their device, before its first step: PyTorch's AdamW or ``AdamW8bit``.
        compute: dtype of the model's copies; None where the parameters themselves are the float32 weights, sharded or
            not. Copies are for a model that is not sharded.
        gradients: with ``compute``, the sums of gradients are on the host too.

    Raises:
        ValueError: the host has not so much memory.
    """

    def __init__(self, inner: torch.optim.Optimizer, compute: torch.dtype | None = None, *, gradients: bool = False):
        assert isinstance(inner, (torch.optim.AdamW, AdamW8bit))
        assert not inner.state
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.compute = inner, compute
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self.device = local(self.param_groups[0]["params"][0]).device
        self.inward, self.outward = Lane(self.device), Lane(self.device)
        self.sums = HostGradients(self.device) if gradients and compute is not None else None
        self.buckets: list[Bucket] = []
        waiting: list[tuple[nn.Parameter, int, dict[str, Tensor]]] = []
        held = 0
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                states = self.states(parameter)
                size = sum(map(padded, states.values()))
                if waiting and held + size > BUCKET:
                    self.fill(waiting, held)
                    waiting, held = [], 0
                waiting.append((parameter, number, states))
                held += size
        self.fill(waiting, held)

    def states(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Those of a parameter before the first step."""
        weights = {} if self.compute is None else {MASTER: parameter.detach()}
        if isinstance(self.inner, AdamW8bit):
            return weights | new_state(parameter)
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return weights | {"step": torch.zeros((), dtype=torch.float32)} | zeros

    @torch.no_grad()
    def fill(self, found: Iterable[tuple[nn.Parameter, int, dict[str, Tensor]]], size: int) -> None:
        """Moves states to a new bucket, and makes the model's copies of the weights."""
        found, at, sum_at = list(found), 0, 0
        sums = sum(padded(states[MASTER]) for _, _, states in found) if self.sums is not None else 0
        bucket = Bucket(host_memory(size, self.device), host_memory(sums, self.device))
        for parameter, group, states in found:
            part = BucketPart(parameter, group, {}, {}, sum_at)
            if self.sums is not None:
                self.sums.places[parameter] = view(bucket.sums, sum_at, states[MASTER])
                sum_at += padded(states[MASTER])
            for name, state in states.items():
                if name == "step" and isinstance(self.inner, AdamW8bit):  # a number that its step reads on the host
                    part.beside[name] = self.state[parameter][name] = state
                    continue
                own = local(state)
                there = view(bucket.memory, at, own)
                there.copy_(own)
                part.places[name] = at, there
                at += padded(state)
                if name == MASTER:
                    setattr(parameter, MASTER, there)
                    parameter.data = parameter.data.to(self.compute)
                    parameter.register_post_accumulate_grad_hook(collector(self))
                else:
                    cut = isinstance(state, DTensor)
                    self.state[parameter][name] = DTensor(there, state._spec, requires_grad=False) if cut else there
            bucket.parts.append(part)
        self.buckets.append(bucket)

    def collect(self, parameter: Tensor) -> None:
        """Adds a backward's gradient to those of the micro-batches before."""
        assert isinstance(parameter, nn.Parameter)
        if parameter.grad is None:
            return
        if self.sums is not None:
            self.sums.add(parameter, parameter.grad)
        elif parameter in self.gradients:
            self.gradients[parameter].add_(parameter.grad)
        else:
            self.gradients[parameter] = parameter.grad.float()
        parameter.grad = None

    def clip(self, largest: float) -> Tensor:
        """``afn_distributed.shard.clip_grad_norm`` of the gradients, wherever they are."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if self.sums is not None:
            return self.sums.clip(parameters, largest)
        if self.compute is None:
            return clip_grad_norm(parameters, largest)
        summed: list[Any] = [Gradient(self.gradients[p]) for p in parameters if p in self.gradients]
        return clip_grad_norm(summed, largest)

    def graded(self, parameter: nn.Parameter) -> bool:
        """Whether the step has a gradient of a parameter."""
        if self.sums is not None:
            return parameter in self.sums.norms
        return parameter in self.gradients if self.compute is not None else parameter.grad is not None

    def gradient(self, part: BucketPart, sums: Tensor) -> Tensor:
        """On the device; ``sums`` are those of the part's bucket, where they were on the host."""
        if self.sums is not None:
            found = view(sums, part.sum_at, part.places[MASTER][1])
            return found if self.sums.scale is None else found.mul_(self.sums.scale)
        if self.compute is not None:
            return self.gradients[part.parameter]
        assert part.parameter.grad is not None
        return local(part.parameter.grad)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A step with the gradients that there are; parameters without one stay as they are."""
        assert closure is None
        if hasattr(self, "found_inf"):
            self.inner.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]
        if self.sums is not None:
            self.sums.settle()
        todo = [bucket for bucket in self.buckets if any(self.graded(part.parameter) for part in bucket.parts)]
        most = max((len(bucket.memory) + len(bucket.sums) for bucket in todo), default=0)
        slots = [torch.empty(most, dtype=torch.uint8, device=self.device) for _ in todo[:2]]
        free = [self.inward.reached() for _ in slots]
        for number, bucket in enumerate(todo):
            slot, sums = slots[number % 2][: len(bucket.memory) + len(bucket.sums)].split(
                [len(bucket.memory), len(bucket.sums)]
            )
            if len(sums):
                self.inward.copy(sums, bucket.sums, free[number % 2])
            self.inward.wait(self.inward.copy(slot, bucket.memory, free[number % 2]))
            self.update(bucket, slot, sums)
            free[number % 2] = self.outward.copy(bucket.memory, slot, self.outward.reached())
        for event in free:
            self.outward.wait(event)

    def update(self, bucket: Bucket, slot: Tensor, sums: Tensor) -> None:
        """The inner optimiser's step on states in a slot of the device."""
        groups: list[dict[str, Any]] = [{**group, "params": []} for group in self.param_groups]
        self.inner.param_groups, self.inner.state = groups, defaultdict(dict)
        weights: list[tuple[nn.Parameter, nn.Parameter]] = []
        for part in bucket.parts:
            if not self.graded(part.parameter):
                continue
            states = {name: view(slot, at, like) for name, (at, like) in part.places.items()}
            master = states.pop(MASTER, None)
            weight = nn.Parameter(local(part.parameter.detach()) if master is None else master)
            weight.grad = self.gradient(part, sums)
            groups[part.group]["params"].append(weight)
            self.inner.state[weight] = states | part.beside
            if master is not None:
                weights.append((part.parameter, weight))
        self.inner.step()
        for parameter, weight in weights:
            parameter.copy_(weight)
        self.inner.param_groups, self.inner.state = [], defaultdict(dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.gradients.clear()
        if self.sums is not None:
            self.sums.clear()


def collector(optimiser: OffloadedOptimiser) -> Callable[[Tensor], None]:
    """A hook that does not keep the optimiser: a cycle through a hook is never found to be garbage."""
    held = weakref.ref(optimiser)

    def collect(parameter: Tensor) -> None:
        if (found := held()) is not None:
            found.collect(parameter)

    return collect


def view(memory: Tensor, at: int, like: Tensor) -> Tensor:
    """A tensor of a shape and dtype at a byte of a piece of memory."""
    return memory[at : at + like.nbytes].view(like.dtype).view(like.shape)


def padded(state: Tensor) -> int:
    """Bytes of a state's place in a bucket."""
    return -(-local(state).nbytes // ALIGNED) * ALIGNED


def settle() -> None:
    """Waits for copies to the host, before something there is read or written by other means."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def stored(parameter: nn.Parameter) -> Tensor:
    """The weights that a checkpoint has of a parameter: its master weights, where there are some."""
    return getattr(parameter, MASTER, parameter.detach())


@torch.no_grad()
def refresh(parameter: nn.Parameter) -> None:
    """Rounds master weights that were written to into the model's copy."""
    if hasattr(parameter, MASTER):
        parameter.copy_(getattr(parameter, MASTER))
