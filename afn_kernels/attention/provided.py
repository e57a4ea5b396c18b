"""Calls of other people's kernels as torch.compile and autograd see them.

A provider has two functions: out and log-sum-exp of some keys, and gradients from the out and the log-sum-exp of all
keys. The rest is here: parts are merged in float32, and what a provider refuses when it is called our own kernels run.
"""

from __future__ import annotations

import dataclasses
import importlib
from functools import partial

import torch
from torch import Tensor

from afn_kernels import _verdicts
from afn_kernels._library import Boundary
from afn_kernels.attention import general, providers
from afn_kernels.attention.gradients import empty_gradients
from afn_kernels.attention.window import UNLIMITED, flat, given

INFINITY = float("inf")


@dataclasses.dataclass(frozen=True)
class ProviderCall:
    """What a provider is told besides the tensors. ``cu_q`` is None where all sequences have one length."""

    sequences: int
    lengths: tuple[int, int]  # of the queries and of the keys, in all or of one sequence
    cu_q: Tensor | None
    cu_k: Tensor | None
    causal: bool
    left: int  # −1 has no limit, as for FlashAttention
    right: int
    softcap: float
    scale: float

    @staticmethod
    def of(q, k, cu_q, cu_k, causal, left, right, softcap, scale) -> ProviderCall:
        numbers = causal, *theirs(causal, left, right), softcap, scale
        if (found := providers.equal(q, k, cu_q, cu_k)) is not None:
            return ProviderCall(found[0], found[1:], None, None, *numbers)
        return ProviderCall(len(cu_q) - 1, (len(q), len(k)), cu_q.contiguous(), cu_k.contiguous(), *numbers)

    def longest(self) -> tuple[int, int]:
        """Bounds on the queries and the keys of a sequence."""
        if self.cu_q is None or self.cu_k is None or providers.capturing(self.cu_q):
            return self.lengths  # in a captured graph the bound has to hold for every replay
        return providers.longest(self.cu_q), providers.longest(self.cu_k)

    @property
    def deterministic(self) -> bool:
        return torch.are_deterministic_algorithms_enabled()

    def cut(self, x: Tensor) -> Tensor:
        """[T, H, D] as the provider takes it: [B, S, H, D] where all sequences have one length."""
        return x if self.cu_q is not None else x.unflatten(0, (self.sequences, -1))

    def cut_lse(self, lse: Tensor) -> Tensor:
        """[T, H] as [H, T] or [B, H, S], contiguous; rows without a key +inf, so that exp(score − lse) is 0."""
        lse = lse.t()
        if self.cu_q is None:
            lse = lse.unflatten(1, (self.sequences, -1)).transpose(0, 1)
        return lse.masked_fill(lse == -INFINITY, INFINITY).contiguous()

    def joined_lse(self, lse: Tensor) -> Tensor:
        """[H, T] or [B, H, S] as [T, H], in memory [H, T]; rows without a key −inf, whatever the provider says."""
        if self.cu_q is None:
            lse = lse.reshape(lse.shape[:3]).transpose(0, 1).flatten(1)
        return lse.masked_fill(lse == INFINITY, -INFINITY).contiguous().t()


def theirs(causal: bool, left: int, right: int) -> tuple[int, int]:
    """The window that ``flat`` gave, as FlashAttention counts it: −1 has no limit, and causal has 0 to the right."""
    if left < 0:
        return -1, 0 if causal else -1
    return (-1 if left == UNLIMITED else left), (-1 if right == UNLIMITED else right)


def aligned(x: Tensor) -> Tensor:
    """x with adjacent elements and rows at multiples of 16 bytes, which their loads take for granted."""
    size = x.element_size()
    far = any(stride * size % 16 for stride, n in zip(x.stride()[:-1], x.shape, strict=False) if n > 1)
    if x.stride(-1) != 1 or far or x.data_ptr() % 16:
        return x.clone(memory_format=torch.contiguous_format)
    return x


