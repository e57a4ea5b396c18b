"""paged_attention of the language model: chunks of a long prompt, and new turns behind cached ones."""

import torch

from bench.ops import Absent, Workload, normal, sized

HEADS, KV_HEADS, WIDTH = 28, 4, 128


def inputs(batch: int, new: int, context: int, page: int, fp8: bool):
    def make(device: str, dtype: torch.dtype):
        pages = -(-context // page)
        cache = [normal(batch * pages, page, KV_HEADS, WIDTH, device=device, dtype=dtype) for _ in range(2)]
        made = {
            "q": normal(batch * new, HEADS, WIDTH, device=device, dtype=dtype),
            "k_cache": cache[0].to(torch.float8_e4m3fn) if fp8 else cache[0],
            "v_cache": cache[1].to(torch.float8_e4m3fn) if fp8 else cache[1],
            "block_table": torch.randperm(batch * pages, device=device).view(batch, -1).to(torch.int32),
            "cu_seqlens_q": torch.arange(batch + 1, dtype=torch.int32, device=device) * new,
            "lengths": torch.full((batch,), context, dtype=torch.int32, device=device),
        }
        if fp8:
            made |= {name: torch.ones(KV_HEADS, device=device) for name in ("k_scale", "v_scale")}
        return made

    return make


def flash3(i):
    try:
        from flash_attn_interface import flash_attn_with_kvcache
    except ImportError as error:
        raise Absent("flash-attn 3 is not installed") from error
    if "k_scale" in i:
        raise Absent("with an FP8 cache it wants FP8 queries")
    new = len(i["q"]) // len(i["lengths"])
    tensors = i["q"], i["k_cache"], i["v_cache"]
    more = {"cache_seqlens": i["lengths"], "page_table": i["block_table"], "causal": True}
    return flash_attn_with_kvcache(*tensors, cu_seqlens_q=i["cu_seqlens_q"], max_seqlen_q=new, **more)


@sized(lambda length, new, page, **_: {"context": length * page, "new": min(new, length * page)})
def workload(batch: int = 1, new: int = 2048, context: int = 45056, page: int = 64, fp8: bool = False) -> Workload:
    """``new`` tokens are the last of each sequence's ``context``."""
    pairs = batch * new * (context - (new - 1) / 2)
    cache = 2 * batch * context * KV_HEADS * WIDTH * (1 if fp8 else 2)
    return Workload(
        "paged_attention",
        f"{batch} x {context}, {new} new, pages of {page}{', FP8' if fp8 else ''}",
        inputs(batch, new, context, page, fp8),
        (),
        (cache + 2 * batch * new * HEADS * WIDTH * 2, 0.0),
        flops=(4.0 * pairs * HEADS * WIDTH, 0.0),
        peers={"flash_attn 3": flash3},
        matrix=("paged_kernel",),
        without=("cuda",) if fp8 else (),
    )


WORKLOADS = [
    workload(1, 2048, 45056),
    workload(8, 512, 4096, page=16),
    workload(8, 512, 4096, page=256),
    workload(1, 2048, 45056, fp8=True),
]
