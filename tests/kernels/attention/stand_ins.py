"""Other people's attention where there is no GPU: their published signatures, and plain PyTorch in float32 behind them.

They are strict where the originals are: names and places of arguments, dtypes, shapes, adjacent elements, which
statistics of the softmax they return for rows without keys, and how a causal mask is aligned.
"""

from __future__ import annotations

import itertools
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor

from afn_kernels._registry import constant
from afn_kernels.attention import providers

INFINITY = float("inf")
DTYPES = [torch.float16, torch.bfloat16]
FLASH3_FORWARD = """fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None,
 Tensor? q_v=None, Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None,
 Tensor? cu_seqlens_k_new=None, Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None,
 int? max_seqlen_k=None, Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None,
 Tensor? rotary_cos=None, Tensor? rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None,
 Tensor? k_descale=None, Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False,
 int window_size_left=-1, int window_size_right=-1, int attention_chunk=0, float softcap=0.0,
 bool is_rotary_interleaved=False, Tensor? scheduler_metadata=None, int num_splits=0, bool? pack_gqa=None,
 int sm_margin=0) -> (Tensor(out!), Tensor, Tensor, Tensor)"""
FLASH3_BACKWARD = """bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse,
 Tensor(dq!)? dq=None, Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, Tensor? cu_seqlens_q=None,
 Tensor? cu_seqlens_k=None, Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None,
 int? max_seqlen_k=None, float? softmax_scale=None, bool is_causal=False, int window_size_left=-1,
 int window_size_right=-1, float softcap=0.0, bool deterministic=False, int sm_margin=0) -> (Tensor(dq!),
 Tensor(dk!), Tensor(dv!), Tensor, Tensor, Tensor, Tensor, Tensor)"""


class Told(dict):
    """What the last call was told, by function."""


def bounds(x: Tensor, cu: Tensor | None, most: int | None) -> list[tuple[int, int]]:
    """First and last row of every sequence in [T, H, D]; or in [B, S, H, D], end to end."""
    if cu is None:
        assert x.dim() == 4, x.shape
        return [(i * x.shape[1], (i + 1) * x.shape[1]) for i in range(len(x))]
    assert x.dim() == 3, x.shape
    assert cu.dtype == torch.int32
    assert cu.is_contiguous()
    edges = cu.tolist()
    assert edges[0] == 0
    assert edges[-1] == len(x)
    if most is not None:
        assert most >= max(b - a for a, b in itertools.pairwise(edges)), most
    return list(itertools.pairwise(edges))


def checked(*tensors: Tensor) -> None:
    for x in tensors:
        assert x.dtype in DTYPES
        assert x.dtype == tensors[0].dtype
        assert x.stride(-1) == 1
        assert not any(s * x.element_size() % 16 for s in x.stride()[:-1]), x.stride()
        assert x.data_ptr() % 16 == 0


def scores(q: Tensor, k: Tensor, at_end: bool, left: int, right: int, softcap: float, scale: float):
    """Scores [H, Q, K] of one sequence, −inf where hidden, and the derivative of the cap."""
    s = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scale
    slope = torch.ones_like(s)
    if softcap:
        slope = 1 - (s / softcap).tanh() ** 2
        s = softcap * (s / softcap).tanh()
    own = torch.arange(len(q))[:, None] + (len(k) - len(q) if at_end else 0)
    key = torch.arange(len(k))
    hidden = torch.zeros(len(q), len(k), dtype=torch.bool)
    if left >= 0:
        hidden |= key < own - left
    if right >= 0:
        hidden |= key > own + right
    return s.masked_fill(hidden, -INFINITY), slope


