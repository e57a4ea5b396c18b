"""Cases with which every loop of every kernel runs three times and more with the tiles that a GPU has.

One for each row of an op's configurations, as large as that row and the multiprocessors here need: a row may change,
and its case follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from afn_kernels import _triton
from afn_kernels._rows import RowLaunch
from afn_kernels.attention import config as attention_config
from afn_kernels.attention.config import AttnTile
from afn_kernels.bias_gelu.config import ROWS as GELU
from afn_kernels.cross_entropy.config import OPTIONAL, WALKS
from afn_kernels.decode_attention.config import ROWS as SPLITS
from afn_kernels.layer_norm.config import ROWS as LAYER_NORM
from afn_kernels.linear_cross_entropy.config import TILE
from afn_kernels.merge_embeddings.config import CONFIG as MERGE
from afn_kernels.pool_norm.config import ROWS as POOL_NORM
from afn_kernels.rms_norm.config import ROWS as RMS_NORM
from afn_kernels.rotary.config import CONFIG as ROTARY
from tests.kernels.cases import (
    attention,
    bias_gelu,
    cross_entropy,
    decode_attention,
    layer_norm,
    linear_cross_entropy,
    log_mel,
    merge_embeddings,
    pool_norm,
    rms_norm,
    rotary,
    rote,
)
from tests.kernels.harness import BF16, Case
from tests.kernels.loops import gpu_tiles

THREE = 3
PROGRAMS = _triton.programs(torch.device("cpu" if _triton.interpreted() or not torch.cuda.is_available() else "cuda"))


@dataclass(frozen=True)
class TileCase:
    """A case, how often at least the loops run that it is there for, and the multiprocessors that it needs, if any."""

    case: Case
    loops: dict[str, int]
    processors: int | None = None

    def __str__(self) -> str:
        return str(self.case)


# The three ranges of keys of attention: those that a window hides from a part of a tile's queries, those that all of
# them see, and those that causality or the end of the sequence hides from a part of them.
BEFORE, FULL, TAIL = "", ":2", ":3"


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
    return found | ({"attention.dkv_kernel/step": THREE} if "dkv" in tiles else {})


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
        {"attention.forward_kernel/_attend:2/n": THREE},
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
    kernel = "decode_attention.decode_kernel"
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
        yield TileCase(case, {f"{kernel}/start": THREE})
    merge = {f"{kernel}/store_or_merge/merge/{loop}": THREE for loop in ("first", "i", "i:2", "i:3")}
    make = {"batch": 1, "heads": 4, "kv_heads": 1, "width": 64}
    yield TileCase(
        decode_attention.case("tiles, 9000 keys", 9000, dtypes=(BF16,), draws=0, **make), merge, processors=64
    )
    make = {"batch": 530, "heads": 1, "kv_heads": 1}
    counting = {f"{kernel}/find_split/{loop}": THREE for loop in ("first", "first:2")}
    yield TileCase(decode_attention.case("tiles, 530 sequences", 9, dtypes=(BF16,), draws=0, **make), counting)


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
    lengths = (*(1,) * 2049, 4101)
    case = Case(
        "pool_norm", "tiles, 2050 sequences", lambda g, n: pool_norm.packed(g, n, lengths, 16), (), {"total": 2050},
        dtypes=(BF16,), draws=0,
    )  # fmt: skip
    yield TileCase(case, {"pool_norm.source_kernel/i": THREE, "pool_norm.source_kernel/i:2": THREE})


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
    """The 64 columns of a folded operand are two pieces, whatever the length."""
    kernel = "log_mel.log_mel_kernel"
    spectra = {f"{kernel}/power{a}/spectrum{b}/j": 2 for a in ("", ":2") for b in ("", ":2")}
    loops = {f"{kernel}/{loop}": THREE for loop in ("copy_reflected/i", "largest_sample/i", "i")}
    yield TileCase(log_mel.case("tiles", size=400, impls=("triton",)), spectra | loops)


TILE_CASES = [
    *attentions(), *decodings(), *norms(), *pooled(), *gelus(), *losses(), *movements(), *features(),
]  # fmt: skip
