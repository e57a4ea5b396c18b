"""decode_attention of the language model: 28 query heads on 4 KV heads of 128, from 1K to 128K of context."""

import torch
import torch.nn.functional as F

from bench.ops import Absent, Workload, normal, sized

HEADS, KV_HEADS, WIDTH = 28, 4, 128


def inputs(batch: int, context: int, new: int = 1, page: int = 0, fp8: bool = False):
    def make(device: str, dtype: torch.dtype):
        shape = (batch * context // page, page) if page else (batch, context)
        cache = [normal(*shape, KV_HEADS, WIDTH, device=device, dtype=dtype) for _ in range(2)]
        made = {
            "q": normal(batch, new, HEADS, WIDTH, device=device, dtype=dtype),
            "k_cache": cache[0].to(torch.float8_e4m3fn) if fp8 else cache[0],
            "v_cache": cache[1].to(torch.float8_e4m3fn) if fp8 else cache[1],
            "lengths": torch.full((batch,), context, dtype=torch.int32, device=device),
        }
        if page:
            order = torch.randperm(batch * context // page, device=device)
            made["block_table"] = order.view(batch, -1).to(torch.int32)
        if fp8:
            made |= {name: torch.ones(KV_HEADS, device=device) for name in ("k_scale", "v_scale")}
        return made

    return make


def torchs(i):
    """scaled_dot_product_attention over the whole capacity, which is what is valid here."""
    if "block_table" in i or "k_scale" in i:
        raise Absent("scaled_dot_product_attention reads neither pages nor FP8")
    if i["q"].shape[1] > 1:
        raise Absent("its causal mask is that of the first tokens, not of the last")
    q, k, v = (i[name].transpose(1, 2) for name in ("q", "k_cache", "v_cache"))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)


compiled = torch.compile(torchs, dynamic=True)


def flash(i):
    try:
        from flash_attn import flash_attn_with_kvcache
    except ImportError as error:
        raise Absent("flash-attn is not installed") from error
    if "k_scale" in i:
        raise Absent("its version 2 reads no FP8 cache")
    table, lengths = i.get("block_table"), i["lengths"]
    return flash_attn_with_kvcache(
        i["q"], i["k_cache"], i["v_cache"], cache_seqlens=lengths, block_table=table, causal=True
    )


def flash3(i):
    try:
        from flash_attn_interface import flash_attn_with_kvcache
    except ImportError as error:
        raise Absent("flash-attn 3 is not installed") from error
    if "k_scale" in i:
        raise Absent("with an FP8 cache it wants FP8 queries")
    table, lengths = i.get("block_table"), i["lengths"]
    return flash_attn_with_kvcache(
        i["q"], i["k_cache"], i["v_cache"], cache_seqlens=lengths, page_table=table, causal=True
    )


@sized(lambda length, page, **_: {"context": length * max(1, page)})
def workload(batch: int = 1, context: int = 45056, new: int = 1, page: int = 0, fp8: bool = False) -> Workload:
    """No kernel is in ``matrix``: a tile of 16 query rows is below the 64 of HGMMA and runs on HMMA (mma.sync)."""
    cache = 2 * batch * context * KV_HEADS * WIDTH * (1 if fp8 else 2)
    queries = 2 * batch * new * HEADS * WIDTH * 2
    name = f"{batch} x {context}, {new} new{f', pages of {page}' if page else ''}{', FP8' if fp8 else ''}"
    return Workload(
        "decode_attention",
        name,
        inputs(batch, context, new, page, fp8),
        (),
        (cache + queries, 0.0),
        flops=(4.0 * batch * new * context * HEADS * WIDTH, 0.0),
        peers={"torch": torchs, "torch.compile": compiled, "flash-attn": flash, "flash-attn 3": flash3},
    )


@sized(lambda length, **_: {"prefix": length})
def shared(prefix: int = 15360, answers: int = 8, own: int = 512, groups: int = 1, page: int = 64) -> Workload:
    """Answers to one prompt, whose keys are read once for all of them; the peers read them for each."""
    batch, pages = groups * answers, -(-(prefix + own) // page)
    first = prefix // page  # whole pages of the prompt

    def make(device: str, dtype: torch.dtype):
        cache = [normal(groups * first + batch * (pages - first), page, KV_HEADS, WIDTH, device=device, dtype=dtype)
                 for _ in range(2)]  # fmt: skip
        prompt = torch.arange(groups * first, device=device).view(groups, first).repeat_interleave(answers, 0)
        answer = groups * first + torch.arange(batch * (pages - first), device=device).view(batch, -1)
        return {
            "q": normal(batch, 1, HEADS, WIDTH, device=device, dtype=dtype),
            "k_cache": cache[0],
            "v_cache": cache[1],
            "lengths": torch.full((batch,), prefix + own, dtype=torch.int32, device=device),
            "block_table": torch.cat([prompt, answer], 1).to(torch.int32),
            "prefix_lengths": torch.full((groups,), prefix, dtype=torch.int32, device=device),
        }

    keys = groups * prefix + batch * own
    moved = 2 * 2 * (keys * KV_HEADS + batch * HEADS) * WIDTH
    return Workload(
        "decode_attention",
        f"{groups} x {answers} answers of {own} after {prefix}, pages of {page}",
        make,
        (),
        (moved, 0.0),
        flops=(4.0 * batch * (prefix + own) * HEADS * WIDTH, 0.0),
        peers={"torch": torchs, "flash-attn": flash, "flash-attn 3": flash3},
    )


WORKLOADS = [
    workload(1, 45056),
    workload(1, 1024),
    workload(1, 131072),
    workload(32, 4096, page=64),
    workload(1, 45056, new=4),
    workload(1, 45056, page=64, fp8=True),
    shared(),
]