def attend(q, k, v, rows, options, no_key: float) -> tuple[Tensor, Tensor]:
    """out in the shape of q, and lse [H, T]."""
    flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[-2:]).float() for x in (q, k, v))
    out, lse = torch.zeros_like(flat_q), torch.full((q.shape[-2], len(flat_q)), no_key)
    for (q0, q1), (k0, k1) in zip(*rows, strict=True):
        s, _ = scores(flat_q[q0:q1], flat_k[k0:k1], *options)
        found = s.logsumexp(-1)
        p = (s - found.masked_fill(found == -INFINITY, 0.0)[..., None]).exp()
        wide = flat_v[k0:k1].repeat_interleave(q.shape[-2] // k.shape[-2], 1)
        out[q0:q1] = torch.einsum("hqk,khd->qhd", p, wide)
        lse[:, q0:q1] = found.masked_fill(found == -INFINITY, no_key)
    return out.reshape(q.shape).to(q.dtype), lse


def gradients(dout, q, k, v, out, lse, rows, options, dlse=None) -> tuple[Tensor, ...]:
    """From the out and the lse [H, T] that are given, whatever keys they are over."""
    scale = options[-1]
    flat = [x.reshape(-1, *x.shape[-2:]).float() for x in (dout, q, k, v, out)]
    moved = -(flat[0] * flat[4]).sum(-1).t() + (0 if dlse is None else dlse)
    grads = [torch.zeros_like(x) for x in flat[1:4]]
    group = q.shape[-2] // k.shape[-2]
    for (q0, q1), (k0, k1) in zip(*rows, strict=True):
        one_q, one_k, one_v = flat[1][q0:q1], flat[2][k0:k1], flat[3][k0:k1].repeat_interleave(group, 1)
        s, slope = scores(one_q, one_k, *options)
        p = (s - lse[:, q0:q1, None]).exp()
        assert torch.isfinite(p).all(), "a row without keys has an lse that exp(score − lse) cannot take"
        ds = p * (torch.einsum("qhd,khd->hqk", flat[0][q0:q1], one_v) + moved[:, q0:q1, None]) * slope * scale
        grads[0][q0:q1] = torch.einsum("hqk,khd->qhd", ds, one_k.repeat_interleave(group, 1))
        grads[1][k0:k1] = torch.einsum("hqk,qhd->khd", ds, one_q).unflatten(1, (-1, group)).sum(2)
        grads[2][k0:k1] = torch.einsum("hqk,qhd->khd", p, flat[0][q0:q1]).unflatten(1, (-1, group)).sum(2)
    return tuple(x.reshape(like.shape).to(like.dtype) for x, like in zip(grads, (q, k, v), strict=True))


def lse_as_published(lse: Tensor, q: Tensor) -> Tensor:
    """[H, T], or [B, H, S] for q [B, S, H, D]."""
    return lse if q.dim() == 3 else lse.unflatten(1, q.shape[:2]).transpose(0, 1).contiguous()


def lse_as_taken(lse: Tensor, q: Tensor) -> Tensor:
    shape = (q.shape[1], len(q)) if q.dim() == 3 else (len(q), q.shape[2], q.shape[1])
    assert lse.shape == shape
    assert lse.dtype == torch.float32
    assert lse.is_contiguous()
    return lse if q.dim() == 3 else lse.transpose(0, 1).flatten(1)


def _sides(causal: bool, left, right) -> tuple[int, int]:
    left, right = (-1 if n is None else n for n in (left, right))
    return left, 0 if causal else right


def flash3(told: Told) -> torch.library.Library:
    library = torch.library.Library("flash_attn_3", "DEF")
    library.define(FLASH3_FORWARD)
    library.define(FLASH3_BACKWARD)

    def fwd(
        q, k, v, k_new=None, v_new=None, q_v=None, into=None, cu_q=None, cu_k=None, cu_new=None, used_q=None,
        used_k=None, most_q=None, most_k=None, pages=None, kv_index=None, left_pad=None, cos=None, sin=None,
        rotary_lengths=None, q_scale=None, k_scale=None, v_scale=None, scale=None, causal=False, left=-1, right=-1,
        chunk=0, softcap=0.0, interleaved=False, metadata=None, splits=0, pack=None, margin=0,
    ):  # fmt: skip
        told["flash3"] = {"max": (most_q, most_k), "splits": splits}
        checked(q, k, v)
        assert cu_q is None or most_q is not None, "max_seqlen_q must be provided if cu_seqlens_q is provided"
        rows = bounds(q, cu_q, most_q), bounds(k, cu_k, most_k)
        options = (True, *_sides(causal, left, right), softcap, scale)
        out, lse = attend(q, k, v, rows, options, -INFINITY)
        return out, lse_as_published(lse, q), torch.empty(0), torch.empty(0)

    def bwd(
        dout, q, k, v, out, lse, dq=None, dk=None, dv=None, cu_q=None, cu_k=None, used_q=None, used_k=None, most_q=None,
        most_k=None, scale=None, causal=False, left=-1, right=-1, softcap=0.0, deterministic=False, margin=0,
    ):  # fmt: skip
        told["flash3"] = {"deterministic": deterministic}
        checked(dout, q, k, v, out)
        rows = bounds(q, cu_q, most_q), bounds(k, cu_k, most_k)
        options = (True, *_sides(causal, left, right), softcap, scale)
        for into, grad in zip(
            (dq, dk, dv), gradients(dout, q, k, v, out, lse_as_taken(lse, q), rows, options), strict=True
        ):
            into.copy_(grad)
        return dq, dk, dv, *(torch.empty(0) for _ in range(5))

    library.impl("fwd", fwd, "CPU")
    library.impl("bwd", bwd, "CPU")
    return library


def flash4(told: Told) -> SimpleNamespace:
    def _flash_attn_fwd(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None,
        max_seqlen_k=None, min_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, softcap=None,
        window_size_left=None, window_size_right=None, learnable_sink=None, num_splits=1, pack_gqa=None,
        return_lse=False, out=None, lse=None,
    ):  # fmt: skip
        checked(q, k, v)
        assert return_lse, "without it there is no lse where no input needs a gradient"
        assert window_size_left is None or window_size_left >= 0
        rows = bounds(q, cu_seqlens_q, max_seqlen_q), bounds(k, cu_seqlens_k, max_seqlen_k)
        options = (True, *_sides(causal, window_size_left, window_size_right), softcap or 0.0, softmax_scale)
        found, stats = attend(q, k, v, rows, options, -INFINITY)
        return found, lse_as_published(stats, q), None, None, None

    def _flash_attn_bwd(
        q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, window_size_left=None,
        window_size_right=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None,
        max_seqlen_k=None, deterministic=False, dq=None, dk=None, dv=None, dlse=None, learnable_sink=None,
    ):  # fmt: skip
        told["flash4"] = {"deterministic": deterministic, "dlse": dlse}
        checked(q, k, v, out, dout)
        rows = bounds(q, cu_seqlens_q, max_seqlen_q), bounds(k, cu_seqlens_k, max_seqlen_k)
        options = (True, *_sides(causal, window_size_left, window_size_right), softcap, softmax_scale)
        dlse = None if dlse is None else lse_as_taken(dlse, q)
        return gradients(dout, q, k, v, out, lse_as_taken(lse, q), rows, options, dlse)

    return SimpleNamespace(_flash_attn_fwd=_flash_attn_fwd, _flash_attn_bwd=_flash_attn_bwd)


def pytorchs(told: Told) -> torch.library.Library:
    """``aten::_flash_attention_forward`` and cuDNN's on CPU tensors; their schemas are PyTorch's own."""
    library = torch.library.Library("aten", "IMPL")
    numbers = torch.empty(2, dtype=torch.uint64)

    def forward(q, k, v, cu_q, cu_k, most_q, most_k, dropout, causal, debug, *, scale=None, window_size_left=None,
                window_size_right=None, seqused_k=None, alibi_slopes=None):  # fmt: skip
        assert not dropout
        assert not debug
        told["torch"] = {"max": (most_q, most_k), "packed": cu_q is not None}
        checked(q, k, v)
        rows = bounds(q, cu_q, most_q), bounds(k, cu_k, most_k)
        options = (True, *_sides(causal, window_size_left, window_size_right), 0.0, scale)
        out, lse = attend(q, k, v, rows, options, INFINITY)  # its backward wants +inf for rows without keys
        return out, lse_as_published(lse, q), numbers, numbers, torch.empty(0)

    def backward(dout, q, k, v, out, lse, cu_q, cu_k, most_q, most_k, dropout, causal, rng, unused, *, scale=None,
                 window_size_left=None, window_size_right=None):  # fmt: skip
        checked(dout, q, k, v, out)
        rows = bounds(q, cu_q, most_q), bounds(k, cu_k, most_k)
        options = (True, *_sides(causal, window_size_left, window_size_right), 0.0, scale)
        return gradients(dout, q, k, v, out, lse_as_taken(lse, q), rows, options)

    def dense(*tensors):
        """From [B, H, S, D] in the order of memory that a plan was made for."""
        for x in tensors:
            assert x.dim() == 4
        return [x.transpose(1, 2) for x in tensors]

    def cudnn(q, k, v, bias, compute_lse, dropout=0.0, causal=False, debug=False, *, scale=None):
        assert bias is None
        assert compute_lse
        assert not dropout
        assert not debug
        q, k, v = dense(q, k, v)
        checked(q, k, v)
        assert not causal or q.shape[1] == k.shape[1] or not told.get("aligned", True)
        rows = bounds(q, None, None), bounds(k, None, None)
        out, lse = attend(q, k, v, rows, (False, *_sides(causal, None, None), 0.0, scale), -INFINITY)
        lse = lse_as_published(lse, q)[..., None][..., : 1 if told.get("axes", 4) == 4 else None]
        lse = lse if told.get("axes", 4) == 4 else lse[..., 0]
        seed = torch.empty((), dtype=torch.int64)
        return out.transpose(1, 2), lse, None, None, q.shape[1], k.shape[1], seed, seed, None

    def cudnn_backward(dout, q, k, v, out, lse, seed, offset, bias, cu_q, cu_k, most_q, most_k, dropout, causal, *,
                       scale=None):  # fmt: skip
        assert lse.dim() == told.get("axes", 4), lse.shape
        dout, q, k, v, out = dense(dout, q, k, v, out)
        checked(dout, q, k, v, out)
        assert dout.is_contiguous()
        assert out.is_contiguous()
        assert (most_q, most_k) == (q.shape[1], k.shape[1])
        rows = bounds(q, None, None), bounds(k, None, None)
        options = (False, *_sides(causal, None, None), 0.0, scale)
        found = gradients(dout, q, k, v, out, lse_as_taken(lse.reshape(lse.shape[:3]), q), rows, options)
        return tuple(x.transpose(1, 2) for x in found)

    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    library.impl("_scaled_dot_product_cudnn_attention", cudnn, "CPU")
    library.impl("_scaled_dot_product_cudnn_attention_backward", cudnn_backward, "CPU")
    return library


@contextmanager
def standing_in(*, wide: bool = False):
    """Within it all providers run on CPU tensors, on float32 too with ``wide``; yields what they are told."""
    told = Told()
    modules = {
        "flash_attn_interface": SimpleNamespace(),
        "flash_attn": SimpleNamespace(__path__=[]),
        "flash_attn.cute": SimpleNamespace(__path__=[]),
        "flash_attn.cute.interface": flash4(told),
    }
    dtypes = (*DTYPES, torch.float32) if wide else tuple(DTYPES)
    libraries = [flash3(told), pytorchs(told)]
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)  # one by one: what is imported meanwhile stays
    try:
        with (
            mock.patch.object(providers, "DEVICES", ("cpu",)),
            mock.patch.object(providers, "HALF", dtypes),
            mock.patch.object(providers, "_gpu", constant(lambda: True)),
            mock.patch.object(providers, "installed", constant(lambda module: True)),
            mock.patch.object(providers, "generation", constant(lambda device: providers.HOPPER)),
            mock.patch.object(providers, "_cudnn_version", constant(lambda: providers.CUDNN)),
            mock.patch.dict(providers._set_aside, clear=True),
            mock.patch.dict(providers._work, clear=True),
            mock.patch.dict(globals(), DTYPES=list(dtypes)),
        ):
            yield told
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        for library in libraries:
            library._destroy()
