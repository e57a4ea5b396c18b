"""attention at AF-Next's shapes: the language model over one document, packed documents and a prefill; the encoder."""

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.ops import Absent, Workload, normal

LM = (28, 4, 128)  # query heads, KV heads, head dimension
ENCODER = (20, 20, 64)
# Documents of one packed batch of 32K tokens: a few long recordings, many short clips.
DOCUMENTS = (9200, 6100, 4096, 3300, 2500, 1900, 1400, 1000, 820, 750, 600, 420, 300, 200, 117, 65)
RAGGED = tuple(1500 if i % 3 else 250 + 37 * (i % 31) for i in range(60))


def inputs(lengths: Sequence[int], heads: tuple[int, int, int], packed: bool):
    total, (queries, keys, dim) = sum(lengths), heads

    def make(device: str, dtype: torch.dtype):
        made = {"q": normal(total, queries, dim, device=device, dtype=dtype)}
        made |= {name: normal(total, keys, dim, device=device, dtype=dtype) for name in ("k", "v")}
        if packed:
            bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
            made["cu_seqlens_q"] = bounds.to(device)
        return made

    return make


def dense(backend: SDPBackend, lengths: Sequence[int], causal: bool):
    """PyTorch's fused attention by one of its back ends, where all sequences are equally long."""

    def peer(i):
        if len(set(lengths)) > 1:
            raise Absent("it takes sequences of one length")
        q, k, v = (i[name].unflatten(0, (len(lengths), lengths[0])).transpose(1, 2) for name in "qkv")
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).flatten(0, 1)

    return peer


def bounds(i, lengths: Sequence[int]):
    cu = i.get("cu_seqlens_q")
    return torch.tensor([0, lengths[0]], dtype=torch.int32, device=i["q"].device) if cu is None else cu


def flash(module: str, lengths: Sequence[int], causal: bool, window=None, softcap: float = 0.0):
    """FlashAttention's packed call."""
    more = ({} if window is None else {"window_size": window}) | ({"softcap": softcap} if softcap else {})

    def peer(i):
        try:
            call = importlib.import_module(module).flash_attn_varlen_func
        except ImportError as error:
            raise Absent(f"{module} is not installed") from error
        cu, longest = bounds(i, lengths), max(lengths)
        out = call(i["q"], i["k"], i["v"], cu, cu, longest, longest, causal=causal, **more)
        return out[0] if isinstance(out, tuple) else out

    return peer


def varlen(lengths: Sequence[int], causal: bool):
    """PyTorch's packed call, which promises no grouped heads: keys and values are repeated."""

    def peer(i):
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            raise Absent("this PyTorch has no varlen_attn") from error
        cu, longest, group = bounds(i, lengths), max(lengths), i["q"].shape[1] // i["k"].shape[1]
        k, v = (i[name].repeat_interleave(group, dim=1) if group > 1 else i[name] for name in "kv")
        return varlen_attn(i["q"], k, v, cu, cu, longest, longest, window_size=(-1, 0) if causal else (-1, -1))

    return peer


def workload(name, lengths, heads, causal, packed, trained, matrix, at) -> Workload:
    total, (queries, keys, dim) = sum(lengths), heads
    q, kv, lse = 2 * total * queries * dim, 2 * total * keys * dim, 4 * total * queries
    pairs = sum(n * (n + 1) / 2 if causal else n * n for n in lengths)
    product = 2 * pairs * queries * dim
    return Workload(
        "attention",
        name,
        inputs(lengths, heads, packed),
        ("q", "k", "v") if trained else (),
        # Read q, k, v, write out; then read those, lse and dout, write dq, dk, dv.
        (2 * q + 2 * kv + lse, 4 * q + 4 * kv + lse),
        (2 * product, 5 * product),  # scores again, dp, dq, dk, dv
        options={"causal": causal},
        peers={
            "torch cudnn": dense(SDPBackend.CUDNN_ATTENTION, lengths, causal),
            "torch flash": dense(SDPBackend.FLASH_ATTENTION, lengths, causal),
            "torch efficient": dense(SDPBackend.EFFICIENT_ATTENTION, lengths, causal),
            "torch varlen": varlen(lengths, causal),
            "flash_attn": flash("flash_attn", lengths, causal),
            "flash_attn 3": flash("flash_attn_interface", lengths, causal),
            "flash_attn 4": flash("flash_attn.cute", lengths, causal),
        },
        at=lambda tokens: inputs(at(tokens), heads, packed),
        matrix=matrix,
    )


def local(name, length, heads, window: int, softcap: float, matrix) -> Workload:
    """Causal attention of one sequence within a window, with capped scores: a local layer of Gemma 2."""
    plain = workload(name, (length,), heads, True, False, True, matrix, lambda n: (n,))
    hidden = (length - window - 1) * (length - window) / 2
    shown = 1 - hidden / (length * (length + 1) / 2)
    more = {"window": (window, 0), "softcap": softcap}
    names = {"flash_attn": "flash_attn", "flash_attn 3": "flash_attn_interface"}
    return replace(
        plain,
        flops=tuple(n * shown for n in plain.flops),
        options=plain.options | more,
        peers={peer: flash(module, (length,), True, **more) for peer, module in names.items()},
    )


TRAINED = ("forward_kernel", "dq_kernel", "dkv_kernel")
WORKLOADS = [
    workload("packed causal 32K, 28:4 x 128", DOCUMENTS, LM, True, True, True, TRAINED, lambda n: (n, 2 * n + 1)),
    workload("causal 16K, 28:4 x 128", (16384,), LM, True, False, True, TRAINED, lambda n: (n,)),
    workload("prefill 45K, 28:4 x 128", (45056,), LM, True, False, False, TRAINED[:1], lambda n: (n,)),
    workload("60 windows of 1500, 20 x 64", (1500,) * 60, ENCODER, False, True, True, TRAINED, lambda n: (n,) * 3),
    workload("60 ragged windows, 20 x 64", RAGGED, ENCODER, False, True, True, TRAINED, lambda n: (n, 3)),
    local("window 4096, softcap 50, 16K, 16:8 x 256", 16384, (16, 8, 256), 4096, 50.0, TRAINED),
    local("window 2047, 16K, 32:32 x 96", 16384, (32, 32, 96), 2047, 0.0, TRAINED),
]
