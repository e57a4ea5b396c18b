"""The command: compile, read back, hold to the rules, write the tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from afn_kernels import _versions
from afn_model.files import write_json, write_rows, write_text
from bench import sm90
from bench.ops import Workload, workloads
from bench.shapes import asked
from bench.sm90 import assemblers, lint, sass
from bench.sm90.hazards import Finding
from bench.sm90.launches import (
    CudaLaunch,
    Launch,
    compile_each_gradient_alone,
    cuda_launched,
    distinct_kernels,
    has,
    launched,
)
from bench.sm90.machine import PROCESSORS, Binary, binary, compiled_cuda, cuda_binary, list_at_once, listing
from bench.sm90.tables import against, table

DOCUMENT, MARK = Path(__file__).parents[1] / "RESULTS.md", "<!-- from bench/results/sm90"


RULED: dict[str, list[Finding]] = {}  # by a kernel's hash: workloads share kernels


def kernel_row(work: Workload, name: str, programs: int, read: Binary, code: list[sass.SassInstruction]) -> dict:
    """What is said of a kernel: its binary, a step of its main loop, and its programs against those that fit."""
    loop = sass.main_loop(code)
    step = sass.cost(loop, sass.working(code, read.threads))
    line = {"op": work.op, "workload": work.name, "kernel": name, **asdict(read), **asdict(step)}
    line["passed"] = sass.passed(loop)
    return line | {"programs": programs, "resident": read.blocks * PROCESSORS}


def parameter_names(launch: Launch) -> list[str]:
    """The kernel's arguments in the order of the PTX's parameters: constants are left out, tuples have several."""
    source, found = launch.compiled.src, []
    for at, name in enumerate(source.fn.arg_names):
        given = launch.arguments.get(name)
        inside = [(at, i) for i in range(len(given))] if isinstance(given, tuple) else [(at,)]
        found += [name for path in inside if path not in source.constants and (at,) not in source.constants]
        if not isinstance(given, (torch.Tensor, tuple, int, float, str, bool, type(None))):
            return found[:-1]  # a tensor's descriptor is several parameters; nothing behind it is named
    return found


def rules(launch: Launch, code: list[sass.SassInstruction]) -> list[Finding]:
    """What breaks the rules in a Triton kernel."""
    compiled = launch.compiled
    text = compiled.asm["ptx"]
    sizes = {name: x.element_size() for name, x in launch.arguments.items() if isinstance(x, torch.Tensor)}
    parameters = {f"{launch.name}_param_{i}": name for i, name in enumerate(parameter_names(launch))}
    version = _versions.number(_versions.installed("triton"))
    return lint.of_ptx(text, version, parameters, sizes) + lint.of_sass(code)


def keep(texts: Path | None, work: Workload, kernel: str, **parts: str) -> None:
    """Writes the PTX and SASS of the first kernel of a name in an op."""
    if texts is not None:
        texts.mkdir(parents=True, exist_ok=True)
        for kind, text in parts.items():
            file = texts / f"{work.op}.{kernel}.{kind}"
            if not file.exists():
                write_text(file, text)


@dataclass(frozen=True)
class Launched:
    """A workload and all that it launches."""

    work: Workload
    triton: list[Launch]
    cuda: list[CudaLaunch]

    def cubins(self) -> Iterator[bytes]:
        yield from (launch.compiled.asm["cubin"] for launch in self.triton)
        yield from (compiled_cuda(launch.kernel.source) for launch in self.cuda)


def launch(work: Workload) -> Launched:
    print(work, file=sys.stderr, flush=True)
    return Launched(work, launched(work), cuda_launched(work))


def rows(
    one: Launched, more: list[assemblers.Assembler], texts: Path | None = None
) -> tuple[list[dict], list[tuple[str, Finding]]]:
    """A line per kernel of a workload and one for its traffic against the floor; and what breaks the rules."""
    work, launches = one.work, one.triton
    kernels: dict[tuple[str, str], Launch] = {}
    for launch in launches:
        kernels.setdefault((launch.name, launch.compiled.hash), launch)
    found, broken = [], []
    for (name, _), launch in kernels.items():
        code = listing(launch.compiled)
        keep(texts, work, name, ptx=launch.compiled.asm["ptx"], sass=sass.text(code))
        line = kernel_row(work, name, launch.programs, binary(launch.compiled), code)
        if more:
            first, *differ = assemblers.differences(launch.compiled.asm["ptx"], more).items()
            told = [f"{version}: {use[0]}, {use[1]} B" for version, use in differ]
            line["assemblers"] = f"{'; '.join(told)} ({first[0]}: {first[1][0]}, {first[1][1]} B)" if told else "same"
        found.append(line)
        if launch.compiled.hash not in RULED:
            RULED[launch.compiled.hash] = rules(launch, code)
        line["ahead"] = all(one.rule != lint.AHEAD for one in RULED[launch.compiled.hash])
        broken += [(name, one) for one in RULED[launch.compiled.hash]]
        broken += [(name, one) for one in lint.waves(line["programs"], line["resident"], PROCESSORS)]
    for launch in one.cuda:
        read, code = cuda_binary(launch.kernel, launch.shared)
        name = f"{launch.kernel.source}.cu: {launch.kernel.name}"
        keep(texts, work, launch.kernel.name, sass=sass.text(code))
        found.append(kernel_row(work, name, launch.programs, read, code))
        broken += [(name, one) for one in lint.of_sass(code)]
        broken += [(name, one) for one in lint.waves(launch.programs, found[-1]["resident"], PROCESSORS)]
    return [*found, traffic(work, launches)], broken


def traffic(work: Workload, launches: list[Launch]) -> dict:
    """Bytes that launches move against the least, and the floors in time."""
    least, flops = sum(work.bytes[: 2 if work.wrt else 1]), sum(work.flops[: 2 if work.wrt else 1])
    products = flops / (sm90.FLOPS * work.rate)
    floors = {f"floor_us_{gpu}": round(1e6 * max(least / rate, products), 2) for gpu, rate in sm90.HBM.items()}
    moved = sum(launch.bytes for launch in launches)
    return {
        "op": work.op,
        "workload": work.name,
        "bytes": moved or None,
        "least_bytes": int(least),
        "traffic": round(moved / least, 3) if launches else None,
        "flops": int(flops),
        **floors,
    }


def into_document(text: str) -> None:
    """Puts the tables between the marks of RESULTS.md."""
    before, _, rest = DOCUMENT.read_text().partition(MARK)
    mark, _, rest = rest.partition("-->")
    write_text(DOCUMENT, f"{before}{MARK}{mark}-->\n{text}<!-- end -->{rest.partition('<!-- end -->')[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sm90", description=sm90.__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for kernels.jsonl, kernels.md and findings.jsonl")
    parser.add_argument("--only", default="", help="an op")
    parser.add_argument("--lengths", action="store_true", help="also each gradient alone, and binaries over 20 lengths")
    parser.add_argument("--shape", action="append", default=[], help="own sizes: rows=4096,width=5120; may be repeated")
    parser.add_argument("--ptxas", nargs="*", metavar="PATH",
                        help="also assemble by these, by those in AFN_PTXAS and by the one on PATH")  # fmt: skip
    parser.add_argument("--texts", action="store_true", help="also the PTX and SASS of each kernel, into OUT/texts")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="kernels.jsonl of before: print what changed, and put it into kernels.md",
    )
    args = parser.parse_args()
    try:
        todo = asked(args.shape, [args.only] if args.only else None) if args.shape else workloads()
        more = [] if args.ptxas is None else assemblers.others(args.ptxas)
        before = None if args.against is None else read_lines(args.against)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if any(work.dtype.itemsize != 2 for work in todo):
        raise SystemExit("floors and traffic are those of 16-bit values: dtype=float16 or bfloat16")
    lines, findings = [], []
    compiled = [launch(work) for work in todo if args.only in ("", work.op)]
    list_at_once(cubin for one in compiled for cubin in one.cubins())
    for one in compiled:
        found, broken = rows(one, more, args.out / "texts" if args.out and args.texts else None)
        lines += found
        findings += [lint.judged(one.work.name, kernel, broke) for kernel, broke in broken]
    print(table(lines))
    for line in findings:
        print(f"{line['workload']}: {line['kernel']}: {line['rule']}: {line['text']}: {line['where']}"
              f" [{line['reason'] or 'NOT EXPECTED'}]")  # fmt: skip
    changed = ""
    if before is not None:
        asked_for = {(x["op"], x["workload"]) for x in lines}
        changed = against([x for x in before if (x["op"], x["workload"]) in asked_for], lines)
        print(changed)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_rows(args.out / "kernels.jsonl", lines)
        write_rows(args.out / "findings.jsonl", findings)
        since = f"\n## What changed since {args.against.name}\n\n{changed}" if changed else ""
        write_text(args.out / "kernels.md", table(lines) + since)
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


def read_lines(path: Path) -> list[dict]:
    """
    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ValueError(
            f"{path}: not a kernels.jsonl of python -m bench.sm90, which has a record in every line"
        ) from None
