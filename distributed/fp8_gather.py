"""Weights of FP8 products gathered in FP8: a byte of a weight travels, and its scales are those of the whole weight.

FSDP2 asks a rank's part of a parameter for what it sends, and for what the gathered parameter is. Blocks of (128, 128)
may lie on several ranks, so these first agree on every block's largest value.

Source: the hooks of ``torch.distributed.fsdp``; scales as in DeepSeek-V3, 2024, arXiv:2412.19437.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

import afn_kernels as ak

FP8, LARGEST, LEAST, SIDE = torch.float8_e4m3fn, 448.0, 2.0**-126, 128


class FP8Weight(torch.Tensor):
    """A gathered weight: to autograd a parameter of the compute dtype, in memory e4m3 codes and their scales."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, dtype: torch.dtype, wanted: bool = False):
        found = torch.Tensor._make_wrapper_subclass(
            cls, codes.shape, dtype=dtype, device=codes.device, requires_grad=wanted
        )
        found.codes, found.scale = codes, scale
        return found

    def __repr__(self) -> str:
        return f"FP8Weight({tuple(self.shape)}, {self.dtype})"

    def coded(self, transpose: bool) -> tuple[Tensor, Tensor]:
        """Codes and scales of the weight or of its transpose, as ``ak.quantize_fp8`` lays them out."""
        if not transpose:
            return self.codes, self.scale
        codes = self.codes.view(torch.uint8).t().contiguous().view(FP8)
        return codes, laid_out(self.scale.t())

    def decoded(self) -> Tensor:
        """The numbers, in the dtype that it claims."""
        rows, columns = self.shape
        scale = self.scale.repeat_interleave(SIDE, 0)[:rows].repeat_interleave(SIDE, 1)[:, :columns]
        return (self.codes.float() * scale).to(self.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # FSDP2 views and detaches what it has gathered; whoever else reads it gets the numbers.
        if func in (torch.ops.aten.detach.default, torch.ops.aten.as_strided.default, torch.ops.aten.alias.default):
            weight = args[0]
            return cls(weight.codes, weight.scale, weight.dtype)
        return func(*tree_map_only(cls, cls.decoded, args), **tree_map_only(cls, cls.decoded, kwargs or {}))


class FP8Shard:
    """The hooks of a rank's rows of a weight, which have them as attributes: they are gathered as ``FP8Weight``.

    Args:
        weight: the whole parameter.
        scales: of all such weights.
        number: of this one.
    """

    def __init__(self, weight: DTensor, scales: AgreedScales, number: int):
        self.weight, self.scales, self.number = weight, scales, number
        mesh = weight.device_mesh
        self.group, self.ranks = mesh.get_group(mesh.ndim - 1), mesh.size(mesh.ndim - 1)
        self.rows = -(-weight.shape[0] // self.ranks)  # of a full part
        self.first = min(mesh.get_local_rank(mesh.ndim - 1) * self.rows, weight.shape[0])
        down, across = (-(-side // SIDE) for side in weight.shape)
        # Kept, and written in place: kernels of another stream may still read it; in a backward it does not change.
        self.scale = laid_out(torch.ones(down, across, device=weight.device))
        local: Any = weight._local_tensor
        local.fsdp_pre_all_gather, local.fsdp_post_all_gather = self.before, self.after

    def before(
        self, mesh: DeviceMesh, outer_size: torch.Size, outer_stride: Any, module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor], None]:
        """This rank's codes as bytes, its last rows padded."""
        local = self.weight._local_tensor
        if self.ranks == 1:
            codes, scale = ak.quantize_fp8(local, block=(SIDE, SIDE))
            self.scale.copy_(scale)
            return (codes.view(torch.uint8),), None
        if not self.number:
            self.scales.agree()
        blocks = torch.arange(self.first, self.first + len(local), device=local.device) // SIDE
        factor = (1 / self.scale)[blocks][:, :, None]
        # No larger than 448 but for rounding, which the conversion rounds away.
        codes = (in_lines(local) * factor).to(FP8).view(torch.uint8).flatten(1)[:, : local.shape[1]]
        return (F.pad(codes, (0, 0, 0, self.rows - len(local))),), None

    def after(
        self, outputs: tuple[Tensor, ...], metadata: None, dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """The gathered parameter; the next time its codes and scales are where they were."""
        if out is not None:
            return None
        return FP8Weight(outputs[0][: self.weight.shape[0]].view(FP8), self.scale, dtype), ()

    def largest(self) -> Tensor:
        """[blocks down, blocks across] largest magnitudes in this rank's rows; 0 where it has none."""
        by_row = in_lines(self.weight._local_tensor).abs().amax(2)
        below = -(-self.weight.shape[0] // SIDE) * SIDE - self.first - len(by_row)
        return F.pad(by_row, (0, 0, self.first, below)).unflatten(0, (-1, SIDE)).amax(1)


class AgreedScales:
    """Scales of all such weights of a model, agreed on in one message when the first of them is gathered.

    The first is gathered before the others in a forward, and weights change between a backward and a forward alone.
    """

    def __init__(self, weights: Sequence[Tensor]):
        cut = [weight for weight in weights if isinstance(weight, DTensor)]
        self.shards = [FP8Shard(weight, self, number) for number, weight in enumerate(cut)]

    @torch.no_grad()
    def agree(self) -> None:
        parts = [shard.largest() for shard in self.shards]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat, op=dist.ReduceOp.MAX, group=self.shards[0].group)
        whole = (flat / LARGEST).clamp_(min=LEAST).split([part.numel() for part in parts])
        for shard, scale in zip(self.shards, whole, strict=True):
            shard.scale.copy_(scale.view_as(shard.scale))


def gather_in_fp8(weights: Sequence[Tensor]) -> None:
    """From here on FSDP2 gathers these weights as ``FP8Weight``; those that it does not cut stay as they are.

    Args:
        weights: [out, in] parameters of a sharded model, with their memory, in the order of the forward.
    """
    AgreedScales(weights)


def in_lines(x: Tensor) -> Tensor:
    """[rows, blocks across, 128] float32, with zeros behind the last column."""
    more = -x.shape[1] % SIDE
    return (F.pad(x.float(), (0, more)) if more else x.float()).unflatten(1, (-1, SIDE))


def laid_out(scale: Tensor) -> Tensor:
    """Scales [down, across] with rows padded to multiples of 4, as ``ak.quantize_fp8`` returns them."""
    down, across = scale.shape
    return scale.new_empty(down, -(-across // 4) * 4)[:, :across].copy_(scale)
