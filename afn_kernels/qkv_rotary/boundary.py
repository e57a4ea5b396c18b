"""qkv_rotary as torch.compile sees its kernel; it has no backward."""

import torch
from torch import Tensor

from afn_kernels._library import Boundary


def _fake(
    qkv: Tensor, bias: Tensor | None, positions: Tensor, inv_freq: Tensor, slots: Tensor,
    k_scale: Tensor | None, v_scale: Tensor | None, k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    kv_heads, width = k_cache.shape[1:]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // width - 2 * kv_heads, width)


WRITE = Boundary("qkv_rotary", "afn_kernels.qkv_rotary.cuda:write", _fake, writes=("k_cache", "v_cache"))


def qkv_rotary(qkv, positions, inv_freq, k_cache, v_cache, slots, *, bias, k_scale, v_scale):
    """The "cuda" row of the op's table."""
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    k_scale, v_scale = (None if x is None else x.detach().reshape(-1).contiguous() for x in (k_scale, v_scale))
    small = None if bias is None else bias.contiguous(), positions.contiguous(), inv_freq.contiguous()
    q = WRITE(qkv, *small, slots.contiguous(), k_scale, v_scale, k_cache, v_cache)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version((k_cache, v_cache))  # a direct launch is no write that autograd sees
    return q
