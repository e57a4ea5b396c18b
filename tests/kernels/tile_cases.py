"""Cases with which every loop of every kernel runs three times and more with the tiles that a GPU has.

One for each row of an op's configurations, as large as that row and the multiprocessors here need: a row may change,
and its case follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from afn_kernels import _triton
from afn_kernels._rows import RowLaunch
from afn_kernels.attention import config as attention_config
from afn_kernels.attention.config import AttnTile
from afn_kernels.bias_gelu.config import ROWS as GELU
from afn_kernels.causal_conv.config import ROWS as CONV
from afn_kernels.cross_entropy.config import OPTIONAL, WALKS
from afn_kernels.decode_attention.config import ROWS as SPLITS
from afn_kernels.decode_attention.triton import BLOCK_B
from afn_kernels.istft.config import ROWS as INVERSE
from afn_kernels.layer_norm.config import ROWS as LAYER_NORM
from afn_kernels.linear_cross_entropy.config import TILE
from afn_kernels.merge_embeddings.config import CONFIG as MERGE
from afn_kernels.paged_attention import config as paged_config
from afn_kernels.pool_norm.config import ROWS as POOL_NORM
from afn_kernels.pool_norm.triton import BLOCK_N
from afn_kernels.residual_quantize.config import GPU as CODES
from afn_kernels.rms_norm.config import ROWS as RMS_NORM
from afn_kernels.rotary.config import CONFIG as ROTARY
from tests.kernels.cases import (
    attention,
    bias_gelu,
    causal_conv,
    cross_entropy,
    decode_attention,
    istft,
    layer_norm,
    linear_cross_entropy,
    log_mel,
    merge_embeddings,
    paged_attention,
    pool_norm,
    residual_quantize,
    rms_norm,
    rotary,
    rote,
)
from tests.kernels.harness import BF16, Case
from tests.kernels.loops import gpu_tiles

THREE = 3
ON_A_GPU = torch.cuda.is_available() and not _triton.interpreted()
PROGRAMS = _triton.programs(torch.device("cuda" if ON_A_GPU else "cpu"))
# Sequences whose lengths decoding and pooling look at together. In the interpreter each of hundreds would cost 20 ms.
TOGETHER, POOLED = (BLOCK_B, BLOCK_N) if ON_A_GPU else (4, 4)


@dataclass(frozen=True)
class TileCase:
    """A case, how often at least the loops run that it is there for, and what ``gpu_tiles`` takes for it."""

    case: Case
    loops: dict[str, int]
    processors: int | None = None
    together: int | None = None

    def __str__(self) -> str:
        return str(self.case)


# The three ranges of keys of attention, in the order of its kernels: those that a window hides from a part of a tile's
# queries, those that all of them see, and those that causality or the end of the sequence hides from a part of them.
BEFORE, FULL, TAIL = ":2", ":3", ""


def partly(tile: AttnTile) -> int:
    """How often at most a loop over keys runs of which a tile's queries see a part."""
    return min(THREE, -(-(tile.queries + tile.keys - 2) // tile.keys))


class CarriedOn(attention.AttentionCase):
    """The output of a carry rounded as its inputs are: in half precision it is no more exact than they are."""

    def call(self, inputs, impl):
        return (super().call(inputs, impl)[0].to(inputs["q"].dtype),)


def attention_loops(tiles: dict[str, AttnTile], local: bool) -> dict[str, int]:
    found = {}
    for kernel, loop in (("forward", "attention.forward_kernel/_attend"), ("dq", "attention.dq_kernel/_dq")):
        if kernel in tiles:
            found |= {f"{loop}{FULL}/n": THREE, f"{loop}{TAIL}/n": partly(tiles[kernel])}
            found |= {f"{loop}{BEFORE}/n": partly(tiles[kernel])} if local else {}
    return found | ({f"attention.dkv_kernel/_dkv{part}/_": THREE for part in ("", ":2")} if "dkv" in tiles else {})


def attentions() -> Iterator[TileCase]:
    tables = (attention_config.HALF, attention_config.WIDE)
    dims = sorted({limit // 16 * 16 for table in tables for limit, _ in table["forward"]})  # what the kernels take
    for dtype in (BF16, torch.float32):
        for dim in dims:
            plain, local = ({kernel: tile_of(kernel, dim, dtype, x) for kernel in KERNELS} for x in (False, True))
            yield attention_case(dim, dtype, False, plain)
            yield carried(dim, dtype, 0.0, plain["carry"])
            if any(size(plain[kernel]) != size(local[kernel]) for kernel in KERNELS[:3]):
                yield attention_case(dim, dtype, True, local)
            if size(plain["carry"]) != size(local["carry"]):
                yield carried(dim, dtype, 20.0, local["carry"])
    yield TileCase(
        attention.case("tiles, full", attention.packed((1, 1), 128, [530, 1, 0]), 17, dtypes=(BF16,), draws=0),
        {f"attention.forward_kernel/_attend{FULL}/n": THREE},
    )


KERNELS = ("forward", "dq", "dkv", "carry")


def tile_of(kernel: str, dim: int, dtype: torch.dtype, local: bool) -> AttnTile:
    with gpu_tiles():
        return attention_config.choose(kernel, dim, dtype == torch.float32, local)


def size(tile: AttnTile) -> tuple[int, int]:
    return tile.queries, tile.keys


def attention_case(dim: int, dtype: torch.dtype, local: bool, tiles: dict[str, AttnTile]) -> TileCase:
    """Queries and keys that begin apart from each other by what puts most keys into the loops that mask."""
    queries, keys = (max(getattr(tiles[kernel], name) for kernel in ("forward", "dq")) for name in ("queries", "keys"))
    name = f"tiles, hd{dim}, {str(dtype).removeprefix('torch.')}{', window' if local else ''}"
    options = {"dtypes": (dtype,), "draws": 0}
    loops = attention_loops(tiles, local)
    if local:
        left = -(-(queries + 5 * keys) // 128) * 128 + 1
        make = attention.one((1, 1), dim)
        return TileCase(attention.case(name, make, left + 2 * queries + 16, window=(left, 126), **options), loops)
    tokens = -(-THREE * keys // queries) * queries + 17
    make = attention.packed((2, 1), dim, [tokens, 5], [tokens + 126, 5])
    return TileCase(attention.case(name, make, causal=True, **options), loops)


def carried(dim: int, dtype: torch.dtype, softcap: float, tile: AttnTile) -> TileCase:
    tokens = -(-THREE * tile.keys // tile.queries) * tile.queries + 17

    def inputs(g: torch.Generator, size: int):
        made = attention.qkv(g, size, size + 126, (1, 1), dim)
        out_c, lse_c = torch.randn(size, 1, dim, generator=g, dtype=torch.float64), torch.randn(size, 1, generator=g)
        return made | {"out_c": out_c, "lse_c": lse_c.double()}

    options = {"return_lse": True, "causal": True, "softcap": softcap}
    name = f"tiles, hd{dim}, {str(dtype).removeprefix('torch.')}, carry{', softcap' if softcap else ''}"
    case = CarriedOn(
        "attention", name, inputs, (), options, tokens, (dtype,), ("out_c", "lse_c"), draws=0, orders=("reference",)
    )
    return TileCase(case, attention_loops({"forward": tile}, False))


def decodings() -> Iterator[TileCase]:
    """As many keys as give every multiprocessor three blocks of them; and many sequences, whose splits are counted."""
    whole, part = f"{DECODE}/one_split:2", f"{DECODE}/one_split"
    for key_bytes, rows, split in SPLITS:
        dtype = BF16 if key_bytes <= 512 else torch.float32
        keys = 3 * split.least + 5 if split.least >= THREE * split.block else PROGRAMS * (THREE * split.block + 16)
        make = {
            "batch": 1,
            "heads": 4 if rows <= 16 else 17,
            "kv_heads": 1,
            "width": min(key_bytes, 1024) // dtype.itemsize,
        }
        case = decode_attention.case(f"tiles, {key_bytes} bytes, {rows} rows", keys, dtypes=(dtype,), draws=0, **make)
        yield TileCase(case, {f"{whole}/start": THREE})
    wide = {"batch": 1, "heads": 16, "width": 128}  # of which eight parts are merged in a round
    yield TileCase(decoding("18 splits", 18 * 128, **wide), merges(f"{whole}/store_or_merge"), processors=18)
    counting = {f"{DECODE}/keys_per_split/first": THREE, f"{whole}/find_split/first": THREE}
    batch = 2 * TOGETHER + 2
    yield TileCase(decoding(f"{batch} sequences", 9, batch=batch), counting, together=TOGETHER)
    # Splits of a fixed size, more than there are programs: parts are merged four by four.
    keys = max(9, 2 * PROGRAMS + 1) * SPLIT
    loops = {f"{DECODE}/item": THREE, f"{part}/start": THREE} | merges(f"{part}/store_or_merge")
    yield TileCase(decoding(f"splits of {SPLIT}", keys, {"split": SPLIT}, **wide), loops)
    counting = {f"{DECODE}/count_splits/first": THREE, f"{part}/find_split/first": THREE}
    many = decoding(f"{batch} sequences, splits of 16", 9, {"split": 16}, batch=batch)
    yield TileCase(many, counting, together=TOGETHER)
    yield from prefixes()


DECODE, SPLIT = "decode_attention.decode_kernel", 272


def merges(way: str) -> dict[str, int]:
    return {f"{way}/merge/{loop}": THREE for loop in ("first", "i", "i:2", "i:3")}


def decoding(name: str, size: int, options: dict | None = None, heads: int = 1, **shape) -> Case:
    shape |= {"heads": heads, "kv_heads": 1}
    return decode_attention.case(f"tiles, {name}", size, dtypes=(BF16,), options=options, draws=0, **shape)


def prefixes() -> Iterator[TileCase]:
    """Sequences with a prefix each: a long one; and many, whose splits are counted."""
    parts, kernel = "decode_attention.parts_kernel", "decode_attention.merge_kernel"

    def inputs(g, size, prefix, **shape):
        made = decode_attention.inputs(g, size, kv_heads=1, **shape)
        return made | {"prefix_lengths": (made["lengths"] - 1).clamp(max=prefix)}

    def shared(name, size, **shape):
        make = lambda g, n: inputs(g, n, **shape)  # noqa: E731
        options = {"split": SPLIT}
        return Case("decode_attention", f"tiles, {name}", make, options=options, size=size, dtypes=(BF16,), draws=0)

    loops = {f"{parts}/item": THREE, f"{parts}/start": THREE}
    for part in ("", ":2"):
        loops |= {x.replace("/merge/", f"/merge{part}/"): n for x, n in merges(kernel).items()}
    splits = max(9, PROGRAMS + 1)
    long = shared("a long prefix", 2 * splits * SPLIT, prefix=splits * SPLIT, batch=1, heads=16, width=128)
    yield TileCase(long, loops)
    counting = (
        *(f"{parts}/{way}/first" for way in ("count_splits", "find_unit")), f"{parts}/count_splits/first:2",
        *(f"{kernel}/{way}/first" for way in ("count_splits", "splits_before", "splits_before:2")),
        f"{kernel}/count_splits/first:2",
    )  # fmt: skip
    batch = 2 * TOGETHER + 2
    many = shared(f"{batch} prefixes", 5, prefix=3, batch=batch, heads=1)
    yield TileCase(many, dict.fromkeys(counting, THREE), together=TOGETHER)


def pages() -> Iterator[TileCase]:
    """A sequence's new tokens behind so many keys that a part of them see a block's last key and no more."""
    kernel, seen = "paged_attention.paged_kernel", set()
    for dtype, local, dim in itertools.product((BF16, torch.float32), (False, True), (64, 128, 256)):
        with gpu_tiles():
            tile = paged_config.choose(dim, dtype == torch.float32, local)
        if (dtype, local, tile.queries, tile.keys) in seen:
            continue
        seen.add((dtype, local, tile.queries, tile.keys))
        blocks = THREE + 1 if not local else -(-tile.queries // tile.keys) + THREE + 2
        cached = blocks * tile.keys - 2
        options = {"window": (cached - tile.keys + 1, 0)} if local else {}
        loops = {f"{kernel}/_attend:2/n": THREE, f"{kernel}/_attend:3/n": partly(tile)}
        loops |= {f"{kernel}/_attend/n": partly(tile)} if local else {}
        name = f"tiles, hd{dim}, {str(dtype).removeprefix('torch.')}{', window' if local else ''}"
        shape = {"heads": (1, 1), "width": dim, "page": 64}
        make = lambda g, n, cached=cached, shape=shape: paged_attention.inputs(g, [n, 3], [cached, 4], **shape)  # noqa: E731
        case = Case("paged_attention", name, make, options=options, size=tile.queries, dtypes=(dtype,), draws=0)
        yield TileCase(case, loops)


def widths(rows) -> Iterator[tuple[int, RowLaunch]]:
    """A width for every row of a table by width: one of AF-Next's, or little more than what the row before it takes."""
    before = 0
    for limit, row in rows:
        yield next((width for width in (1280, 3584, 5120) if before < width <= limit), before + 40), row
        before = limit


def norms() -> Iterator[TileCase]:
    for op, cases, rows in (("rms_norm", rms_norm, RMS_NORM), ("layer_norm", layer_norm, LAYER_NORM)):
        for width, row in widths(rows):
            count = PROGRAMS * row.waves * 2 + 5

            def inputs(g, n, cases=cases, width=width):
                return cases.plain(g, n, width)

            wrt = cases.CASES[0].wrt
            case = Case(op, f"tiles, {width}", inputs, wrt, size=count, dtypes=(BF16,), weights=cases.WEIGHTS, draws=0)
            yield TileCase(case, {f"{op}.backward_kernel/i": THREE})


def pooled() -> Iterator[TileCase]:
    kernel = "pool_norm.backward_kernel"
    for width, row in widths(POOL_NORM):
        count = PROGRAMS * row.waves * 2 + 5

        def inputs(g, n, width=width, count=count):
            return pool_norm.inputs(g, n, width, (count,))

        case = Case(
            "pool_norm", f"tiles, {width}", inputs, pool_norm.WRT, size=3, dtypes=(BF16,), weights=pool_norm.WEIGHTS,
            summed=count, draws=0,
        )  # fmt: skip
        yield TileCase(case, {f"{kernel}/i": THREE, f"{kernel}/i:2": THREE})
    pairs = 2 * POOLED + 2
    lengths = (*(1,) * (pairs - 1), 2 * pairs + 1)
    case = Case(
        "pool_norm", f"tiles, {pairs} sequences", lambda g, n: pool_norm.packed(g, n, lengths, 16),
        options={"total": pairs}, dtypes=(BF16,), draws=0,
    )  # fmt: skip
    loops = {"pool_norm.source_kernel/i": THREE, "pool_norm.source_kernel/i:2": THREE}
    yield TileCase(case, loops, together=POOLED)


def gelus() -> Iterator[TileCase]:
    before = 40
    for limit, tile in GELU:
        across = -(-before // tile.columns)
        count = (tile.waves * PROGRAMS // across * 2 + 1) * tile.rows
        case = Case(
            "bias_gelu", f"tiles, {before}", lambda g, n, width=before: bias_gelu.inputs(g, n, width), ("bias",),
            size=count, dtypes=(BF16,), weights=bias_gelu.WEIGHTS, draws=0,
        )  # fmt: skip
        yield TileCase(case, {"bias_gelu.backward_kernel/i": THREE})
        before = limit + 1000


def losses() -> Iterator[TileCase]:
    ce, lce = cross_entropy.CE, "linear_cross_entropy"
    plain, optional = 2 * WALKS[-1][1].block + 7, 2 * OPTIONAL.block + 7
    for name, classes, options in (("plain", plain, {}), ("every option", optional, cross_entropy.OPTIONS)):
        case = Case(
            ce, f"tiles, {name}", lambda g, n, classes=classes: cross_entropy.inputs(g, n, classes), cross_entropy.WRT,
            options, size=5, dtypes=(BF16,),
        )  # fmt: skip
        loops = ("forward_kernel/row_softmax/i", "backward_kernel/i", "backward_kernel/i:2")
        yield TileCase(case, {f"{ce}.{loop}": THREE for loop in loops})
        case = Case(
            lce, f"tiles, {name}", lambda g, n, classes=classes: linear_cross_entropy.inputs(g, n, 136, classes),
            linear_cross_entropy.WRT, options, size=5, dtypes=(BF16,),
        )  # fmt: skip
        kernel = "linear_cross_entropy.softmax_kernel"
        loops = {f"{kernel}/row_softmax/i": THREE, f"{kernel}/i": THREE}
        yield TileCase(case, loops | ({"linear_cross_entropy.scale_kernel/i": THREE} if not options else {}))
    # More than two tiles in each of the parts that the vocabulary is split in.
    classes, width = (2 * max(8, 2 * PROGRAMS) + 1) * TILE.classes, 2 * TILE.width + 8
    case = Case(
        lce, "tiles, loss alone", lambda g, n: linear_cross_entropy.inputs(g, n, width, classes), size=24,
        dtypes=(BF16,), draws=0,
    )  # fmt: skip
    kernel = "linear_cross_entropy.logsumexp_kernel"
    yield TileCase(case, {f"{kernel}/tile": THREE, f"{kernel}/o_d": THREE})
    case = Case(
        lce, "tiles, a wide row", lambda g, n: linear_cross_entropy.inputs(g, n, 8200, 300), size=5, dtypes=(BF16,)
    )
    yield TileCase(case, {"linear_cross_entropy.logprob_kernel/o_d": THREE})


def movements() -> Iterator[TileCase]:
    wide = merge_embeddings.inputs(0.5, 2 * MERGE.block + 8)
    case = Case("merge_embeddings", "tiles", wide, merge_embeddings.WRT, size=4, dtypes=(BF16,))
    yield TileCase(case, {f"merge_embeddings.{name}_kernel/first": THREE for name in ("copy", "keep", "gather")})
    case = Case(
        "rote", "tiles", lambda g, n: rote.inputs(g, n, 600), ("x",), {"rotary_dim": 64}, size=9, dtypes=(BF16,)
    )
    yield TileCase(case, {"rote.rote_kernel/first": THREE})
    heads, tokens = 2 * ROTARY.heads + 1, ROTARY.few * PROGRAMS
    case = rotary.case(
        "tiles", lambda g, n: rotary.inputs(g, n, heads, heads), (), size=tokens, dtypes=(BF16,), draws=0
    )
    yield TileCase(case, {"rotary.rotary_kernel/first": THREE, "rotary.rotary_kernel/first:2": THREE})


def features() -> Iterator[TileCase]:
    """The 64 columns of a folded operand are two pieces, whatever the length. Zeros are clamped, in bands of mels."""
    kernel = "log_mel.log_mel_kernel"
    spectra = {f"{kernel}/power{a}/spectrum{b}/j": 2 for a in ("", ":2") for b in ("", ":2")}
    loops = {f"{kernel}/{loop}": THREE for loop in ("copy_reflected/i", "largest_sample/i", "i", "j")}
    yield TileCase(log_mel.case("tiles", log_mel.padded, size=400, impls=("triton",)), spectra | loops)


def codec() -> Iterator[TileCase]:
    before = 0
    for limit, row in CONV:
        channels, frames = min(limit, before + 40), THREE * row.waves * PROGRAMS * row.back
        before = limit
        make = causal_conv.without("state", channels=channels, clips=1)
        wrt = ("x", "weight", "bias")
        options = {"size": frames, "dtypes": (BF16,), "weights": causal_conv.SUMS, "draws": 0}
        case = Case("causal_conv", f"tiles, {channels}", make, wrt, **options)
        loops = {"forward_kernel/tap": THREE, "backward_kernel/tap": THREE, "backward_kernel/i": THREE}
        yield TileCase(case, {f"causal_conv.{loop}": least for loop, least in loops.items()})
    for hop, (_, row) in zip((8, 32), INVERSE, strict=True):
        case = istft.case(f"tiles, hop {hop}", row.frames + 5, 3 * hop, hop, dtypes=(BF16,), draws=0)
        yield TileCase(case, {f"istft.forward_kernel/{loop}": THREE for loop in ("start", "part")})
    shape = {"width": 2 * CODES.part + 8, "count": 2 * CODES.codes + 44, "dtypes": (BF16,)}
    loops = ("level", "start", "part", "part:2")
    case = residual_quantize.case("tiles", CODES.rows + 1, **shape)
    yield TileCase(case, {f"residual_quantize.forward_kernel/{loop}": THREE for loop in loops})


TILE_CASES = [
    *attentions(), *decodings(), *pages(), *norms(), *pooled(), *gelus(), *losses(), *movements(), *features(),
    *codec(),
]  # fmt: skip
