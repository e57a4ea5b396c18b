"""Mutated inputs of strangers: each is accepted or refused in one line, soon, and nothing leaves its folder.

    python -m bench.fuzz --out bench/results/cpu/fuzz.jsonl             # 10,000 cases
    python -m bench.fuzz --kind weights --seed 3 --case 17              # one of them again

Values of JSON and YAML are replaced by nasty ones, deleted, doubled or moved, and bytes are flipped, cut out and put
in. A case is accepted, or refused by a ValueError or OSError of one line, the errors that the command line shows as
such. Anything else is a finding: another exception, an error of several lines, more than 5 s of CPU time or 4 GB of
memory, a process that ends, a file opened outside of the case's folder, or a result that is not whole. Cases run in
child processes; a case is a function of seed, kind and number.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from afn_model.host import machine
from bench import fuzz_kinds, fuzz_mutations

CPU_SECONDS, WALL_SECONDS, BYTES = 5, 120, 4 << 30  # of a case; memory beyond what the process has at its start
CHUNK = 500  # cases of a process


class CaseHangs(BaseException):
    """A case has used up its time. No Exception, so that nothing on the way takes it for its own."""


@dataclass(frozen=True)
class Outcome:
    """Of a case: "accepted", "refused" or "finding", and what was said."""

    kind: str
    case: int
    word: str
    said: str


def run_case(kind: str, attempt: fuzz_kinds.Attempt, folder: Path, seed: int, case: int) -> Outcome:
    """One case in this process: writes the mutated file, reads it, and puts the whole one back."""
    rng = random.Random(f"{seed} {kind} {case}")
    name = rng.choice(attempt.files)
    whole = (folder / name).read_bytes()
    opened: list[str] = []
    try:
        (folder / name).write_bytes(fuzz_mutations.mutated(whole, name, rng))
        WATCHED.append((str(folder), opened))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        word, said = judged(lambda: attempt.read(folder))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        WATCHED.clear()
        (folder / name).write_bytes(whole)
    if opened:
        word, said = "finding", f"opened outside of its folder: {opened[0]}"
    return Outcome(kind, case, word, f"{name}: {said}".replace(f"{folder}{os.sep}", "") if said else "")


def judged(read: Callable[[], object]) -> tuple[str, str]:
    """("accepted", ""), ("refused", the line) or ("finding", what happened)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except (ValueError, OSError) as error:
        said = str(error)
        one_line = said and "\n" not in said and len(said) < 2000
        return ("refused", said) if one_line else ("finding", f"refused in no single line: {said[:300]!r}")
    except CaseHangs:
        return "finding", f"more than {CPU_SECONDS} s"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # panics of compiled code are no Exception
        return "finding", f"{type(error).__name__}: {str(error)[:300]}"
    return "accepted", ""


WATCHED: list[tuple[str, list[str]]] = []


def watch(event: str, args: tuple) -> None:
    """An audit hook that notes files beside the case's folder, and any other that is opened for writing."""
    if event != "open" or not WATCHED or not isinstance(args[0], (str, bytes)):
        return
    folder, opened = WATCHED[-1]
    path = os.path.abspath(os.fsdecode(args[0]))
    writes = isinstance(args[1], str) and any(letter in args[1] for letter in "wax+")
    inside = path == folder or path.startswith(folder + os.sep)
    if not inside and (writes or path.startswith(os.path.dirname(folder) + os.sep)):
        opened.append(path)


def work(pipe, kind: str, folder: Path, seed: int, cases: list[int]) -> None:
    """A child process: says which case it begins, and how it ended."""

    def stop(*_: Any) -> None:
        raise CaseHangs

    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()
    signal.signal(signal.SIGPROF, stop)
    sys.addaudithook(watch)
    torch.set_num_threads(1)  # a forked child has none of the threads that its parent had
    attempt = fuzz_kinds.KINDS[kind](folder)
    for case in cases:
        pipe.send(case)
        pipe.send(run_case(kind, attempt, folder, seed, case))


def run(kind: str, seed: int, cases: list[int]) -> Iterator[Outcome]:
    """Outcomes of cases in child processes; one that ends or hangs is a finding, and the next goes on after it."""
    context = multiprocessing.get_context("fork")
    while cases:
        with tempfile.TemporaryDirectory(prefix="afn-fuzz-") as temporary:
            folder = Path(os.path.realpath(temporary)) / "case"
            folder.mkdir()
            ours, theirs = context.Pipe()
            child = context.Process(target=work, args=(theirs, kind, folder, seed, cases[:CHUNK]))
            child.start()
            theirs.close()
            begun, done = cases[0], 0
            try:
                for _ in cases[:CHUNK]:
                    if not ours.poll(WALL_SECONDS):
                        raise TimeoutError(f"more than {WALL_SECONDS} s")
                    begun = ours.recv()
                    if not ours.poll(WALL_SECONDS):
                        raise TimeoutError(f"more than {WALL_SECONDS} s")
                    yield ours.recv()
                    done += 1
            except (EOFError, TimeoutError) as error:
                child.kill()
                child.join()
                yield Outcome(kind, begun, "finding", str(error) or f"its process ended with {child.exitcode}")
                done = cases.index(begun) + 1
            child.join()
            ours.close()
            own = (folder, folder.parent / fuzz_kinds.OUTSIDE)
            if beside := [path.name for path in folder.parent.iterdir() if path not in own]:
                yield Outcome(kind, begun, "finding", f"wrote beside its folder: {', '.join(beside)}")
            cases = cases[done:]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="append the record to this file, one JSON object per line")
    parser.add_argument("--count", type=int, default=10_000, help="of cases, all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(fuzz_kinds.KINDS), help="default: all")
    parser.add_argument("--case", type=int, help="this one alone, of one kind")
    args = parser.parse_args(arguments)
    kinds = args.kind or list(fuzz_kinds.KINDS)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    findings = []
    for number, kind in enumerate(kinds):
        cases = [args.case] if args.case is not None else list(range(number, args.count, len(kinds)))
        for outcome in run(kind, args.seed, cases):
            counts[kind][outcome.word] += 1
            if args.case is not None or outcome.word == "finding":
                again = f"--kind {kind} --seed {args.seed} --case {outcome.case}"
                print(f"{outcome.word}  {again}  {outcome.said}", flush=True)
            if outcome.word == "finding":
                findings.append({"kind": kind, "case": outcome.case, "what": outcome.said})
        print(f"{kind}: {', '.join(f'{n} {word}' for word, n in sorted(counts[kind].items()))}", flush=True)
    total = sum(sum(count.values()) for count in counts.values())
    print(f"{total} cases, {len(findings)} findings")
    record = {"cases": total, "seed": args.seed, "kinds": counts, "findings": findings, **machine("cpu")}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
