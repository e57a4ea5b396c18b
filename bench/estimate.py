"""Goals of GPU kernels against estimates from their binaries, before and now: no GPU has measured any of it.

    python -m bench.estimate [--before bench/results/sm90/before.jsonl] [--now bench/results/sm90/kernels.jsonl]
                             [--out bench/results/sm90]

Reads what python -m bench.sm90 wrote, writes estimates.jsonl and puts its table into bench/RESULTS.md. The model is in
bench/sm90/estimate.py; what no binary shows (cuBLAS's rate, counts by hand) are constants below, with their sources.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from math import ceil
from pathlib import Path

from afn_kernels.linear_fp8.config import choose
from afn_model.files import write_rows, write_text
from bench.ops import Workload, workloads
from bench.ops.attention import DOCUMENTS
from bench.sm90.command import DOCUMENT, read_lines
from bench.sm90.estimate import (
    CLOCK,
    DEEPGEMM,
    H100,
    H200,
    LAUNCH,
    PROCESSORS,
    PUBLISHED,
    Chip,
    Loop,
    matrix_seconds,
    pairs,
    reached,
    streaming_seconds,
)

RESULTS = Path(__file__).parent / "results" / "sm90"
BEGIN = "<!-- estimates from bench/results/sm90/estimates.jsonl by python -m bench.estimate -->"
END = "<!-- end of estimates -->"

GEMM = 0.80 * 989e12  # FLOP/s of cuBLAS in bf16: 770 to 800 TFLOP/s were measured on an H200
# log_mel.cu keeps its work in many short loops: instructions of a warp and shared-memory wavefronts of a block per tile
# of 32 frames, and what clamping padded windows takes at the end, all counted by hand (docs/lab-notes.md).
MEL_TILES, MEL_WARPS = 60 * 94, 10
MEL_COUNTS = {"before": (1980, 5170), "now": (1620, 3290)}
MEL_PADDED = {"before": 200e-6, "now": 12e-6}
MEL_CLAMP = {"before": 55e-6, "now": 12e-6}  # of the Triton kernel: it read and wrote every row once more
# Of an FP8 product: bytes a clock that L2 gives to a multiprocessor, of fast.cu's kernel 6 (tiles of 192 x 192 without
# multicast, 778 TFLOP/s in bf16); clocks for each element of a tile that is written, from 130 instructions of a warp
# for 16 x 32 of them, counted by hand.
FROM_L2 = 36
PRODUCT_WRITE = 130 / 4 / (16 * 32)
# A chain of loads to the first copy, the ring's filling, the last tile, the merge of 33 parts: 5.5 µs by hand, launch
# included; one release in place of 256 fences takes 0.6 of them.
DECODE_ENDS = {"before": 5.5e-6, "now": 4.9e-6}  # in CUDA C++; one thread has always released in Triton


class MissingRow(Exception):
    """A file of kernels without the kernel that an estimate needs, or without its loop."""


@dataclass(frozen=True)
class Kernels:
    """The records of one kernels.jsonl, and whether they are those of "before" or "now"."""

    when: str
    lines: list[dict]

    def loop(self, op: str, workload: str, kernel: str) -> Loop:
        """Of the kernel of this name, or of this name and a width, "name_128".

        Raises:
            MissingRow: there is no such kernel, or nothing is said of its loop.
        """
        name = re.compile(rf"{re.escape(kernel)}(_\d+)?")
        for x in self.lines:
            same = (x["op"], x["workload"]) == (op, workload) and name.fullmatch(x.get("kernel", ""))
            if same and "issue_clk" in x:
                return Loop.of(x)
        raise MissingRow(f"{op}, {workload}: {kernel}")


WORKLOADS: dict[tuple[str, str], Workload] = {(x.op, x.name): x for x in workloads()}


@dataclass(frozen=True)
class AttentionTime:
    """Seconds of attention's forward or backward."""

    workload: str
    lengths: tuple[int, ...]
    heads: int
    dim: int
    causal: bool = True
    backward: bool = False

    def __call__(self, kernels: Kernels, chip: Chip) -> float:
        found = 0.0
        for kernel, products in (("dq_kernel", 3), ("dkv_kernel", 4)) if self.backward else (("forward_kernel", 2),):
            loop, product = kernels.loop("attention", self.workload, kernel), 2 * self.dim
            scores = pairs(list(self.lengths), self.causal, loop.flops / (products * product))
            found += matrix_seconds(loop, self.heads * scores * products * product, reached(self.dim)) + LAUNCH
        if self.backward:  # delta: out and its gradient once more
            found += 2 * 2 * sum(self.lengths) * self.heads * self.dim / chip.bandwidth + LAUNCH
        return found

    @property
    def flops(self) -> float:
        return WORKLOADS["attention", self.workload].flops[self.backward]


