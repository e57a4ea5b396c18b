"""Frozen linear layers whose weights are held in 8 or 4 bits and decoded where they are used, under LoRA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_model.checks import shown
from afn_model.train.lora_settings import BASES
from afn_model.weights.checkpoint import DTYPES, Stored, fill

if TYPE_CHECKING:
    from afn_model.network.network import Network

# The 16 levels of NF4: quantiles of N(0, 1) divided by the largest, seven below zero, zero, and eight above.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64  # weights that share a scale in NF4
SCALES = 256  # scales that share one of their own
PART = 2**24  # weights coded at a time, which bounds what coding takes beside them


class QuantisedLinear(nn.Module):
    """y = W x + b with W frozen in few bits. The backward decodes W again; a decoded W is never kept.

    "int8": W[o, i] = c[o, i] s[o] with c in −127..127 and s = max|W[o]| / 127.
    "nf4": blocks of 64 weights, row after row, are levels of NF4 times the block's largest absolute value; these
    scales are themselves c s + m in blocks of 256, c in −127..127 and m their mean (double quantisation).

    Args:
        weight: [out, in], floating point; on the meta device only shapes are computed.
        bias: [out] or None.
        kind: "int8" or "nf4".
        double: whether NF4's scales are quantised.

    Source: Dettmers et al., 2023, arXiv:2305.14314, sections 2 and 3.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, kind: str, *, double: bool = True):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.kind, self.bias = kind, bias
        found = code_int8(weight) if kind == "int8" else code_nf4(weight, double)
        self.stored = tuple(found)
        for name, tensor in found.items():
            self.register_buffer(name, tensor, persistent=name != "levels")

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.stored)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """W x."""
        if not (torch.is_grad_enabled() and x.requires_grad):  # torch.compile does not take the function then
            return F.linear(x, self.decoded(x.dtype))
        return _Product.apply(x, (self.out_features, self.in_features), *self.tensors())

    def decoded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W, [out, in]."""
        return decode((self.out_features, self.in_features), self.tensors(), dtype)

    def fold(self, state: dict[str, Tensor], name: str) -> None:
        """Puts the decoded weight in the place of its codes in a state dictionary, unless that has been done."""
        kept = [part for part in self.stored if part != "levels"]
        if f"{name}.{kept[0]}" not in state:
            return
        parts = {part: state.pop(f"{name}.{part}") for part in kept}
        if "levels" in self.stored:
            parts["levels"] = self.levels.to(parts["codes"].device)
        shape = (self.out_features, self.in_features)
        state[f"{name}.weight"] = decode(shape, tuple(parts[part] for part in self.stored), torch.float32)


def coded_weights(model: nn.Module) -> int:
    """How many weights a model holds in codes; as parameters they do not count."""
    return sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantisedLinear))


class _Product(torch.autograd.Function):
    """x Wᵀ, for which the backward keeps the codes, which are there anyway, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], *stored: Tensor) -> Tensor:
        ctx.save_for_backward(*stored)
        ctx.shape = shape
        return F.linear(x, decode(shape, stored, x.dtype))

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors
        dx = dout @ decode(ctx.shape, stored, dout.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, *(None for _ in stored)


def code_int8(weight: Tensor) -> dict[str, Tensor]:
    scale = weight.float().abs().amax(1) / 127
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    rows = max(PART // weight.shape[1], 1)
    for some, part, s in zip(codes.split(rows), weight.split(rows), scale.split(rows), strict=True):
        some.copy_((part / s.clamp_min(1e-38)[:, None]).round_())
    return {"codes": codes, "scales": scale}


def code_nf4(weight: Tensor, double: bool) -> dict[str, Tensor]:
    table = torch.tensor(NF4, device=weight.device)
    middles = (table[1:] + table[:-1]) / 2
    blocks = -(-weight.numel() // BLOCK)
    flat = F.pad(weight.detach().flatten(), (0, blocks * BLOCK - weight.numel())).view(blocks, BLOCK)
    scales = flat.abs().amax(1).float()
    codes = torch.empty(blocks * BLOCK // 2, dtype=torch.uint8, device=weight.device)
    rows = PART // BLOCK
    for some, part, s in zip(codes.split(rows * BLOCK // 2), flat.split(rows), scales.split(rows), strict=True):
        level = torch.bucketize(part.float() / s.clamp_min(1e-38)[:, None], middles, out_int32=True)
        level = level.to(torch.uint8).view(-1, 2)
        some.copy_(level[:, 0] * 16 + level[:, 1])
    # A byte is two weights, the first in the high half.
    levels = torch.cartesian_prod(table, table) if table.device.type != "meta" else table.new_empty(256, 2)
    if not double:
        return {"codes": codes, "scales": scales, "levels": levels}
    mean = scales.mean()
    groups = -(-blocks // SCALES)
    grouped = F.pad(scales - mean, (0, groups * SCALES - blocks)).view(groups, SCALES)
    outer = grouped.abs().amax(1) / 127
    inner = (grouped / outer.clamp_min(1e-38)[:, None]).round_().to(torch.int8).flatten()[:blocks].clone()
    return {"codes": codes, "scales": inner, "outer": outer, "mean": mean, "levels": levels}


def decode(shape: tuple[int, int], stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """W of what ``code_int8`` (two tensors) or ``code_nf4`` (three, or five with coded scales) returned."""
    codes, scales, *more = stored
    if not more:
        return (codes * scales[:, None]).to(dtype)
    *double, levels = more
    if double:
        outer, mean = double
        groups = F.pad(scales, (0, len(outer) * SCALES - len(scales))).view(-1, SCALES)
        scales = (groups * outer[:, None]).flatten()[: len(scales)] + mean
    pairs = F.embedding(codes.int(), levels)
    return (pairs.view(-1, BLOCK) * scales[:, None]).to(dtype).flatten()[: math.prod(shape)].view(shape)


@torch.no_grad()
def quantise(model: nn.Module, kind: str, device: torch.device | str | None = None, *, double: bool = True) -> None:
    """Puts quantised layers in the place of all linear layers of a module, one after the other, in place.

    Args:
        model: without adapters, in floating point.
        kind: "nf4" or "int8".
        device: where the codes go, and where they are made; that of the weights if None.
        double: whether NF4's scales are quantised too.

    Raises:
        ValueError: another kind, or a model that is quantised or has adapters.
    """
    if kind not in BASES:
        raise ValueError(f"no base {shown(kind)}; there are {', '.join(BASES)}")
    if found := next((module for module in model.modules() if isinstance(module, QuantisedLinear)), None):
        raise ValueError(f"the base is quantised already, to {found.kind}: load it anew to have it in {kind}")
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if any(hasattr(layer, "lora_A") for _, layer in layers):
        raise ValueError("the model has LoRA adapters: quantise the base first, then add them")
    for name, layer in layers:
        coded = QuantisedLinear(layer.weight.detach().to(device), layer.bias, kind, double=double)
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
        model.set_submodule(name, coded)


def code_base(model: Network, stored: dict[str, Stored], kind: str, device: torch.device) -> list[str]:
    """Reads the language model's linear layers one after the other, and puts their codes in their place.

    Args:
        model, stored: as ``on_meta`` returns them.
        kind: "int8" or "nf4".
        device: where the codes go.

    Returns:
        The names of the weights that have been read.
    """
    part = model.language_model
    linear = [f"language_model.{n}.weight" for n, module in part.named_modules() if isinstance(module, nn.Linear)]
    # Memory-mapped, so that nothing is read before it is coded.
    fill(model, {name: stored[name] for name in linear}, DTYPES[stored[linear[0]].dtype], torch.device("cpu"), None)
    quantise(part, kind, device)
    return linear
