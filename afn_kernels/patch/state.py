"""What a patched module carries, and what every replacement asks before it calls an op."""

import functools
import inspect
import operator
import sys
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import nn

from afn_kernels.patch.report import STATE, is_ours


@dataclass
class Owner:
    """The module above that turns positions into cosines and sines, if it does that as transformers does.

    None in a copy of a lower module alone, which is not to drag the upper one along.
    """

    module: nn.Module | None

    def __deepcopy__(self, memo: dict) -> "Owner":
        return Owner(memo.get(id(self.module)))

    def __reduce__(self):
        return Owner, (None,)


@dataclass
class State:
    """Lives in a patched module's ``__dict__``, outside parameters, buffers and submodules.

    It is found through the module and not through a closure, so that a deep copy of the model has its own.
    """

    impl: str
    ops: frozenset[str]
    fallbacks: Counter
    options: dict = field(default_factory=dict)
    method: str = "forward"
    partner: nn.Module | None = field(default=None, repr=False)
    owner: Owner = field(default_factory=lambda: Owner(None), repr=False)
    waiting: set[int] = field(default_factory=set)  # threads whose pooling was put off


def state(module: nn.Module) -> State:
    return getattr(module, STATE)


def written(module: nn.Module) -> type:
    """The module's class as its author wrote it: FSDP2 puts a class of its own in front, and FSDPModule."""
    first, *rest = type(module).__mro__
    return rest[1] if rest[0].__name__ == "FSDPModule" else first


def class_name(module: nn.Module) -> str:
    """The name of that class."""
    return written(module).__name__


def namespace(module: nn.Module, method: str = "forward") -> ModuleType:
    """The file of the class's method: what stands beside it there belongs to it."""
    return sys.modules[getattr(type(module), method).__module__]


@functools.lru_cache
def theirs(function) -> bool:
    """Whether a function, under all its decorators, is of transformers, or ours."""
    files = [getattr(function, "__globals__", {}).get("__name__", "")]
    while function := getattr(function, "__wrapped__", None):
        files.append(getattr(function, "__globals__", {}).get("__name__", ""))
    decorators = {name.partition(".")[0] for name in files[:-1]}
    return files[-1].startswith(("transformers.", "afn_kernels.patch.")) and decorators <= {"torch", "transformers"}


def parameters(cls: type, method: str) -> tuple[str, ...]:
    """Names of the parameters of a method, without ``self`` and the collecting ones."""
    found = inspect.signature(getattr(cls, method)).parameters.values()
    named = [parameter.name for parameter in found if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return tuple(named[1:])


def sharded(module: nn.Module) -> bool:
    """Whether FSDP2's fully_shard took this module as one of its roots."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def cache_name(module: nn.Module) -> str:
    """What this version of transformers calls the KV cache: ``cache`` since 5.24."""
    return "cache" if "cache" in state(module).options["parameters"] else "past_key_values"


def original(module: nn.Module, *args, **kwargs):
    """The method that was replaced, found on the class: nothing else was there."""
    return getattr(type(module), state(module).method)(module, *args, **kwargs)


def count(module: nn.Module, reason) -> None:
    """Notes in the report that an op could not run a call."""
    if not torch.compiler.is_compiling():
        state(module).fallbacks[class_name(module), str(reason)] += 1


def bare(*modules: nn.Module) -> bool:
    """No hook, and no forward of its own, would notice that these modules are passed by."""
    return not any(
        "forward" in module.__dict__ and not is_ours(module.__dict__["forward"]) for module in modules
    ) and not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def plain(*tensors: torch.Tensor) -> bool:
    """Tensors with values and memory of their own: no DTensor of tensor parallelism, no quantised weight, no meta."""
    return all(type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta for tensor in tensors)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """What autocast would multiply matrices in; None without autocast."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def linear(module: nn.Module) -> bool:
    """A Linear whose weight may be used without calling it: of the class itself (peft and quantisers have others)."""
    return type(module) is nn.Linear and bare(module) and plain(module.weight)


def find(module: nn.Module, path: str):
    """An attribute by dotted path; AttributeError where it is missing."""
    return operator.attrgetter(path)(module)