@dataclass(frozen=True)
class StreamingTime:
    """Seconds of one pass of an op that is bound by memory.

    Args:
        op: the op.
        workload: its workload.
        kernel: the one that moves the bytes.
        backward: which pass.
        steps: of all programs together; 0 where every program has one, a kernel's name where it has as many programs.
        launches: in the pass, PyTorch's own included.
    """

    op: str
    workload: str
    kernel: str = "forward_kernel"
    backward: bool = False
    steps: int | str = 0
    launches: int = 1

    def __call__(self, kernels: Kernels, chip: Chip) -> float:
        loop, steps = kernels.loop(self.op, self.workload, self.kernel), self.steps
        if isinstance(steps, str):
            steps = kernels.loop(self.op, self.workload, steps).programs
        return streaming_seconds(loop, self.bytes, steps or loop.programs, chip) + self.launches * LAUNCH

    @property
    def bytes(self) -> float:
        return WORKLOADS[self.op, self.workload].bytes[self.backward]


@dataclass(frozen=True)
class DecodeTime:
    """Seconds of decode_attention at 45,056 keys: steps of as many keys as the loop shows, tiles of 16 query rows."""

    kernel: str
    workload: str = "1 x 45056, 1 new"

    def __call__(self, kernels: Kernels, chip: Chip) -> float:
        loop = kernels.loop("decode_attention", self.workload, self.kernel)
        moved = WORKLOADS["decode_attention", self.workload].bytes[0]
        steps = 4 * 45056 / (loop.flops / (4 * 16 * 128))
        clocks = steps / PROCESSORS * loop.clocks(loop.fit, moved / steps / chip.per_clock)
        return clocks / CLOCK + DECODE_ENDS[kernels.when if ".cu" in self.kernel else "before"]


@dataclass(frozen=True)
class LogMelTime:
    """Seconds of thirty minutes of log_mel by one of its kernels."""

    cuda: bool
    padded: bool
    workload: str = "30 min, float32 to float32"

    def __call__(self, kernels: Kernels, chip: Chip) -> float:
        work = WORKLOADS["log_mel", self.workload]
        if self.cuda:
            kernels.loop("log_mel", self.workload, "log_mel.cu: log_mel_float32_float32")
            instructions, wavefronts = MEL_COUNTS[kernels.when]
            clocks = max(instructions * MEL_WARPS / 4, wavefronts) * MEL_TILES / PROCESSORS
            seconds = clocks / CLOCK / reached(128) + self.padded * MEL_PADDED[kernels.when]
        else:
            loop = kernels.loop("log_mel", self.workload, "log_mel_kernel")
            waves = loop.programs / loop.resident
            seconds = matrix_seconds(loop, work.flops[0], reached(128)) * ceil(waves) / waves
            seconds += MEL_CLAMP[kernels.when] * (self.padded or kernels.when == "before")
        return max(seconds, work.bytes[0] / chip.bandwidth) + LAUNCH


