"""cuDNN's attention through PyTorch: sequences of one length, a causal mask aligned at the start.

PyTorch keeps a plan for every shape, strides and thread, and makes it at the first call.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_kernels.attention import providers

if TYPE_CHECKING:
    from afn_kernels.attention.provided import ProviderCall

LSE_GRADIENT = ()


class _Plans(threading.local):
    """The calls that this thread has plans for, and the axes of the log-sum-exp, which releases differ in."""

    def __init__(self):
        self.made: set[tuple] = set()


_plans = _Plans()
_axes = {"lse": 4}


def cudnn_forward(q: Tensor, k: Tensor, v: Tensor, call: ProviderCall) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    key = _planned("forward", q, k, v, call.causal)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, call.causal, False, scale=call.scale
    )
    _plans.made.add(key)
    _axes["lse"] = lse.dim()
    return out.transpose(1, 2), lse


def cudnn_backward(dout, q, k, v, out, lse, call: ProviderCall) -> tuple[Tensor, Tensor, Tensor]:
    # Plans are kept by the strides of q, k and v alone: those of out and dout must not vary.
    dout, q, k, v, out = (x.transpose(1, 2) for x in (dout.contiguous(), q, k, v, out.contiguous()))
    key = _planned("backward", q, k, v, call.causal)
    lse = lse[..., None] if _axes["lse"] == 4 else lse
    unread = torch.empty((), dtype=torch.int64, device=q.device)  # the state of a dropout
    grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        dout, q, k, v, out, lse, unread, unread, None, None, None, *call.lengths, 0.0, call.causal, scale=call.scale
    )
    _plans.made.add(key)
    return tuple(x.transpose(1, 2) for x in grads)


def _planned(which: str, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple:
    key = which, q.dtype, q.device, causal, *((x.shape, x.stride()) for x in (q, k, v))
    if key not in _plans.made and providers.capturing(q):
        raise RuntimeError("cuDNN would make its plan inside of a captured CUDA graph: run the call once before")
    return key
