"""What orders memory in csrc/cuda, left out one place at a time: something must be said of each.

    python -m tests.cuda.mutants [--write]

Each barrier, fence, wait, load past L1 and release or acquire of the sources becomes a choice that is made when the
kernel runs, so that one compilation has all mutants of a source. The cases of ``cases.py`` then run without each of
them. ``--write`` keeps the table in mutants.md. The exit code is 1 if a mutant goes unnoticed.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from afn_kernels import _counters, _cuda
from tests.cuda import MemoryFault, emulated, library
from tests.cuda.cases import CASES, LONG

TABLE = Path(__file__).with_name("mutants.md")
IN_LONG = "in a long case:"
REMOVED = ("sync_block", "sync_warp", "fence", "copy_async", "copy_commit", "copy_wait", "bulk_start", "bulk_expect")
REMOVED += ("bulk_copy", "bulk_wait", "barrier_start", "barriers_started", "barrier_arrive", "barrier_expect")
REMOVED += ("barrier_wait", "fence_async", "tensor_copy", "wgmma_fence", "wgmma_commit", "wgmma_wait", "named_sync")
REMOVED += ("tensor_store", "tensor_add", "bulk_store", "bulk_add", "store_commit", "store_wait_read", "store_wait")
REMOVED += ("wait_for",)
CALL = re.compile(
    rf"\b({'|'.join(REMOVED)}|load_global|atomic_add_release(?:_acquire)?|descriptor)\s*(<[^<>;()]*>)?\s*\("
)
FUNCTION = re.compile(r"^ *AFN_DEVICE [^;]*?(\w+)\(", re.MULTILINE)
ATOMIC = "host::atomic({}, host::add, {})"


@dataclass(frozen=True)
class Place:
    """One thing that is left out: the statement, numbered where its function has several such."""

    file: str
    function: str
    text: str
    change: str

    def row(self, verdict: str) -> tuple[str, ...]:
        cells = (self.file, self.function, f"`{self.text}`", self.change, verdict or "**nothing**")
        return tuple(cell.replace("|", "\\|") for cell in cells)


def variants(name: str, template: str, arguments: str) -> list[tuple[str, str]]:
    """What a call becomes, and what that is called."""
    call = f"{name}{template}"
    if name == "load_global":
        return [("through L1", f"*({arguments})")]
    if name == "atomic_add_release_acquire":
        kinds = (("relaxed", "false, false"), ("acquires only", "true, false"), ("releases only", "false, true"))
        return [(what, ATOMIC.format(arguments, kind)) for what, kind in kinds]
    if name == "atomic_add_release":
        return [("relaxed", f"void({ATOMIC.format(arguments, 'false, false')})")]
    if name == "descriptor":
        start, leading, stride, swizzle = split(arguments)
        found = [
            ("16 bytes on", f"descriptor({start} + 16, {leading}, {stride}, {swizzle})"),
            ("another stride", f"descriptor({start}, {leading}, 2 * ({stride}), {swizzle})"),
            ("another swizzle", f"descriptor({start}, {leading}, {stride}, Swizzle(1 + int({swizzle}) % 3))"),
        ]
        if leading != "16":  # where it means something
            found.append(("another leading stride", f"descriptor({start}, 2 * ({leading}), {stride}, {swizzle})"))
        return found
    found = [("left out", "void()")]
    if name == "wait_for":
        found.append(("acquires nothing", f"host::wait_for({arguments}, false)"))
    if name == "store_wait":
        found.append(("until read alone", f"store_wait_read{template}()"))
    if name in ("copy_wait", "wgmma_wait", "store_wait_read", "store_wait"):
        found.append(("one group fewer", f"{name}<({template[1:-1]}) + 1>()"))
    if name == "barrier_expect":
        barrier, count = split(arguments)
        found.append(("arrives only", f"barrier_arrive({barrier})"))
        found += [(f"{n} bytes", f"barrier_expect({barrier}, ({count}) {n})") for n in ("+ 16", "- 16")]
    if name in ("bulk_wait", "barrier_wait"):
        barrier, phase = arguments.rsplit(",", 1)
        found.append(("the other phase", f"{call}({barrier}, 1 ^ ({phase}))"))
    return found


def split(arguments: str) -> list[str]:
    """At the commas that are in no parentheses."""
    found, depth = [""], 0
    for letter in arguments:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [part.strip() for part in found]


def closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError(f"no end of the call at {text[opening - 40 : opening]!r}")


def rewrite(file: str, text: str, places: list[Place]) -> str:
    """The source with a choice at every call that orders something; the choices are appended to ``places``."""
    if file == "hopper.cuh":
        return text
    start = text.index("#endif\n\nnamespace afn") if file == "device.cuh" else 0  # before it are the instructions
    done = text[:start]
    while found := CALL.search(text, start):
        begin_of_line = text.rfind("\n", 0, found.start()) + 1
        line = text[begin_of_line : text.find("\n", found.start())].strip()
        end = closing(text, found.end() - 1)
        done += text[start : found.start()]
        start = found.end() if "//" in text[begin_of_line : found.start()] else end + 1
        if start == found.end():
            done += found[0]
            continue
        function = FUNCTION.findall(text, 0, found.start())[-1]
        number = 1 + len(
            {p.text for p in places if p.function == function and re.sub(r" \(\d+\)$", "", p.text) == line}
        )
        name, template, arguments = found[1], found[2] or "", text[found.end() : end]
        call = f"{name}{template}({arguments})"
        for change, instead in variants(name, template, arguments):
            places.append(Place(file, function, line if number == 1 else f"{line} ({number})", change))
            call = f"(host::omitted({len(places)}) ? {instead} : {call})"
        done += call
    return done + text[start:]


def mutate(folder: Path, csrc: Path | None = None) -> list[Place]:
    """A copy of csrc/cuda and its headers with all choices in it."""
    places: list[Place] = []
    csrc = csrc or _cuda.sources()
    for file in (*sorted((csrc / "cuda").glob("*.cu")), *sorted((csrc / "include" / "afn").glob("*.cuh"))):
        to = folder / file.relative_to(csrc)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(rewrite(file.name, file.read_text(), places))
    return places


def included(folder: Path, source: str) -> set[str]:
    """The files that a source is made of."""
    found, open_ = set(), [folder / "cuda" / f"{source}.cu"]
    while open_:
        file = open_.pop()
        found.add(file.name)
        names = re.findall(r'#include "(?:afn/)?(\w+\.cuh)"', file.read_text())
        open_ += [folder / "include" / "afn" / name for name in names if name not in found]
    return found


def said(source: str, folder: Path, place: int, cases: list[Callable], expected: list[torch.Tensor]) -> str:
    """How the first case that notices the mutant does; empty if none does."""
    library(source, folder).afn_leave_out(place)
    try:
        for case, before in zip(cases, expected, strict=True):
            with emulated(csrc=folder, ordered_adds=True):
                if not torch.equal(case().view(torch.uint8), before.view(torch.uint8)):
                    return "the output differs"
    except MemoryFault as fault:
        return reason(str(fault))
    finally:
        library(source, folder).afn_leave_out(0)
        for block in _counters._BLOCKS.values():  # a launch that was broken off has arrived and not left
            block.zeros.zero_()
    return ""


def reason(sentence: str) -> str:
    """A fault without the names and numbers that change from run to run."""
    what = re.sub(r"^\w+: (\w+\.cuh?:\d+: )?", "", sentence)
    what = re.sub(
        r"(thread \d+|several threads|a bulk copy|a product|a store) of (block \d+|several blocks)", r"\1", what
    )
    what = re.sub(r"thread \d+", "a thread", what)
    return re.sub(r" at (byte \d+|0x[\da-f]+|\w+\.cuh?:\d+)", "", what)


def judge(long: bool = True) -> list[tuple[Place, str]]:
    """All places that the cases can reach, each with what is said without it; in cases that take seconds, too."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        places = mutate(folder)
        verdicts: dict[int, str] = {}
        for rounds, mark in ((CASES, ""), (LONG, f"{IN_LONG} "))[: 1 + long]:
            for source, cases in rounds.items():
                files = included(folder, source)
                asked = [n for n, place in enumerate(places, 1) if place.file in files and not verdicts.get(n)]
                with emulated(csrc=folder, ordered_adds=True):
                    expected = [case() for case in cases] if asked else []
                for number in asked:
                    sentence = said(source, folder, number, cases, expected)
                    verdicts[number] = sentence and mark + sentence
    return [(places[number - 1], verdict) for number, verdict in sorted(verdicts.items())]


def table(verdicts: list[tuple[Place, str]]) -> str:
    head = (
        "# What orders memory in csrc/cuda, left out one place at a time\n\n"
        "`python -m tests.cuda.mutants --write` writes this table: without each of these a case of `cases.py` fails, "
        "as the last column says.\n\n| file | function | statement | change | what is said |\n|---|---|---|---|---|\n"
    )
    return head + "".join(f"| {' | '.join(place.row(verdict))} |\n" for place, verdict in verdicts)


def main() -> int:
    verdicts = judge()
    print(table(verdicts))
    unnoticed = [place for place, verdict in verdicts if not verdict]
    for place in unnoticed:
        print(f"{place.file}, {place.function}: {place.text!r}, {place.change}: nothing is said", file=sys.stderr)
    print(f"{len(verdicts)} mutants, {len(unnoticed)} unnoticed")
    if "--write" in sys.argv:
        TABLE.write_text(table(verdicts))
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