@dataclass(frozen=True)
class LossTime:
    """Seconds of linear_cross_entropy with both gradients: products by cuBLAS, a softmax between them.

    Three products per chunk of rows. The hidden gradient's tiles of 128 x 256 fill their last wave in part; the softmax
    reads logits twice and writes them once; every chunk after the first reads and writes the weight's gradient again.
    """

    workload: str = "8192 x 3584 x 151672"
    sizes: tuple[int, int, int] = (8192, 3584, 151672)

    def __call__(self, kernels: Kernels, chip: Chip) -> float:
        rows, width, classes = self.sizes
        chunk = kernels.loop("linear_cross_entropy", self.workload, "softmax_kernel").programs
        product, tiles = 2 * rows * width * classes / GEMM, ceil(chunk / 128) * ceil(width / 256)
        filled = tiles / (ceil(tiles / PROCESSORS) * PROCESSORS)
        again = (ceil(rows / chunk) - 1) * 2 * 2 * classes * width
        softmax = 3 * 2 * rows * classes
        return product * (2 + 1 / filled) + (again + softmax) / chip.bandwidth + 5 * ceil(rows / chunk) * LAUNCH


@dataclass(frozen=True)
class ProductTime:
    """Seconds of linear_fp8: blocks of 128 of K in each tile of the busiest multiprocessor, and what writes a tile."""

    workload: str

    def __call__(self, kernels: Kernels, chip: Chip) -> float:
        sizes, blocks = self.work.sizes, "by_row" if ", blocks" in self.workload else "by_tile"
        rows, columns, inner = (int(str(sizes[name])) for name in ("rows", "columns", "inner"))
        tile = choose(rows, columns, PROCESSORS)
        name = f"linear_fp8.cu: linear_fp8_{tile.rows}x{tile.columns}_{blocks}"
        loop = kernels.loop("linear_fp8", self.workload, name)
        step = max(loop.issue, loop.tensor / DEEPGEMM.reached, 128 * (tile.rows + tile.columns) / FROM_L2)
        each = ceil(inner / 128) * step + PRODUCT_WRITE * tile.rows * tile.columns
        clocks = ceil(tile.count(rows, columns) / PROCESSORS) * each
        return max(clocks / CLOCK, self.work.bytes[0] / chip.bandwidth) + LAUNCH

    @property
    def work(self) -> Workload:
        return WORKLOADS["linear_fp8", self.workload]


PACKED = AttentionTime("packed causal 32K, 28:4 x 128", DOCUMENTS, 28, 128)
PACKED_BACKWARD = AttentionTime("packed causal 32K, 28:4 x 128", DOCUMENTS, 28, 128, backward=True)
CAUSAL = AttentionTime("causal 16K, 28:4 x 128", (16384,), 28, 128)
CAUSAL_BACKWARD = AttentionTime("causal 16K, 28:4 x 128", (16384,), 28, 128, backward=True)
PREFILL = AttentionTime("prefill 45K, 28:4 x 128", (45056,), 28, 128)
WINDOWS = AttentionTime("60 windows of 1500, 20 x 64", (1500,) * 60, 20, 64, causal=False)
NORM, GELU = StreamingTime("layer_norm", "90000 x 1280 + residual"), StreamingTime("bias_gelu", "90000 x 5120")


def encoder(kernels: Kernels, chip: Chip) -> float:
    """60 windows: 2.27 TFLOP each, of which attention takes its own kernel; 32 layers of two norms and a GELU."""
    layers, flops = 32, 60 * 2.27e12
    own = WINDOWS(kernels, chip) + 2 * NORM(kernels, chip) + GELU(kernels, chip)
    return (flops - layers * WINDOWS.flops) / GEMM + layers * own


def prefill(kernels: Kernels, chip: Chip) -> float:
    """45,056 tokens: 13.05 GFLOP each in linear layers; 28 layers of attention, two norms, rotary and SwiGLU."""
    norm = StreamingTime("rms_norm", "45056 x 3584 + residual")
    rotary = StreamingTime("rotary", "45056 x (28 + 4) x 128, prefill", "rotary_kernel", steps=5 * 45056)
    own = [PREFILL, norm, norm, rotary, StreamingTime("swiglu", "45056 x 18944", "gated_forward_kernel")]
    return 45056 * 13.05e9 / GEMM + 28 * sum(part(kernels, chip) for part in own)


