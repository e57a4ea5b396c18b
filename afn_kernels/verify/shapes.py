"""The checks: every op at the shapes of a model of 7B and its audio encoder ("full"), or as small as can be ("toy").

A shape crosses what a kernel has borders at: lengths beside a power of two, a first block and many, odd offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from afn_kernels.attention import attention
from afn_kernels.verify.caches import decoding, prefill
from afn_kernels.verify.check import HEADS, ORDERS, Check, Inputs, InputSource
from afn_kernels.verify.oracle import (
    blockwise_attention,
    blockwise_linear_cross_entropy,
    blockwise_linear_logprob,
)
from afn_kernels.verify.orders import OtherOrder
from afn_kernels.verify.products import products

SIZES = ("full", "toy")
IGNORED = 7  # one row in so many has no label
RMS = 3**-0.5  # of a direction in [−1, 1], and of a term of a norm's weight gradient


def checks(size: str) -> list[Check]:
    """Every check of a size, op by op.

    Raises:
        ValueError: another size.
    """
    if size not in SIZES:
        raise ValueError(f"verify: size={size!r}, expected one of {', '.join(SIZES)}")
    full = size == "full"
    return [
        *norms(full),
        *pointwise(full),
        *positions(full),
        *movements(full),
        *attentions(full),
        *decoding(full),
        *prefill(full),
        *losses(full),
        *features(full),
        *codec(full),
        *products(full),
    ]


def norms(full: bool) -> list[Check]:
    language, audio = (3584, 1280) if full else (48, 40)

    def rms(rows: int, residual: bool):
        def inputs(s: InputSource) -> Inputs:
            made = {"x": s.normal(rows, language), "weight": s.normal(language)}
            return made | ({"residual": s.normal(rows, language)} if residual else {})

        return inputs

    def layer(rows: int, residual: bool):
        def inputs(s: InputSource) -> Inputs:
            made = {"x": s.normal(rows, audio).add_(4), "weight": s.normal(audio), "bias": s.normal(audio)}
            return made | ({"residual": s.normal(rows, audio)} if residual else {})

        return inputs

    def pooled(s: InputSource) -> Inputs:
        windows, frames = (8, 1500) if full else (2, 10)
        return {"x": s.normal(windows, frames, audio).add_(2), "weight": s.normal(audio), "bias": s.normal(audio)}

    lengths = (1, 1500, 749, 2, 1333) if full else (1, 6, 3)
    total = sum(n // 2 for n in lengths)

    def packed(s: InputSource) -> Inputs:
        made = {"x": s.normal(sum(lengths), audio).add_(2), "weight": s.normal(audio), "bias": s.normal(audio)}
        return made | {"cu_seqlens": s.boundaries(lengths)}

    def turned(s: InputSource) -> Inputs:
        made, frames = packed(s), {"window": s.integers(60, total), "frame": s.integers(750, total)}
        return made | {"rote": frames}

    found = []
    for rows in (1, 64, 4099) if full else (5,):
        weights = {"weights": {"weight": RMS, "bias": RMS}, "summed": rows}
        timed = rows > 1
        found += [
            Check("rms_norm", f"{rows} x {language}", rms(rows, False), ("x", "weight"), timed=timed, **weights),
            Check(
                "layer_norm", f"{rows} x {audio}", layer(rows, False), ("x", "weight", "bias"), timed=timed, **weights
            ),
        ]
    rows = 2049 if full else 7
    weights = {"weights": {"weight": RMS, "bias": RMS}, "summed": rows}
    more = ("x", "weight", "residual")
    found += [
        Check("rms_norm", f"{rows} x {language}, residual", rms(rows, True), more, **weights),
        Check("layer_norm", f"{rows} x {audio}, residual", layer(rows, True), (*more, "bias"), **weights),
        Check("pool_norm", "equal windows", pooled, ("x", "weight", "bias"), timed=True,
              weights={"weight": RMS, "bias": RMS}, summed=6000 if full else 10),
        Check("pool_norm", "packed", packed, ("x", "weight", "bias"), {"total": total},
              weights={"weight": RMS, "bias": RMS}, summed=total),
        Check("pool_norm", "packed and turned", turned, ("x", "weight", "bias"), {"total": total},
              weights={"weight": RMS, "bias": RMS}, summed=total),
    ]  # fmt: skip
    return found


def pointwise(full: bool) -> list[Check]:
    inner, hidden = (18944, 5120) if full else (40, 44)

    def gated(rows: int):
        def inputs(s: InputSource) -> Inputs:
            both = s.normal(rows, 2 * inner)  # halves of one projection
            return {"gate": both[:, :inner].mul_(3), "up": both[:, inner:]}

        return inputs

    def biased(rows: int):
        return lambda s: {"x": s.normal(rows, hidden, scale=3), "bias": s.normal(hidden)}

    found = []
    for rows in (64, 2049) if full else (5,):
        weights = {"weights": {"bias": 0.42}, "summed": rows}
        tanh = {"approximate": "tanh"}
        found += [
            Check("swiglu", f"{rows} x {inner}", gated(rows), ("gate", "up"), timed=True),
            Check("geglu", f"{rows} x {inner}, tanh", gated(rows), ("gate", "up"), tanh, timed=True),
            Check("bias_gelu", f"{rows} x {hidden}", biased(rows), ("x", "bias"), timed=True, **weights),
        ]
    return found


def projections(s: InputSource, tokens: int, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, slices of one projection."""
    heads, kv_heads, dim = HEADS[full]
    return s.normal(tokens, heads + 2 * kv_heads, dim).split((heads, kv_heads, kv_heads), 1)


