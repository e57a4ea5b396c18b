"""What compilers make of every Triton and CUDA kernel for an H100, with no GPU: registers, spills, matrix instructions.

    python -m bench.sm90 [--out bench/results/sm90] [--only rms_norm] [--lengths]

Each workload of bench/ops is called on tensors without memory; every launch on the way is compiled for sm_90a instead
of run. Bytes are those of a launch's tensors, each counted once; the floor is what the op must move or compute. Ops
that have a kernel in csrc/cuda list it as *.cu, compiled by NVRTC.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

import afn_kernels as ak
from afn_kernels import _cuda, _triton
from afn_model.files import write_json, write_rows, write_text
from bench.ops import Workload, workloads
from bench.shapes import asked

REGISTERS, THREADS, SHARED, BLOCKS = 65536, 2048, 227 * 1024, 32  # of one multiprocessor of an H100
HBM = {"h100": 3.35e12, "h200": 4.8e12}
DOCUMENT, MARK = Path(__file__).with_name("RESULTS.md"), "<!-- from bench/results/sm90"
FLOPS = 989e12  # bf16, dense


@dataclass(frozen=True)
class Launch:
    """One kernel as it was called: the compiled kernel and the bytes of its tensors."""

    name: str
    compiled: object
    bytes: int


@dataclass(frozen=True)
class Binary:
    """What a compiled kernel needs of a multiprocessor; matrix instructions of a warpgroup and of a warp."""

    registers: int
    spills: int
    shared: int
    threads: int
    hgmma: int
    hmma: int
    blocks: int


class _NoGPU:
    """Stands in for Triton's driver where there is no GPU: device 0 is an H100 that is never launched on."""

    @staticmethod
    def get_current_device():
        return 0

    @staticmethod
    def get_current_stream(device):
        return 0

    @staticmethod
    def get_current_target():
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@contextmanager
def compiling():
    """Within it, a launch compiles its kernel for sm_90a and is noted in the list that is yielded; nothing runs."""
    import triton
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        tensors = {id(x): x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
        launches.append(Launch(self.__name__, compiled, sum(x.nbytes for x in tensors.values())))
        return compiled

    driver = triton.runtime.driver
    before = dict(vars(driver))  # attributes of other names in each Triton
    driver.set_active(_NoGPU())
    JITFunction.run, _triton.compile_only = compile_only, True
    try:
        yield launches
    finally:
        JITFunction.run, _triton.compile_only = run, False
        vars(driver).update(before)


def has(op: str, impl: str) -> bool:
    """Whether an op's table has an implementation of this name."""
    return any(row.name == impl for row in ak.OPS[op].impls)


def launched(work: Workload) -> list[Launch]:
    """Triton's launches in a workload's forward and, where it has gradients, its backward."""
    if not has(work.op, "triton"):
        return []
    with compiling() as launches:
        gradients_of(work, "triton")
    return launches


def gradients_of(work: Workload, impl: str) -> None:
    """Calls a workload on tensors without memory, and its backward where it has gradients."""
    inputs = {name: x.requires_grad_(name in work.wrt) for name, x in work.make("meta", work.dtype).items()}
    outs = work.call(inputs, impl)
    if work.wrt:
        outs = [out for out in outs if out.requires_grad]
        torch.autograd.grad(outs, [inputs[name] for name in work.wrt], [torch.empty_like(out) for out in outs])


LENGTHS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 48, 63, 64, 100, 128, 250, 255, 256, 1000, 1024)


def distinct_kernels(op: str) -> dict[str, int]:
    """How many binaries each kernel of an op needs over 20 lengths, the other sizes being its first workload's."""
    work = next(work for work in workloads() if work.op == op)
    seen: dict[str, set] = {}
    for length in LENGTHS:
        for launch in launched(replace(work, make=work.at(length))):
            seen.setdefault(launch.name, set()).add(launch.compiled.hash)
    return {name: len(hashes) for name, hashes in seen.items()}


def compile_each_gradient_alone(op: str) -> None:
    """Backward kernels as they are when a single input wants a gradient; a compiler's error is an error here."""
    work = next(work for work in workloads() if work.op == op)
    for name in work.wrt:
        launched(replace(work, wrt=(name,)))


def binary(compiled) -> Binary:
    """Reads a compiled kernel's machine code back with the tools that Triton brings."""
    use, code = (_dumped(compiled.asm["cubin"], option) for option in ("--dump-resource-usage", "-sass"))
    return _binary(use, code, 32 * compiled.metadata.num_warps, compiled.metadata.shared)


