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


class FP8Shard(torch.Tensor):
    """A rank's rows of a weight: an ordinary tensor that is gathered as ``FP8Weight``."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl
    scales: AgreedScales
    number: int

    def fsdp_pre_all_gather(
        self, mesh: DeviceMesh, outer_size: torch.Size, outer_stride: Any, module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor], tuple[Tensor, int]]:
        """This rank's codes as bytes, its last rows padded, with what every rank knows of the weight."""
        if not self.number and not self.scales.alone:
            self.scales.agree()
        scale, (first, padded) = self.scales.found[self.number], self.scales.rows[self.number]
        local = self.as_subclass(torch.Tensor)
        if self.scales.alone:
            codes, whole = ak.quantize_fp8(local, block=(SIDE, SIDE))
            return (codes.view(torch.uint8),), (scale.copy_(whole), outer_size[0])
        blocks = torch.arange(first, first + len(local), device=local.device) // SIDE
        factor = (1 / scale)[blocks][:, :, None]
        # No larger than 448 but for rounding, which the conversion rounds away.
        codes = (in_lines(local) * factor).to(FP8).view(torch.uint8).flatten(1)[:, : local.shape[1]]
        return (F.pad(codes, (0, 0, 0, padded - len(local))),), (scale, outer_size[0])

    def fsdp_post_all_gather(
        self,
        outputs: tuple[Tensor, ...],
        metadata: tuple[Tensor, int],
        dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        scale, rows = metadata
        if out is None:
            return FP8Weight(outputs[0][:rows].view(FP8), scale, dtype), ()
        assert isinstance(out, FP8Weight)  # its codes are where they were gathered to before
        out.scale = scale
        return None


class AgreedScales:
    """Scales of all such weights of a model, agreed on in one message when the first of them is gathered.

    The first is gathered before the others in a forward, and weights change between a backward and a forward alone.
    """

    def __init__(self, weights: Sequence[Tensor]):
        self.shards: list[DTensor] = [weight for weight in weights if isinstance(weight, DTensor)]
        self.rows: list[tuple[int, int]] = []  # of each weight: this rank's first row, and rows of a full part
        # Kept, and written in place: kernels of another stream may still read them; in a backward they do not change.
        self.found: list[Tensor] = []
        self.alone = True
        for number, weight in enumerate(self.shards):
            mesh = weight.device_mesh
            self.group, rank, size = mesh.get_group(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1), mesh.size(-1)
            self.alone, padded = size == 1, -(-weight.shape[0] // size)
            self.rows.append((min(rank * padded, weight.shape[0]), padded))
            down, across = (-(-side // SIDE) for side in weight.shape)
            self.found.append(laid_out(torch.ones(down, across, device=weight.device)))
            shard = weight._local_tensor.as_subclass(FP8Shard)
            shard.scales, shard.number = self, number
            weight._local_tensor = shard

    @torch.no_grad()
    def agree(self) -> None:
        parts = [self.largest(number) for number in range(len(self.shards))]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat, op=dist.ReduceOp.MAX, group=self.group)
        whole = (flat / LARGEST).clamp_(min=LEAST).split([part.numel() for part in parts])
        for found, scale in zip(self.found, whole, strict=True):
            found.copy_(scale.view_as(found))

    def largest(self, number: int) -> Tensor:
        """[blocks down, blocks across] largest magnitudes of a weight in this rank's rows; 0 where it has none."""
        weight, first = self.shards[number], self.rows[number][0]
        by_row = in_lines(weight._local_tensor.as_subclass(torch.Tensor)).abs().amax(2)
        below = -(-weight.shape[0] // SIDE) * SIDE - first - len(by_row)
        return F.pad(by_row, (0, 0, first, below)).unflatten(0, (-1, SIDE)).amax(1)


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