def frequencies(s: InputSource, dim: int) -> Tensor:
    return 1e6 ** (-torch.arange(0, dim, 2, device=s.device).float() / dim)


def positions(full: bool) -> list[Check]:
    _, kv_heads, dim = HEADS[full]
    width = 1280 if full else 60

    def rotary(tokens: int, cached: bool = False):
        def inputs(s: InputSource) -> Inputs:
            q, k, v = projections(s, tokens, full)
            made = {"q": q, "k": k, "positions": torch.arange(tokens, device=s.device).float() * 5.3}
            made["inv_freq"] = frequencies(s, dim)
            if not cached:
                return made
            caches = {name: s.normal(2 * tokens, kv_heads, dim) for name in ("k_cache", "v_cache")}
            return made | {"v": v, "slots": s.order(2 * tokens)[:tokens], **caches}

        return inputs

    def given(tokens: int):
        def inputs(s: InputSource) -> Inputs:
            q, k, _ = projections(s, tokens, full)
            angle = torch.arange(tokens, device=s.device).float()[:, None] * frequencies(s, dim)
            return {"q": q, "k": k, "cos": angle.cos().to(s.dtype), "sin": angle.sin().to(s.dtype)}

        return inputs

    def rote(rows: int):
        return lambda s: {"x": s.normal(rows, width), "window": s.integers(60, rows), "frame": s.integers(750, rows)}

    written = ("k_cache", "v_cache")
    found = []
    for tokens in (64, 4099) if full else (5,):
        found += [
            Check("rotary", f"{tokens} tokens", rotary(tokens), ("q", "k"), timed=True),
            Check("rotary", f"{tokens} tokens into a cache", rotary(tokens, True), written=written),
            Check("rote", f"{tokens} x {width}", rote(tokens), ("x",), timed=True),
        ]
    tokens = 2049 if full else 7
    return [
        *found,
        Check("apply_rotary", f"{tokens} tokens", given(tokens), ("q", "k"), timed=True),
        Check("rote", f"{tokens} x {width}, exact", rote(tokens), ("x",), {"phase_dtype": torch.float64}),
    ]


