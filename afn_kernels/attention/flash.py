"""FlashAttention 3 and 4, and PyTorch's FlashAttention 2, by the functions that take out and log-sum-exp directly.

All align a causal mask at the end, as we do, take grouped heads, and have their log-sum-exp in natural logarithm, as
[H, T] for packed sequences and [B, H, S] for those of one length.

Source: flash-attn-3's operators ``flash_attn_3::fwd`` and ``bwd``, flash-attn-4's ``flash_attn.cute.interface``, and
``aten::_flash_attention_forward`` and ``_backward``, by their published signatures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from afn_kernels.attention.provided import ProviderCall

LSE_GRADIENT = ("flash4",)
Gradients = tuple[Tensor, Tensor, Tensor]


def flash3_forward(q: Tensor, k: Tensor, v: Tensor, call: ProviderCall) -> tuple[Tensor, Tensor]:
    importlib.import_module("flash_attn_interface")  # it registers the operators
    out, lse, *_ = torch.ops.flash_attn_3.fwd(q, k, v, num_splits=1, **_flash3_options(call))
    return out, lse


def flash3_backward(dout, q, k, v, out, lse, call: ProviderCall) -> Gradients:
    importlib.import_module("flash_attn_interface")
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    into = dict(zip(("dq", "dk", "dv"), grads, strict=True))
    options = _flash3_options(call) | into
    torch.ops.flash_attn_3.bwd(dout, q, k, v, out, lse, deterministic=call.deterministic, **options)
    return grads


def _flash3_options(call: ProviderCall) -> dict:
    options = {"softmax_scale": call.scale, "is_causal": call.causal, "softcap": call.softcap}
    options |= {"window_size_left": call.left, "window_size_right": call.right}
    if call.cu_q is not None:
        most_q, most_k = call.longest()
        options |= {"cu_seqlens_q": call.cu_q, "cu_seqlens_k": call.cu_k}
        options |= {"max_seqlen_q": most_q, "max_seqlen_k": most_k}
    return options


def flash4_forward(q: Tensor, k: Tensor, v: Tensor, call: ProviderCall) -> tuple[Tensor, Tensor]:
    module = importlib.import_module("flash_attn.cute.interface")
    out, lse, *_ = module._flash_attn_fwd(q, k, v, return_lse=True, **_flash4_options(call))
    return out, lse


def flash4_backward(dout, q, k, v, out, lse, call: ProviderCall, dlse: Tensor | None = None) -> Gradients:
    module = importlib.import_module("flash_attn.cute.interface")
    options = _flash4_options(call) | {"deterministic": call.deterministic}
    options |= {} if dlse is None else {"dlse": dlse}
    dq, dk, dv, *_ = module._flash_attn_bwd(q, k, v, out, dout, lse, **options)
    return dq, dk, dv


def _flash4_options(call: ProviderCall) -> dict:
    options = {"softmax_scale": call.scale, "causal": call.causal, "softcap": call.softcap}
    if call.left >= 0 or (call.right >= 0 and not call.causal):
        left, right = (None if n < 0 else n for n in (call.left, call.right))
        options |= {"window_size_left": left, "window_size_right": right}
    if call.cu_q is not None:
        options |= {"cu_seqlens_q": call.cu_q, "cu_seqlens_k": call.cu_k}
    return options


def torch_forward(q: Tensor, k: Tensor, v: Tensor, call: ProviderCall) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, call.cu_q, call.cu_k, *call.longest(), 0.0, call.causal, False, **_torch_options(call)
    )
    return out, lse


def torch_backward(dout, q, k, v, out, lse, call: ProviderCall) -> Gradients:
    """Deterministic where PyTorch is asked to be: the operator looks itself."""
    unread = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of a dropout
    boundaries = call.cu_q, call.cu_k, *call.longest()
    return torch.ops.aten._flash_attention_backward(
        dout, q, k, v, out, lse, *boundaries, 0.0, call.causal, unread, unread, **_torch_options(call)
    )


def _torch_options(call: ProviderCall) -> dict:
    left, right = (None if n < 0 else n for n in (call.left, call.right))
    return {"scale": call.scale, "window_size_left": left, "window_size_right": right}
