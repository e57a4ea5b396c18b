"""Causal ConvNeXt blocks and the strided convolutions between them; everything is [batch, time, channels].

A stream passes a ``State`` along: what each module must remember of the past.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import afn_kernels as ak

State = dict[nn.Module, Tensor]


class ConvNeXtBlock(nn.Module):
    """x + scale · MLP(LayerNorm(depthwise causal convolution of x)); Liu et al. 2022, arXiv:2201.03545."""

    def __init__(self, width: int, kernel: int, scale: float):
        super().__init__()
        self.taps = nn.Parameter(nn.init.normal_(torch.empty(width, kernel), std=kernel**-0.5))
        self.bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        past = self.taps.shape[1] - 1
        before = None
        if state is not None:
            before = state.get(self)
            before = x.new_zeros(len(x), past, x.shape[2]) if before is None else before
            state[self] = torch.cat([before, x], 1)[:, x.shape[1] :].clone()  # not a view that keeps the chunk
        y = self.norm(ak.causal_conv(x, self.taps, self.bias, before))
        return x + self.scale * self.down(F.gelu(self.up(y)))


class Blocks(nn.ModuleList):
    """ConvNeXt blocks one after the other."""

    def __init__(self, width: int, blocks: int, kernel: int, scale: float):
        super().__init__(ConvNeXtBlock(width, kernel, scale) for _ in range(blocks))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        for block in self:
            x = block(x, state)
        return x


class Shorten(nn.Module):
    """A convolution of as many taps as its stride, so that a frame needs nothing before it: [B, T·s, C] -> [B, T, D].

    The paper gives the stride alone; what lies before is what the causal blocks on both sides are for.
    """

    def __init__(self, width: int, after: int, stride: int):
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width * stride, after)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        return self.linear(self.norm(x).reshape(batch, time // self.stride, width * self.stride))


class Lengthen(nn.Module):
    """The transposed convolution of the same shape: [B, T, D] -> [B, T·s, C]."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.stride, self.width = stride, width
        self.linear = nn.Linear(before, width * stride)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        return self.norm(self.linear(x).reshape(batch, time * self.stride, self.width))
