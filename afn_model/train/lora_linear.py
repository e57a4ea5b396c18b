"""A linear layer with a LoRA adapter, and what is done with all of a model's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_model.hashing import key
from afn_model.network.fp8_linear import fp8_products
from afn_model.network.head import float32_logits
from afn_model.train.quantise import QuantisedLinear

ALIGNED = 8  # columns; kernels read whole 16 bytes of a row


class LoRADropout:
    """Which inputs of adapters are left out: a function of seed, step, micro-batch, rank, layer and element alone.

    The blocks that are recomputed in a backward thus see the same inputs again, and so does a run that resumes.

    Args:
        share: left out, 0 to below 1; the others are divided by 1 − share.
        seed: of the run.
        rank: of the process.
    """

    def __init__(self, share: float, seed: int, rank: int = 0):
        self.share, self.seed, self.rank = share, seed, rank
        self.draw = torch.zeros((), dtype=torch.int64)  # a tensor: compiled blocks do not depend on its value

    def begin(self, step: int, micro: int) -> None:
        """Call it before the forward of every micro-batch."""
        self.draw.fill_(key(self.seed, step, micro, self.rank) >> 1)


@torch.library.custom_op("afn_model::lora_kept", mutates_args=())
def lora_kept(x: Tensor, draw: Tensor, number: Tensor, share: float) -> Tensor:
    """Which elements of x are kept, bool; an op, since compiled code cannot make generators."""
    generator = torch.Generator(x.device).manual_seed(key(int(draw), int(number)) >> 1)
    return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - share, generator=generator)


@lora_kept.register_fake
def _(x: Tensor, draw: Tensor, number: Tensor, share: float) -> Tensor:
    return torch.empty(x.shape, dtype=torch.bool, device=x.device)


class LoRALinear(nn.Linear):
    """y = W x + b + scale · B A x, with W and b frozen, A [rank, in] and B [out, rank] float32 parameters.

    scale is alpha / rank, or with ``rslora`` alpha / √rank (Kalajdzievski, 2023, arXiv:2312.03732).
    """

    def __init__(
        self,
        base: nn.Linear | QuantisedLinear,
        rank: int,
        alpha: float,
        *,
        rslora: bool = False,
        device: torch.device | None = None,
    ):
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.alpha, self.rslora, self.active, self.plain = rank, alpha, rslora, True, type(base)
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)
        self.dropout, self.fp8 = None, False
        # A tensor as the draw is: the compiled code of one block then serves all, for it does not depend on the value.
        self.number = torch.zeros((), dtype=torch.int64, device="cpu")
        self.quantised = base if isinstance(base, QuantisedLinear) else None
        self.register_parameter("weight", None if isinstance(base, QuantisedLinear) else base.weight)
        self.bias = base.bias
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        if self.quantised is not None:
            self.quantised.bias = None
        held = base.weight if self.quantised is None else self.quantised.codes
        where = {"dtype": torch.float32, "device": device or held.device}
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, **where))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **where))

    def forward(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """``wide``: what a head that has no bias returns in float32 from the products on, as it is trained."""
        if wide:
            return self.summed_in_float32(x)
        return self.adapted(x, self.base(x, self.bias))

    def product(self, x: Tensor) -> Tensor:
        """y without b."""
        return self.adapted(x, self.base(x, None))

    def base(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """W x + bias; ``fp8`` says whether in FP8."""
        if self.quantised is not None:
            y = self.quantised.product(x)
            return y if bias is None else y + bias
        return fp8_products(x, [self.weight], [bias])[0] if self.fp8 else F.linear(x, self.weight, bias)

    def adapted(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.active:
            return y
        low = F.linear(self.dropped(x), self.lora_A.to(x.dtype))
        return y + F.linear(low, self.lora_B.to(x.dtype)) * self.scale

    def summed_in_float32(self, x: Tensor) -> Tensor:
        """x' W'ᵀ of ``operands``, float32, without a copy of W: a head's is a gigabyte, and read for every token."""
        y = float32_logits(x, self.weight)
        if not self.active:
            return y
        return y + float32_logits(self.low(x), self.lora_B.to(self.weight.dtype))

    def low(self, x: Tensor) -> Tensor:
        """scale · A x."""
        return F.linear(self.dropped(x), self.lora_A.to(x.dtype)) * self.scale

    def dropped(self, x: Tensor) -> Tensor:
        """x with some elements left out, where a gradient is wanted: answers are sampled from the whole adapter."""
        drop = self.dropout
        if drop is None or not self.training or not torch.is_grad_enabled():
            return x
        return x * lora_kept(x, drop.draw, self.number, drop.share) / (1 - drop.share)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x' = [x, scale · A x] and W' = [W, B], with x' W'ᵀ = y − b; W' is a copy of W."""
        if not self.active:
            return x, self.weight
        more = (0, -self.rank % ALIGNED)
        columns = F.pad(self.lora_B.to(self.weight.dtype), more)
        return torch.cat((x, F.pad(self.low(x), more)), -1), torch.cat((self.weight, columns), 1)

    def merged(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """W + scale · B A, in the weight's dtype."""
        return (weight.float() + self.scale * (b.float() @ a.float())).to(weight.dtype)

    def fold(self, state: dict[str, Tensor], name: str) -> None:
        """Adds the adapter to the weight in a state dictionary that holds both, whole; a quantised one is decoded."""
        if self.quantised is not None:
            self.quantised.fold(state, f"{name}.quantised")
            state[f"{name}.weight"] = state.pop(f"{name}.quantised.weight")
        a, b = (state.pop(f"{name}.{part}") for part in ("lora_A", "lora_B"))
        state[f"{name}.weight"] = self.merged(state[f"{name}.weight"], a, b)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's adapters by the name of their layer."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def replace(
    model: nn.Module, name: str, rank: int, alpha: float, rslora: bool = False, device: torch.device | None = None
) -> LoRALinear:
    layer = LoRALinear(model.get_submodule(name), rank, alpha, rslora=rslora, device=device)
    model.set_submodule(name, layer)
    return layer


def set_dropout(model: nn.Module, dropout: LoRADropout | None) -> None:
    """Gives all adapters that train the same dropout, or none; a frozen one is read whole."""
    for number, layer in enumerate(adapters(model).values()):
        layer.dropout = dropout if layer.lora_A.requires_grad else None
        layer.number.fill_(number)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Adds the adapters to their layers' weights and leaves plain layers, in place; not for sharded models.

    Raises:
        ValueError: the base is quantised, and a sum coded anew would lose the adapter.
    """
    layers = adapters(model)
    if found := next((layer.quantised for layer in layers.values() if layer.quantised is not None), None):
        raise ValueError(f"the base is in {found.kind}: put the adapter on the base in bfloat16 and merge it there")
    for name, layer in layers.items():
        plain = layer.plain(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.merged(layer.weight, layer.lora_A, layer.lora_B), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is what it was before its adapters were added."""
    layers = [layer for layer in adapters(model).values() if layer.active]
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer in layers:
            layer.active = True