def merged(out: Tensor, lse: Tensor, out_c: Tensor, lse_c: Tensor) -> tuple[Tensor, Tensor]:
    """out = out_c + w (out − out_c) with w = exp(lse − log(exp lse + exp lse_c)): attention over both sets of keys.

    Without keys in both, or in this one, w is 0; without any in the carry it is 1.
    """
    both = torch.logaddexp(lse.t(), lse_c.t()).contiguous().t()
    weight = (lse - both).exp().masked_fill(lse == -INFINITY, 0.0)
    return torch.lerp(out_c, out.float(), weight[..., None]), both


def _functions(provider: str):
    """The provider's ``forward`` and ``backward``, and whether the latter takes a gradient of the log-sum-exp."""
    module, prefix = KERNELS[provider]
    return importlib.import_module(f"afn_kernels.attention.{module}"), prefix


KERNELS = {
    "flash3": ("flash", "flash3"),
    "flash4": ("flash", "flash4"),
    "varlen": ("flash", "torch"),
    "flash": ("flash", "torch"),
    "cudnn": ("cudnn", "cudnn"),
}
FATAL = tuple(
    error
    for error in (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", None), torch.cuda.DeferredCudaCallError)
    if error is not None
)  # no refusals: another kernel would fare no better


def forward(
    q, k, v, out_c, lse_c, cu_q, cu_k, causal, left, right, softcap, scale, provider, named
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out [Tq, Hq, D], float32 with a carry, and lse [Tq, Hq], in memory [Hq, Tq]."""
    if not len(q) or not len(k):
        out, lse = torch.zeros_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[1], len(q)).float()
        lse = lse.fill_(-INFINITY).t()
    else:
        try:
            call = ProviderCall.of(q, k, cu_q, cu_k, causal, left, right, softcap, scale)
            module, name = _functions(provider)
            found = getattr(module, f"{name}_forward")(*(call.cut(aligned(x)) for x in (q, k, v)), call)
            out, lse = found[0].reshape(q.shape).contiguous(), call.joined_lse(found[1])
        except FATAL:
            raise
        except Exception as error:
            if named or not _verdicts.is_theirs(error):
                raise
            _refused(provider, q, k, cu_q, causal, left, right, softcap, error)
            return general.forward(q, k, v, out_c, lse_c, cu_q, cu_k, causal, left, right, softcap, scale)
    return (out, lse) if out_c is None else merged(out, lse, out_c, lse_c)


def backward(
    dout, dlse, q, k, v, out, lse, out_c, lse_c, cu_q, cu_k, causal, left, right, softcap, scale,
    need_dq, need_dkv, need_carry, provider, named,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, and with a carry of its out and lse; ``out`` and ``lse`` are those of all keys."""
    module, name = _functions(provider)
    numbers = causal, left, right, softcap, scale
    ours = (dout, dlse, q, k, v, out, lse, out_c, lse_c, cu_q, cu_k, *numbers, need_dq, need_dkv, need_carry)
    grads = [q.new_empty(0), k.new_empty(0), v.new_empty(0)]
    if (need_dq or need_dkv) and (not len(q) or not len(k)):
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    elif need_dq or need_dkv:
        if dlse is not None and name not in module.LSE_GRADIENT:
            return general.backward(*ours)
        try:
            call = ProviderCall.of(q, k, cu_q, cu_k, *numbers)
            tensors = [call.cut(aligned(x)) for x in (dout.to(q.dtype), q, k, v, out.to(q.dtype))]
            more = () if dlse is None else (call.cut_lse(dlse).float(),)
            found = getattr(module, f"{name}_backward")(*tensors, call.cut_lse(lse), call, *more)
            grads = [x.reshape(like.shape).contiguous() for x, like in zip(found, (q, k, v), strict=True)]
        except FATAL:
            raise
        except Exception as error:
            if named or not _verdicts.is_theirs(error):
                raise
            _refused(provider, q, k, cu_q, causal, left, right, softcap, error)
            return general.backward(*ours)
    dout_c, dlse_c = q.new_empty(0, dtype=torch.float32), q.new_empty(0, dtype=torch.float32)
    if need_carry:
        dout_c, dlse_c = carried(dout.float(), dlse, out, lse, out_c, lse_c)
    return (
        grads[0] if need_dq else q.new_empty(0),
        *(x if need_dkv else x.new_empty(0) for x in grads[1:]),
        dout_c,
        dlse_c,
    )


def carried(dout, dlse, out, lse, out_c, lse_c) -> tuple[Tensor, Tensor]:
    """With c = exp(lse_c − lse): c dout and c (Σ dout ∘ (out_c − out) + dlse)."""
    weight = (lse_c - lse).exp().masked_fill(lse_c == -INFINITY, 0.0)
    moved = (dout * (out_c - out)).sum(-1)
    moved = moved if dlse is None else moved + dlse
    return weight[..., None] * dout, (weight * moved).t().contiguous().t()


def _refused(provider, q, k, cu_q, causal, left, right, softcap, error) -> None:
    options = {"cu_seqlens_q": cu_q, "causal": causal, "window": given(left, right), "softcap": softcap}
    providers.set_aside(providers.kind(provider, q, k, **options), error)


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, out_c: Tensor | None, lse_c: Tensor | None, cu_q: Tensor | None,
    cu_k: Tensor | None, causal: bool, left: int, right: int, softcap: float, scale: float, provider: str, named: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return q.new_empty(q.shape, dtype=q.dtype if out_c is None else torch.float32), lse.t()


def _setup_context(ctx, inputs, output):
    tensors, ctx.options = inputs[:7], inputs[7:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])


def _backward(ctx, dout, dlse):
    need, tensors = ctx.needs_input_grad, ctx.saved_tensors
    dout = torch.zeros_like(tensors[3]) if dout is None else dout
    needs = need[0], need[1] or need[2], need[3] or need[4]
    return BACKWARD(dout, dlse, *tensors, *ctx.options[:5], *needs, *ctx.options[5:])


def _backward_fake(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    out_c: Tensor | None, lse_c: Tensor | None, cu_q: Tensor | None, cu_k: Tensor | None,
    causal: bool, left: int, right: int, softcap: float, scale: float, need_dq: bool, need_dkv: bool, need_carry: bool,
    provider: str, named: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return empty_gradients(q, k, v, need_dq, need_dkv, need_carry)


FORWARD = Boundary(
    "attention_provided",
    "afn_kernels.attention.provided:forward",
    _forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
BACKWARD = Boundary("attention_provided_backward", "afn_kernels.attention.provided:backward", _backward_fake)


def _attend(
    provider: str, q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, scale, window=None, softcap=0.0, return_lse=False,
    carry=None, named=True, **_,
):  # fmt: skip
    """A provider's row of the op's table; ``named`` by the caller, it raises instead of falling through."""
    numbers = causal, *flat(window), float(softcap), float(scale)
    out, lse = FORWARD(q, k, v, *(carry or (None, None)), cu_seqlens_q, cu_seqlens_k, *numbers, provider, named)
    return (out, lse) if return_lse or carry is not None else out


flash3, flash4, varlen, flash, cudnn = (partial(_attend, name) for name in KERNELS)


def gradients(provider: str, dout, q, k, v, out, lse, *, cu_seqlens_q, cu_seqlens_k, causal, scale, named: bool):
    """dq, dk and dv of a part of the keys, from the out and the log-sum-exp of all of them."""
    numbers = causal, *flat(None), 0.0, float(scale)
    needs = True, True, False
    tensors = dout, None, q, k, v, out, lse, None, None, cu_seqlens_q, cu_seqlens_k
    return BACKWARD(*tensors, *numbers, *needs, provider, named)[:3]