@lru_cache
def _dumped(cubin: bytes, option: str) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(Path(knobs.nvidia.cuobjdump.path)), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _binary(use: str, code: str, threads: int, shared: int) -> Binary:
    registers, stack = (int(re.search(rf"{key}:(\d+)", use)[1]) for key in ("REG", "STACK"))
    blocks = min(REGISTERS // (-(-registers // 8) * 8 * threads), THREADS // threads, BLOCKS)
    if shared:
        blocks = min(blocks, SHARED // shared)
    found = Counter(re.findall(r"\b(?:STL|LDL|HGMMA|HMMA)\b", code))
    spills = found["STL"] + found["LDL"]
    return Binary(registers, max(spills, stack), shared, threads, found["HGMMA"], found["HMMA"], blocks)


def cuda_rows(work: Workload) -> list[dict]:
    """A line per kernel of csrc/cuda that a workload launches, forward and backward."""
    launches: dict[str, tuple[_cuda.Kernel, int]] = {}
    _cuda.emulator = lambda kernel, grid, shared, parameters: launches.setdefault(kernel.name, (kernel, shared))
    try:
        gradients_of(work, "cuda")
    finally:
        _cuda.emulator = None
    found = []
    for name, (kernel, shared) in launches.items():
        cubin = compiled_cuda(kernel.source)
        (use,) = re.findall(rf"Function {name}:\s*\n(.*)", _dumped(cubin, "--dump-resource-usage"))
        code = _dumped(cubin, "-sass").partition(f"Function : {name}\n")[2].partition("Function : ")[0]
        line = {"op": work.op, "workload": work.name, "kernel": f"{kernel.source}.cu: {name}"}
        found.append(line | asdict(_binary(use, code, kernel.threads, shared)))
    return found


@lru_cache
def compiled_cuda(source: str) -> bytes:
    return _cuda.compiled(source, _cuda.HOPPER)


def rows(work: Workload) -> list[dict]:
    """A line per kernel of a workload, and a line for its traffic against the floor."""
    launches = launched(work)
    kernels = {}
    for launch in launches:
        kernels.setdefault((launch.name, launch.compiled.hash), launch)
    found = [
        {"op": work.op, "workload": work.name, "kernel": name, **asdict(binary(launch.compiled))}
        for (name, _), launch in kernels.items()
    ]
    if has(work.op, "cuda") and "cuda" not in work.without:
        found += cuda_rows(work)
    least, flops = sum(work.bytes[: 2 if work.wrt else 1]), sum(work.flops[: 2 if work.wrt else 1])
    floors = {f"floor_us_{gpu}": round(1e6 * max(least / rate, flops / FLOPS), 2) for gpu, rate in HBM.items()}
    moved = sum(launch.bytes for launch in launches)
    found.append(
        {
            "op": work.op,
            "workload": work.name,
            "bytes": moved or None,
            "least_bytes": int(least),
            "traffic": round(moved / least, 3) if launches else None,
            "flops": int(flops),
            **floors,
        }
    )
    return found


def table(lines: list[dict]) -> str:
    """Markdown: kernels first, then traffic and floors."""
    kernels, floors = ([x for x in lines if ("kernel" in x) == kind] for kind in (True, False))
    out = [
        "| op | workload | kernel | registers | spills | shared KB | threads | blocks/SM | HGMMA | HMMA |",
        "|---" * 10 + "|",
    ]
    for x in kernels:
        out.append(
            f"| {x['op']} | {x['workload']} | `{x['kernel']}` | {x['registers']} | {x['spills']} "
            f"| {x['shared'] / 1024:.0f} | {x['threads']} | {x['blocks']} | {x['hgmma']} | {x['hmma']} |"
        )
    out += ["", "| op | workload | MB moved | of the least | GFLOP | floor µs H100 | floor µs H200 |", "|---" * 7 + "|"]
    for x in floors:
        moved = f"{x['bytes'] / 1e6:.1f} | {x['traffic']:.2f} x" if x["bytes"] else f"{x['least_bytes'] / 1e6:.1f} | "
        out.append(
            f"| {x['op']} | {x['workload']} | {moved} "
            f"| {x['flops'] / 1e9:.1f} | {x['floor_us_h100']} | {x['floor_us_h200']} |"
        )
    return "\n".join(out) + "\n"


def into_document(text: str) -> None:
    """Puts the tables between the marks of RESULTS.md."""
    before, _, rest = DOCUMENT.read_text().partition(MARK)
    mark, _, rest = rest.partition("-->")
    write_text(DOCUMENT, f"{before}{MARK}{mark}-->\n{text}<!-- end -->{rest.partition('<!-- end -->')[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for kernels.jsonl and kernels.md")
    parser.add_argument("--only", default="", help="an op")
    parser.add_argument("--lengths", action="store_true", help="also each gradient alone, and binaries over 20 lengths")
    parser.add_argument("--shape", action="append", default=[], help="own sizes: rows=4096,width=5120; may be repeated")
    args = parser.parse_args()
    try:
        todo = asked(args.shape, [args.only] if args.only else None) if args.shape else workloads()
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if any(work.dtype.itemsize != 2 for work in todo):
        raise SystemExit("floors and traffic are those of 16-bit values: dtype=float16 or bfloat16")
    lines = []
    for work in todo:
        if args.only in ("", work.op):
            print(work, file=sys.stderr, flush=True)
            lines += rows(work)
    print(table(lines))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_rows(args.out / "kernels.jsonl", lines)
        write_text(args.out / "kernels.md", table(lines))
        if args.out.resolve() == DOCUMENT.parent / "results" / "sm90":
            into_document(table(lines))
    if args.lengths:
        ops = [op for op in dict.fromkeys(line["op"] for line in lines) if has(op, "triton")]
        for op in ops:
            compile_each_gradient_alone(op)
        counts = {op: distinct_kernels(op) for op in ops}
        print(json.dumps(counts, indent=1))
        if args.out:
            write_json(args.out / "lengths.json", counts)


if __name__ == "__main__":
    main()
