"""Attention and decode compiled for GPUs that are not here: does every row fit the device, and which spill.

    python -m bench.capabilities [--out bench/results/capabilities] [--capability 8.9] [--only attention]

Every kernel is compiled as bench.sm90 does, for one compute capability after the other, over precisions, head
dimensions and flags. A line says the shared memory that it asks for and that the device gives to a block.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch

import afn_kernels as ak
from afn_kernels import _device
from afn_model.files import write_rows, write_text
from bench.ops import workloads
from bench.sm90.launches import Launch, compiling, gradients_of, has
from bench.sm90.machine import dumped

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0))
DIMS = (16, 48, 64, 80, 96, 128, 192, 256)
THOROUGHLY, FEW = ((8, 9), (9, 0)), (64, 96, 128, 256)
MATTER = (64, 80, 96, 128)  # head dimensions that models have; with half precision they may not spill
HALVES = (torch.bfloat16, torch.float16)
REGISTERS = 65536  # of a block, and of a multiprocessor


def name_of(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


@dataclass(frozen=True)
class Point:
    """One call: the op, its precision and head dimension, what else it has, and what runs it on tensors of "meta"."""

    op: str
    dtype: torch.dtype
    dim: int
    flags: str
    call: Callable[[], None]


def attention(dtype: torch.dtype, dim: int, causal=True, packed=True, carry=False, local=False) -> Point:
    """Forward and, without a carry, backward."""
    words = {"causal": causal, "packed": packed, "carry": carry, "window and softcap": local}

    def call() -> None:
        q = torch.empty(512, 8, dim, dtype=dtype, device="meta", requires_grad=not carry)
        k, v = (torch.empty(512, 2, dim, dtype=dtype, device="meta", requires_grad=not carry) for _ in range(2))
        options: dict = {"causal": causal, "impl": "triton"}
        if packed:
            options["cu_seqlens_q"] = torch.empty(4, dtype=torch.int32, device="meta")
        if carry:
            options["carry"] = (q.float(), torch.empty(512, 8, device="meta"))
        if local:
            options |= {"window": (100, 0), "softcap": 30.0}
        out = ak.attention(q, k, v, **options)
        if not carry:
            torch.autograd.grad(out, [q, k, v], torch.empty_like(out))

    return Point("attention", dtype, dim, ", ".join(name for name, on in words.items() if on) or "plain", call)


def decode(dtype: torch.dtype, dim: int, page: int = 0, new: int = 1, fp8: bool = False, local: bool = False) -> Point:
    words = {f"{new} new": True, f"pages of {page}": page, "FP8": fp8, "window and softcap": local}

    def call() -> None:
        q = torch.empty(2, new, 28, dim, dtype=dtype, device="meta")
        cache = torch.empty(*((64, page) if page else (2, 4096)), 4, dim, dtype=dtype, device="meta")
        cache = cache.to(torch.float8_e4m3fn) if fp8 else cache
        table = torch.empty(2, 32, dtype=torch.int32, device="meta") if page else None
        more = {"window": (100, 0), "softcap": 30.0} if local else {}
        lengths = torch.empty(2, dtype=torch.int32, device="meta")
        ak.decode_attention(q, cache, cache, lengths, block_table=table, impl="triton", **more)

    return Point("decode_attention", dtype, dim, ", ".join(name for name, on in words.items() if on), call)


def points(capability: tuple[int, int]) -> list[Point]:
    """Every precision and head dimension packed, causal, with and without a carry; the other flags where they matter.

    Of capabilities that choose the rows of another one only a few head dimensions.

    float16 differs from bfloat16 in conversions alone and is taken at one head dimension; float32, which is slow to
    compile, at those that rows are chosen by.
    """
    found = []
    if capability not in THOROUGHLY:
        for dim in FEW:
            found += [attention(torch.bfloat16, dim), attention(torch.bfloat16, dim, carry=True)]
            found += [decode(torch.bfloat16, dim, page=64), decode(torch.bfloat16, dim, new=8)]
        found += [attention(torch.bfloat16, 128, packed=False, local=True), attention(torch.float16, 128)]
        return [*found, attention(torch.float32, 64), decode(torch.float32, 128)]
    for dtype, dims in ((torch.bfloat16, DIMS), (torch.float32, (64, 128, 256)), (torch.float16, (128,))):
        for dim in dims:
            found += [attention(dtype, dim), decode(dtype, dim, page=64)]
            found.append(attention(dtype, dim, carry=True))
    for dim in (64, 128):
        found += [attention(torch.bfloat16, dim, causal=False, packed=False), decode(torch.bfloat16, dim, new=8)]
        found += [attention(torch.bfloat16, dim, packed=False, carry=carry) for carry in (False, True)]
        found += [decode(torch.bfloat16, dim, page=64, fp8=True)]
    for dtype, dims in ((torch.bfloat16, (64, 128, 256)), (torch.float32, (128,))):
        for dim in dims:
            found += [attention(dtype, dim, packed=False, local=True), decode(dtype, dim, local=True)]
    return found


def others(capability: tuple[int, int]) -> Iterator[Point]:
    """The first workload of every other op, forward and backward."""
    refused = {"quantize_fp8": capability < _device.FIRST_WITH_FP8, "log_mel": capability[0] == 10}
    for work in {work.op: work for work in reversed(workloads())}.values():
        if refused.get(work.op):
            continue
        if has(work.op, "triton") and work.op not in ("attention", "decode_attention"):
            yield Point(work.op, work.dtype, 0, work.name, partial(gradients_of, work, "triton"))


def tile(launch: Launch) -> str:
    """The launch configuration in a line."""
    names = ("BLOCK_M", "BLOCK_N", "STAGES", "num_stages", "num_warps")
    return " ".join(f"{name}={launch.arguments[name]}" for name in names if name in launch.arguments)


def compiled(point: Point, capability: tuple[int, int]) -> list[dict]:
    """A line per kernel that a call launches on such a GPU."""
    with compiling(capability) as launches:
        point.call()
    found, room = [], _device.of(capability)
    for launch in {(x.name, x.compiled.hash): x for x in launches}.values():
        use = dumped(launch.compiled.asm["cubin"], "--dump-resource-usage")
        registers, stack = (int(re.search(rf"{key}:(\d+)", use)[1]) for key in ("REG", "STACK"))
        meta = launch.compiled.metadata
        found.append(
            {
                "capability": name_of(capability), "op": point.op, "kernel": launch.name,
                "dtype": str(point.dtype).removeprefix("torch."), "dim": point.dim, "flags": point.flags,
                "registers": registers, "spilled": stack, "threads": 32 * meta.num_warps, "shared": meta.shared,
                "tile": tile(launch), "room": room, "tensor_memory": getattr(meta, "tmem_size", 0) or 0,
                "fits": meta.shared <= room and registers * 32 * meta.num_warps <= REGISTERS,
            }
        )  # fmt: skip
    return found


BEFORE_HOPPER = tuple(name_of(one) for one in CAPABILITIES if one < _device.HOPPER)
# By kernel: capabilities, bytes at most, and why it is meant.
SPILLS = {
    "log_mel_kernel": (BEFORE_HOPPER, 16, "registers also hold what it multiplies; larger tiles spill more"),
}


def spills_where_it_matters(line: dict) -> bool:
    """Whether a line spills that may not: half precision, head dimensions that models have."""
    where, most, _ = SPILLS.get(line["kernel"], ((), 0, ""))
    allowed = most if line["capability"] in where else 0
    return line["dtype"] != "float32" and line["dim"] in (*MATTER, 0) and line["spilled"] > allowed


def table(lines: list[dict]) -> str:
    """What does not fit or spills, and the largest shared memory of every op on every device."""
    most: dict[tuple[str, str], dict] = {}
    for x in lines:
        key = x["capability"], x["op"]
        if key not in most or x["shared"] > most[key]["shared"]:
            most[key] = x
    spills = [x for x in lines if x["spilled"]]
    out = [f"{len(lines)} kernels; {sum(not x['fits'] for x in lines)} do not fit; {len(spills)} spill."]
    out += ["", "| capability | op | most shared KB | of | kernel | dtype | head dim | flags |", "|---" * 8 + "|"]
    for (capability, op), x in sorted(most.items(), key=lambda pair: tuple(map(int, pair[0][0].split(".")))):
        out.append(f"| {capability} | {op} | {x['shared'] / 1024:.0f} | {x['room'] >> 10} | `{x['kernel']}` "
                   f"| {x['dtype']} | {x['dim'] or ''} | {x['flags']} |")  # fmt: skip
    out += ["", "| capability | kernel | dtype | head dim | flags | registers | bytes spilled | shared KB | fits |"]
    out += ["|---" * 9 + "|"]
    for x in lines:
        if x["spilled"] or not x["fits"]:
            out.append(f"| {x['capability']} | `{x['kernel']}` | {x['dtype']} | {x['dim'] or ''} | {x['flags']} "
                       f"| {x['registers']} | {x['spilled']} | {x['shared'] / 1024:.0f} "
                       f"| {'yes' if x['fits'] else 'no'} |")  # fmt: skip
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for sweep.jsonl and sweep.md")
    parser.add_argument("--capability", default="", help="one of them, as 8.9")
    parser.add_argument("--only", default="", help="an op")
    parser.add_argument("--sample", type=int, default=0, help="so many of them, by chance")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    asked = [one for one in CAPABILITIES if args.capability in ("", name_of(one))]
    todo = [(one, point) for one in asked for point in (*points(one), *others(one)) if args.only in ("", point.op)]
    if args.sample:
        todo = Random(args.seed).sample(todo, args.sample)
    lines = []
    for capability, point in todo:
        print(name_of(capability), point.op, point.dtype, point.dim, point.flags, file=sys.stderr, flush=True)
        lines += compiled(point, capability)
    print(table(lines))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        file = args.out / "sweep.jsonl"
        done = {(x["capability"], x["op"]) for x in lines}
        before = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        lines = [*(x for x in before if (x["capability"], x["op"]) not in done), *lines]
        lines.sort(key=lambda x: (tuple(map(int, x["capability"].split("."))), x["op"]))
        write_rows(file, lines)
        write_text(args.out / "sweep.md", table(lines))


if __name__ == "__main__":
    main()