@dataclass(frozen=True)
class Goal:
    """A row: what it is of, in what unit, the goal on each GPU, and seconds from kernels.

    Args:
        item: in words.
        unit: "TFLOP/s", "of copy bandwidth", or a unit of time.
        goal: on an H100 and an H200.
        seconds: of a set of kernels on a GPU.
        amount: FLOP or bytes that a rate counts.
    """

    item: str
    unit: str
    goal: tuple[float, float]
    seconds: Callable[[Kernels, Chip], float]
    amount: float = field(default=0.0)

    def value(self, kernels: Kernels, chip: Chip) -> float | None:
        """In the row's unit; None where a file has no such kernel."""
        try:
            seconds = self.seconds(kernels, chip)
        except MissingRow:
            return None
        if self.unit == "TFLOP/s":
            return self.amount / seconds / 1e12
        if self.unit == "of copy bandwidth":
            return self.amount / chip.bandwidth / seconds
        return seconds * {"s": 1, "ms": 1e3, "µs": 1e6}[self.unit]

    def share(self, value: float, goal: float) -> float:
        """At least 1 where the goal is met."""
        return value / goal if self.unit in ("TFLOP/s", "of copy bandwidth") else goal / value


def rate(item: str, goal: float, of: AttentionTime) -> Goal:
    return Goal(item, "TFLOP/s", (goal, goal), of, of.flops)


def copying(of: StreamingTime) -> Goal:
    name = f"{of.op} {of.workload}{', backward' if of.backward else ''}"
    return Goal(name, "of copy bandwidth", (0.9, 0.9), of, of.bytes)


PRODUCTS = (
    "8192 x 3584 x 18944, tiles",
    "8192 x 18944 x 3584, tiles",
    "8192 x 3584 x 3584, tiles",
    "18944 x 8192 x 3584, blocks, float32",
)
LOSS = sum(WORKLOADS["linear_cross_entropy", LossTime.workload].flops)
GOALS = (
    *(
        Goal(f"log_mel, 30 min{', padded' * padded}, {'CUDA C++' if cuda else 'Triton'}", "ms", (0.25, 0.25),
             LogMelTime(cuda, padded))
        for cuda in (False, True) for padded in (False, True)
    ),
    rate("attention forward, head dim 128, causal 16K", 690, CAUSAL),
    rate("attention forward, head dim 128, prefill 45K", 690, PREFILL),
    rate("attention backward, head dim 128, causal 16K", 600, CAUSAL_BACKWARD),
    rate("attention forward, packed causal 32K", 630, PACKED),
    rate("attention backward, packed causal 32K", 500, PACKED_BACKWARD),
    rate("encoder attention, head dim 64, 60 x 1500", 500, WINDOWS),
    Goal("decode_attention 45K, Triton", "µs", (33, 26), DecodeTime("decode_kernel")),
    Goal("decode_attention 45K, CUDA C++", "µs", (33, 26),
         DecodeTime("decode_attention.cu: decode_attention_bfloat16")),
    Goal("linear_cross_entropy 8K x 151,672", "TFLOP/s", (633, 633), LossTime(), LOSS),  # 0.95 of Liger's 666
    Goal("encoder, 60 windows", "ms", (200, 200), encoder),
    Goal("prefill, 45K tokens", "s", (1.42, 1.42), prefill),
    copying(StreamingTime("rms_norm", "8192 x 3584 + residual")),
    copying(StreamingTime("rms_norm", "8192 x 3584 + residual", "backward_kernel", True, 8192, 3)),
    copying(NORM),
    copying(StreamingTime("layer_norm", "90000 x 1280 + residual", "backward_kernel", True, 90000, 3)),
    copying(StreamingTime("pool_norm", "60 x 1500 x 1280")),
    copying(StreamingTime("pool_norm", "60 x 1500 x 1280", "backward_kernel", True, 45000, 3)),
    copying(StreamingTime("rotary", "8192 x (28 + 4) x 128, training", "rotary_kernel", steps=5 * 8192)),
    copying(StreamingTime("swiglu", "8192 x 18944", "gated_forward_kernel")),
    copying(StreamingTime("swiglu", "8192 x 18944", "gated_backward_kernel", True)),
    copying(GELU),
    copying(StreamingTime("bias_gelu", "90000 x 5120", "backward_kernel", True, "forward_kernel", 3)),
    copying(StreamingTime("merge_embeddings", "45000 of 45056 x 3584", "copy_kernel", launches=2)),
    copying(StreamingTime("quantize_fp8", "8192 x 3584, row", "row_kernel")),
    copying(StreamingTime("quantize_fp8", "8192 x 3584, 1 x 128", "tile_kernel")),
    copying(StreamingTime("quantize_fp8", "8192 x 3584, 1 x 128, transposed", "tile_kernel")),
    copying(StreamingTime("quantize_fp8", "18944 x 3584, 128 x 128", "tile_kernel")),
    *(
        Goal(f"linear_fp8 {of.workload}", "TFLOP/s", (1550, 1550), of, of.work.flops[0])  # what DeepGEMM has published
        for of in map(ProductTime, PRODUCTS)
    ),
    copying(StreamingTime("pack_heads", "6144 rows to 4 peers", "ulysses_permute.cu: pack_heads")),
    copying(StreamingTime("unpack_heads", "6144 rows from 4 peers", "ulysses_permute.cu: unpack_heads_bfloat16")),
)  # fmt: skip


