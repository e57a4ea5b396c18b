"""The checks of attention over KV caches: one new token or a few, and many."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from afn_kernels.verify.check import HEADS, Check, Inputs, InputSource


def decoding(full: bool) -> list[Check]:
    heads, kv_heads, dim = HEADS[full] if full else (4, 2, 128)  # csrc/cuda has heads of 128 alone

    def inputs(batch: int, context: int, page: int = 0, fp8: bool = False, ragged: bool = False, new: int = 1):
        def make(s: InputSource) -> Inputs:
            pages = batch * context // page if page else 0
            shape = (pages, page, kv_heads, dim) if page else (batch, context, kv_heads, dim)
            caches = {name: s.normal(*shape) for name in ("k_cache", "v_cache")}
            lengths = torch.full((batch,), context, dtype=torch.int32, device=s.device)
            if ragged:
                lengths = s.integers(context + 1, batch, low=new, dtype=torch.int32)
            made: Inputs = {"q": s.normal(batch, new, heads, dim), "lengths": lengths}
            if fp8:
                caches = {name: x.to(torch.float8_e4m3fn) for name, x in caches.items()}
                made |= {f"{name}_scale": torch.full((kv_heads,), 0.7, device=s.device) for name in "kv"}
            if page:
                made["block_table"] = s.order(pages).view(batch, -1).to(torch.int32)
            return made | caches

        return make

    long, batch, context, page = (45_056, 32, 4096, 16) if full else (70, 3, 32, 16)
    made = {
        f"1 x {long}": (inputs(1, long), True),
        f"{batch} x {context} in pages": (inputs(batch, context, page, ragged=True), True),
        f"1 x {long}, FP8": (inputs(1, long, fp8=True), True),
        f"{batch} x {context}, FP8 in pages": (inputs(batch, context, page, True, True), False),
        f"4 new of {long}": (inputs(1, long, new=4), False),
    }
    return [
        Check("decode_attention", name, make, copies=5, timed=timed, half="FP8" in name)
        for name, (make, timed) in made.items()
    ]


def prefill(full: bool) -> list[Check]:
    heads, kv_heads, dim = HEADS[full]
    new, cached, page = ((512, 1, 300, 129), (7680, 4095, 0, 64), 64) if full else ((5, 1, 9), (20, 17, 0), 8)

    def inputs(fp8: bool = False):
        def make(s: InputSource) -> Inputs:
            lengths: Sequence[int] = [a + b for a, b in zip(new, cached, strict=True)]
            across = max(-(-length // page) for length in lengths)
            pages = len(new) * across
            caches = {name: s.normal(pages, page, kv_heads, dim) for name in ("k_cache", "v_cache")}
            made: Inputs = {
                "q": s.normal(sum(new), heads, dim),
                "block_table": s.order(pages).view(-1, across).to(torch.int32),
                "cu_seqlens_q": s.boundaries(new),
                "lengths": s.tensor(lengths, torch.int32),
            }
            if fp8:
                caches = {name: x.to(torch.float8_e4m3fn) for name, x in caches.items()}
                made |= {f"{name}_scale": torch.full((kv_heads,), 0.7, device=s.device) for name in "kv"}
            return made | caches

        return make

    scores = heads * max(a * (a + b) for a, b in zip(new, cached, strict=True)) * 8  # of one sequence, in float64
    return [
        Check("paged_attention", f"{sum(new)} new of {len(new)} sequences", inputs(), copies=5, scratch=4 * scores,
              timed=True),
        Check("paged_attention", f"{sum(new)} new of {len(new)} sequences, FP8", inputs(True), copies=5,
              scratch=4 * scores, half=True),
    ]  # fmt: skip