def movements(full: bool) -> list[Check]:
    heads, kv_heads, dim = HEADS[full]
    language = 3584 if full else 48
    ranks = 4 if full else 2
    peers = tuple(
        (heads // ranks * p, heads // ranks * (p + 1), kv_heads // ranks * p, kv_heads // ranks * (p + 1))
        for p in range(ranks)
    )

    def packing(rotated: bool):
        def inputs(s: InputSource) -> Inputs:
            tokens = 2049 if full else 7
            q, k, v = projections(s, tokens, full)
            made: Inputs = {"q": q, "k": k, "v": v}
            angles = {"positions": torch.arange(tokens, device=s.device).float(), "inv_freq": frequencies(s, dim)}
            return made | (angles if rotated else {})

        return inputs

    def projected(tokens: int, fp8: bool):
        def inputs(s: InputSource) -> Inputs:
            columns = (heads + 2 * kv_heads) * dim
            caches = {name: s.normal(2 * tokens, kv_heads, dim) for name in ("k_cache", "v_cache")}
            made = {
                "qkv": s.normal(tokens, columns),
                "positions": torch.arange(tokens, device=s.device).float() * 11.7,
                "inv_freq": frequencies(s, dim),
                "slots": s.order(2 * tokens)[:tokens],
                "bias": s.normal(columns),
            }
            if fp8:
                caches = {name: x.to(torch.float8_e4m3fn) for name, x in caches.items()}
                made |= {f"{name}_scale": torch.full((kv_heads,), 0.5, device=s.device) for name in "kv"}
            return made | caches

        return inputs

    def flat(s: InputSource) -> Inputs:
        return {"flat": s.normal(rows * heads * dim)}

    def merged(s: InputSource) -> Inputs:
        tokens, audio = (8195, 6000) if full else (9, 5)
        return {
            "tokens": s.normal(tokens, language),
            "audio": s.normal(audio, language),
            "rows": s.order(tokens)[:audio],
        }

    def quantised(s: InputSource) -> Inputs:
        return {"x": s.normal(*((2049, language) if full else (150, 260)))}

    blocks: list[tuple[Any, bool]] = [("row", False), ("tensor", False), ((1, 128), False), ((128, 128), False)]
    rows, few, caches = 2049 if full else 7, 64 if full else 3, ("k_cache", "v_cache")
    return [
        Check("merge_embeddings", "audio into tokens", merged, ("tokens", "audio"), timed=True),
        Check("pack_heads", f"{rows} tokens to {ranks} peers", packing(False), ("q", "k", "v"), {"heads": peers}),
        Check("pack_heads", f"{rows} tokens, rotated", packing(True), ("q", "k", "v"), {"heads": peers}, timed=True),
        Check("unpack_heads", f"{rows} tokens from {ranks} peers", flat, ("flat",),
              {"heads": peers, "head_dim": dim}, timed=True),
        Check("qkv_rotary", f"{few} tokens", projected(few, False), written=caches, timed=True),
        Check("qkv_rotary", f"{few} tokens, FP8", projected(few, True), written=caches),
        *(
            Check("quantize_fp8", f"blocks {block}{', transposed' if turn else ''}", quantised,
                  options={"block": block, "transpose": turn}, exact=True, timed=block == "row")
            for block, turn in [*blocks, ((1, 128), True)]
        ),
    ]  # fmt: skip


def attention_in_precision(order: int) -> Callable[..., Any]:
    """What PyTorch's fused attention rounds, keys in another order each time.

    Of every three, the second repeats keys and values for grouped heads, whose gradients PyTorch then rounds before it
    adds them up, and the third rounds no weights.
    """

    def same(q, k, v, *, return_lse=False, carry=None, **options):
        dtype, seed = q.dtype if q.dtype.itemsize == 2 and order % 3 != 2 else None, order or None
        if order % 3 == 1:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        wide = [x.float() for x in (q, k, v)]
        out, lse = blockwise_attention(*wide, carry=carry, rounded=dtype, seed=seed, **options)
        return (out if carry is not None else out.to(q.dtype), lse) if return_lse else out.to(q.dtype)

    return same


def small_attention_in_precision(order: int) -> Callable[..., Any]:
    """The same and, every other time, the op's reference, which makes a matrix of all scores."""
    if not order % 2:
        return attention_in_precision(order // 2)

    def same(**call):
        with OtherOrder(order):
            return attention(**call, impl="reference")

    return same


def exact_attention(*args, return_lse: bool = False, **options):
    out, lse = blockwise_attention(*args, **options)
    return (out, lse) if return_lse else out


def attentions(full: bool) -> list[Check]:
    def inputs(lengths: Sequence[int], heads: tuple[int, int, int], one: bool = False, carried: bool = False):
        def make(s: InputSource) -> Inputs:
            total, (many, few, dim) = sum(lengths), heads
            made: Inputs = {
                "q": s.normal(total, many, dim),
                "k": s.normal(total, few, dim),
                "v": s.normal(total, few, dim),
            }
            if not one:
                made["cu_seqlens_q"] = s.boundaries(lengths)
            if carried:
                made["carry"] = (
                    s.normal(total, many, dim, dtype=torch.float32),
                    s.normal(total, many, dtype=torch.float32),
                )
            return made

        return make

    def check(name: str, made, timed: bool = False, *, long: bool = False, **options) -> Check:
        return Check(
            "attention",
            name,
            made,
            ("q", "k", "v"),
            options,
            exact_attention,
            attention_in_precision if full else small_attention_in_precision,
            orders=ORDERS if full else 2 * ORDERS,
            copies=10,
            scratch=2**30,
            leave=("matmul", "reference") if long else (),
            timed=timed,
        )

    language, encoder = HEADS[full], (20, 20, 64) if full else (3, 3, 16)
    lengths = (1, 127, 128, 129, 1500, 2049, 4099) if full else (1, 5, 0, 3, 17, 18)
    window = (512 if full else 7, 0)
    longest, windows = (8192, (1500,) * 8) if full else (33, (10,) * 2)
    found = [
        check("packed causal", inputs(lengths, language), True, causal=True, long=full),
        check("one sequence, causal", inputs((longest,), language, True), True, causal=True, long=full),
        check("equal windows", inputs(windows, encoder), True),
        check("carried on", inputs(lengths[3:6], language, carried=True), causal=True, return_lse=True),
        check("window and softcap", inputs(lengths[4:6], language), causal=True, window=window, softcap=20.0),
    ]  # fmt: skip
    if full:
        found += [check("one sequence of 1024", inputs((1024,), language, True), True, causal=True)]
    return found


def losses(full: bool) -> list[Check]:
    width, classes = (3584, 151_672) if full else (48, 300)

    def head(rows: int, labels: str, bias: bool = False, classes: int = classes):
        def inputs(s: InputSource) -> Inputs:
            made = {
                "hidden": s.normal(rows, width, scale=2),
                "weight": s.normal(classes, width, scale=width**-0.5),
                labels: s.integers(classes, rows),
            }
            if labels == "labels":
                made[labels][::IGNORED] = -100
            return made | ({"bias": s.normal(classes)} if bias else {})

        return inputs

    def logits(rows: int):
        def inputs(s: InputSource) -> Inputs:
            made = {"logits": s.normal(rows, classes, scale=2), "labels": s.integers(classes, rows)}
            made["labels"][::IGNORED] = -100
            return made

        return inputs

    rows = 2304 if full else 13
    few = 511 if full else 5
    both = ("hidden", "weight")
    kept = rows - -(-rows // IGNORED)
    fewer = classes // 4 + 1
    ours = {"oracle": blockwise_linear_cross_entropy, "orders": 2, "copies": 5.0}
    theirs = {"oracle": blockwise_linear_logprob, "orders": 2, "copies": 5.0}

    def scratch(rows: int) -> int:
        """Logits of plain PyTorch in float32, their softmax and gradients, and a block of those in float64."""
        return 6 * rows * classes * 4 + (2**30 if full else 0)

    ce, lp = "linear_cross_entropy", "linear_logprob"
    capped = {"label_smoothing": 0.1, "softcap": 30.0, "z_loss": 1e-4}
    return [
        Check("cross_entropy", f"{few} x {classes}", logits(few), ("logits",), copies=10, timed=True),
        Check(ce, f"{rows} x {width} x {classes}", head(rows, "labels"), both, {"supervised": kept},
              timed=True, scratch=scratch(rows), **ours),
        Check(ce, f"{few}, every option", head(few, "labels", True, fewer), (*both, "bias"), capped,
              scratch=scratch(few), **ours),
        Check(ce, f"{few}, one loss per row", head(few, "labels", False, fewer), both, {"reduction": "none"},
              scratch=scratch(few), **ours),
        Check(lp, f"{few} x {width} x {classes}", head(few, "targets"), both,
              timed=True, scratch=scratch(few), **theirs),
    ]  # fmt: skip


def amplitude(features: Tensor) -> Tensor:
    """What log-mel features stand for: near zero a logarithm's own error has no bound."""
    return (10 ** (2 * features.double() - 2)).to(features.dtype)


def features(full: bool) -> list[Check]:
    samples = 480_000 if full else 3200

    def sounds(s: InputSource, rows: int, length: int) -> Tensor:
        """Noise, a tone, silence, a click, a whisper, what clips, a half of padding, and one loud frame in silence."""
        if s.device.type == "meta":
            return torch.empty(rows, length, device="meta")
        t = torch.arange(length, device=s.device, dtype=torch.float32) / 16_000
        noise = s.normal(length, dtype=torch.float32)
        click, loud = torch.zeros_like(t), torch.zeros_like(t)
        click[length // 3] = 1.0
        loud[length // 2 : length // 2 + 400] = 0.5 * noise[:400]
        kinds = [
            0.1 * noise,
            0.5 * torch.sin(2 * torch.pi * (440 * t + 100 * t * t)),
            torch.zeros_like(t),
            click,
            1e-4 * noise,
            (2 * noise).clamp(-1, 1),
            torch.where(t < t[length // 2], 0.1 * noise, 0.0),
            loud,
        ]
        return torch.stack(kinds)[:rows]

    def floats(s: InputSource) -> Inputs:
        return {"pcm": sounds(s, 8, samples)}

    def shorts(s: InputSource) -> Inputs:
        return {"pcm": (sounds(s, 8, samples) * 32767).to(torch.int16)}

    def odd(s: InputSource) -> Inputs:
        room = torch.zeros(8, samples + 13, device=s.device)
        room[:, 3 : 3 + samples] = sounds(s, 8, samples)
        return {"pcm": room[:, 3 : 3 + samples]}

    check = partial(Check, "log_mel", compared=amplitude, copies=20, orders=0)
    return [
        check("8 windows", floats, timed=True),
        check("8 windows, int16", shorts),
        check("odd offsets, 16 bits", odd, options={"out_dtype": torch.bfloat16 if full else torch.float16}),
        check("one window, 80 mels", lambda s: {"pcm": sounds(s, 1, samples)}, options={"n_mels": 80}, timed=True),
    ]


def numbers(x: Tensor) -> Tensor:
    """Codes as numbers that are compared like any other."""
    return x if x.is_floating_point() else x.double()


def codec(full: bool) -> list[Check]:
    """A codec's ops; rows are near to sums of codes, so that which code is nearest is no matter of rounding."""
    clips, frames, channels = (4, 4099, 384) if full else (2, 19, 20)
    rows, width, levels, codes = (2049, 512, 6, 1024) if full else (11, 24, 3, 37)

    def convolved(s: InputSource) -> Inputs:
        made = {"x": s.normal(clips, frames, channels), "weight": s.normal(channels, 7), "bias": s.normal(channels)}
        return made | {"state": s.normal(clips, 6, channels)}

    def spectra(s: InputSource) -> Inputs:
        window = torch.hann_window(32, device=s.device)
        return {"spectrum": s.normal(clips, frames, 17, 2), "window": window, "state": s.normal(clips, 24).float()}

    def sums(s: InputSource) -> Inputs:
        books = s.normal(levels, codes, width, dtype=torch.float32)
        books *= 0.25 ** torch.arange(levels, device=s.device)[:, None, None]
        x = torch.zeros(rows, width, device=s.device)
        for book in books:
            x += book[s.integers(codes, rows)]
        return {"x": x, "codebooks": books}

    sizes = {"weights": {"weight": RMS, "bias": RMS}, "summed": clips * frames, "timed": True}
    both = f"{clips} x {frames}"
    return [
        Check("causal_conv", f"{both} x {channels}", convolved, ("x", "weight", "bias", "state"), **sizes),
        Check("istft", f"{both}, window 32", spectra, ("spectrum", "state"), {"hop": 8}, timed=True),
        Check("residual_quantize", f"{rows} x {width}, {levels} levels", sums, compared=numbers, timed=True),
    ]