def estimates(before: list[dict], now: list[dict]) -> list[dict]:
    """A record per goal: estimates before and now and the share of the goal now, on each GPU."""
    found = []
    for goal in GOALS:
        line: dict = {"item": goal.item, "unit": goal.unit}
        for chip, wanted in zip((H100, H200), goal.goal, strict=True):
            values = {
                when: goal.value(Kernels(when, lines), chip) for when, lines in (("before", before), ("now", now))
            }
            line |= {f"{when}_{chip.name}": x and float(f"{x:.3g}") for when, x in values.items()}
            share = values["now"] and round(goal.share(values["now"], wanted), 2)
            line |= {f"goal_{chip.name}": wanted, f"of_goal_{chip.name}": share}
        found.append(line)
    return found


def two_digits(x: float | None) -> str:
    return "–" if x is None else f"{float(f'{x:.2g}'):g}"


def table(lines: list[dict]) -> str:
    """Two digits of each estimate, both GPUs in a cell: more would say more than is known."""
    out = [
        "| item | unit | before, H100 / H200 | now, H100 / H200 | goal | of the goal now, H100 / H200 |",
        "|---" * 6 + "|",
    ]
    for x in lines:
        before, now = (
            " / ".join(two_digits(x[f"{when}_{gpu}"]) for gpu in ("h100", "h200")) for when in ("before", "now")
        )
        better = "≤" if x["unit"] in ("s", "ms", "µs") else "≥"
        goals = dict.fromkeys(f"{x[f'goal_{gpu}']:g}" for gpu in ("h100", "h200"))
        shares = " / ".join(
            "–" if x[f"of_goal_{gpu}"] is None else f"{x[f'of_goal_{gpu}']:.2f}" for gpu in ("h100", "h200")
        )
        out.append(f"| {x['item']} | {x['unit']} | {before} | {now} | {better} {' / '.join(goals)} | {shares} |")
    out += ["", "| published, H100 | TFLOP/s | the model's arithmetic | reached |", "|---" * 4 + "|"]
    out += [
        f"| {one.name} | {one.low:g} to {one.high:g} | {one.model:.0f} | {one.reached:.2f} |"
        for one in (*chain(*PUBLISHED.values()), DEEPGEMM)
    ]
    return "\n".join(out) + "\n"


def into_document(text: str, document: Path = DOCUMENT) -> None:
    """Puts the table between its marks."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document}: has no {BEGIN} … {END}; put both lines where the table belongs")
    write_text(document, f"{before}{BEGIN}\n{text}{END}{after}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.estimate", description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, default=RESULTS / "before.jsonl", help="kernels as they were")
    parser.add_argument("--now", type=Path, default=RESULTS / "kernels.jsonl", help="kernels as they are")
    parser.add_argument("--out", type=Path, help="folder for estimates.jsonl; bench/results/sm90: RESULTS.md too")
    args = parser.parse_args(argv)
    try:
        found = estimates(read_lines(args.before), read_lines(args.now))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(table(found))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_rows(args.out / "estimates.jsonl", found)
        if args.out.resolve() == RESULTS.resolve():
            into_document(table(found))


if __name__ == "__main__":
    main()
