"""attention at AF-Next's shapes: the language model over one document, packed documents and a prefill; the encoder."""

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.ops import Absent, Workload, normal, sized

LM = (28, 4, 128)  # query heads, KV heads, head dimension
ENCODER = (20, 20, 64)
# Documents of one packed batch of 32K tokens: a few long recordings, many short clips.
DOCUMENTS = (9200, 6100, 4096, 3300, 2500, 1900, 1400, 1000, 820, 750, 600, 420, 300, 200, 117, 65)
TRAINED = ("forward_kernel", "dq_kernel", "dkv_kernel")
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


def cut(length: int, lengths: tuple[int, ...], **_) -> dict:
    """Two sequences of unlike length for those of many lengths, three for windows, one for one."""
    few = {1: (length,), len(DOCUMENTS): (length, 2 * length + 1)}
    return {"lengths": few.get(len(lengths), (length, 3) if len(set(lengths)) > 1 else (length,) * 3)}


def named(lengths: tuple[int, ...], heads: int, kv_heads: int, dim: int, causal: bool, trained: bool) -> str:
    shape = f"{heads} x {dim}" if heads == kv_heads else f"{heads}:{kv_heads} x {dim}"
    if len(lengths) == 1:
        return f"{'causal' if causal else 'full'} {lengths[0]}, {shape}{'' if trained else ', forward'}"
    each = str(lengths[0]) if len(set(lengths)) == 1 else f"{min(lengths)} to {max(lengths)}"
    return f"{'packed causal' if causal else 'full'} {len(lengths)} x {each}, {shape}{'' if trained else ', forward'}"


@sized(cut)
def workload(
    lengths: tuple[int, ...] = DOCUMENTS,
    heads: int = 28,
    kv_heads: int = 4,
    dim: int = 128,
    causal: bool = True,
    trained: bool = True,
) -> Workload:
    total, queries, keys = sum(lengths), heads, kv_heads
    q, kv, lse = 2 * total * queries * dim, 2 * total * keys * dim, 4 * total * queries
    pairs = sum(n * (n + 1) / 2 if causal else n * n for n in lengths)
    product = 2 * pairs * queries * dim
    return Workload(
        "attention",
        named(lengths, heads, kv_heads, dim, causal, trained),
        inputs(lengths, (heads, kv_heads, dim), len(lengths) > 1),
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
        matrix=TRAINED if trained else TRAINED[:1],
    )


@sized()
def local(
    tokens: int = 16384, heads: int = 16, kv_heads: int = 8, dim: int = 256, window: int = 4096, softcap: float = 0.0
) -> Workload:
    """Causal attention of one sequence within a window, with capped scores: a local layer of Gemma 2."""
    plain = workload((tokens,), heads, kv_heads, dim)
    hidden = max(0, tokens - window - 1) * (tokens - window) / 2
    shown = 1 - hidden / (tokens * (tokens + 1) / 2)
    capped = f", softcap {softcap:g}" if softcap else ""
    length = f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)
    more = {"window": (window, 0), "softcap": softcap}
    names = {"flash_attn": "flash_attn", "flash_attn 3": "flash_attn_interface"}
    return replace(
        plain,
        name=f"window {window}{capped}, {length}, {heads}:{kv_heads} x {dim}",
        flops=tuple(n * shown for n in plain.flops),
        options=plain.options | more,
        without=("cuda",),
        peers={peer: flash(module, (tokens,), True, **more) for peer, module in names.items()},
    )


WORKLOADS = [
    replace(workload(*sizes), name=name)
    for name, sizes in {
        "packed causal 32K, 28:4 x 128": (DOCUMENTS, *LM, True),
        "causal 16K, 28:4 x 128": ((16384,), *LM, True),
        "prefill 45K, 28:4 x 128": ((45056,), *LM, True, False),
        "60 windows of 1500, 20 x 64": ((1500,) * 60, *ENCODER, False),
        "60 ragged windows, 20 x 64": (RAGGED, *ENCODER, False),
    }.items()
]
WORKLOADS += [local(softcap=50.0), local(heads=32, kv_heads=32, dim=96, window=2047)]
