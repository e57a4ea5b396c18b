"""SASS as a list of instructions: loops, what a step of one costs, and the order of a last block's protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
# Of an H100's multiprocessor: FLOP in bf16, of which FP8 has twice as many; results; instructions.
PER_CLOCK = {"tensor": 4096, "mufu": 16, "issue": 4}
COPIES = ("LDGSTS", "UTMALDG", "UBLKCP")


@dataclass(frozen=True)
class SassInstruction:
    """One instruction at its address, under a predicate or none."""

    address: int
    guard: str
    op: str
    operands: str

    def __str__(self) -> str:
        return f"{self.address:#06x} {self.op} {self.operands}"[:100]

    @property
    def target(self) -> int | None:
        """Where a branch leads."""
        found = re.findall(r"0x([0-9a-f]+)", self.operands) if self.op.startswith("BRA") else []
        return int(found[-1], 16) if found else None


@dataclass(frozen=True)
class Step:
    """What one step of a program's main loop takes of a multiprocessor, in clocks, and its instructions per warp."""

    instructions: int
    issue_clk: int
    tensor_clk: int
    mufu_clk: int


def parse(text: str) -> list[SassInstruction]:
    """The instructions of a function's listing."""
    found = (LINE.search(line) for line in text.splitlines())
    return [SassInstruction(int(x[1], 16), x[2] or "", x[3], x[4].strip()) for x in found if x]


def text(code: list[SassInstruction]) -> str:
    """A listing that ``parse`` reads."""
    lines = (f"/*{x.address:04x}*/ {f'@{x.guard} ' if x.guard else ''}{x.op} {x.operands} ;" for x in code)
    return "\n".join(lines) + "\n"


def loops(code: list[SassInstruction]) -> list[list[SassInstruction]]:
    """The innermost loops: from where a branch leads back to, to the branch. A branch to itself ends a program."""
    at = {one.address: i for i, one in enumerate(code)}
    spans = [(at[one.target], i) for i, one in enumerate(code) if one.target in at and one.target < one.address]
    inner = [x for x in spans if not any(y != x and x[0] <= y[0] and y[1] <= x[1] for y in spans)]
    return [code[start : end + 1] for start, end in inner]


def flops(one: SassInstruction) -> tuple[int, int]:
    """Floating-point operations of a matrix instruction, and the threads that it takes together."""
    if shape := re.match(r"[HQI]GMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)", one.op):
        m, n, k = map(int, shape.groups())
        return 2 * m * n * k, 128
    if shape := re.match(r"[HI]MMA\.(\d\d)(\d|\d\d)(\d\d|8)\b", one.op):
        m, n, k = (int(shape[1]), 8, int(shape[3]))
        return 2 * m * n * k, 32
    return 0, 1


def cost(part: list[SassInstruction], threads: int) -> Step:
    """Of a straight run of instructions by all threads of a program."""
    warps = threads / 32
    count = sum(one.op != "NOP" for one in part)
    work = sum(amount * threads / together / (2 if one.op.startswith("QGMMA") else 1)
               for one, (amount, together) in zip(part, map(flops, part), strict=True))  # fmt: skip
    special = 32 * warps * sum(one.op.startswith("MUFU") for one in part)
    per = (count * warps / PER_CLOCK["issue"], work / PER_CLOCK["tensor"], special / PER_CLOCK["mufu"])
    return Step(count, *map(round, per))


def working(code: list[SassInstruction], threads: int) -> int:
    """Those of a program's threads that its main loop is of: where tensor copies are outside of it, or warpgroups hand
    on registers, one of them fetches for the others.
    """
    fetched, loop = (any(one.op.startswith("UTMALDG") for one in part) for part in (code, main_loop(code)))
    handed = any(one.op.startswith("USETMAXREG") for one in code)
    return threads - 128 if handed or (fetched and not loop) else threads


def passed(part: list[SassInstruction]) -> int:
    """Instructions that a warp goes past nearly always: where a branch within a loop leaps over nothing but FMUL, as a
    softmax does that rescales its sums only when a maximum has grown.
    """
    count = 0
    for at, one in enumerate(part):
        if one.target is not None and one.target > one.address:
            over = [x for x in part[at + 1 :] if x.address < one.target]
            if over and all(x.op.startswith("FMUL") for x in over):
                count += len(over)
    return count


def main_loop(code: list[SassInstruction]) -> list[SassInstruction]:
    """The loop with most matrix work, of equal ones one that copies ahead, then the shortest, which masks nothing;
    without any, the longest, or all."""

    def weight(part: list[SassInstruction]) -> tuple:
        work = sum(flops(one)[0] for one in part)
        return work, work and any(one.op.startswith(COPIES) for one in part), -len(part) if work else len(part)

    found = loops(code)
    return max(found, key=weight) if found else [one for one in code if one.target != one.address]


def _edges(code: list[SassInstruction]) -> tuple[list[list[int]], list[list[int]]]:
    """Of every instruction, those that may follow it and those that may come before."""
    at = {one.address: i for i, one in enumerate(code)}
    after: list[list[int]] = [[] for _ in code]
    before: list[list[int]] = [[] for _ in code]
    for i, one in enumerate(code):
        follow = [at[one.target]] if one.target in at else []
        ends = one.op.startswith(("EXIT", "RET")) or (one.op.split(".")[0] == "BRA" and one.target in at)
        conditional = one.guard not in ("", "UPT") or (one.op.startswith("BRA") and one.operands.lstrip()[:1] in "!UP")
        if i + 1 < len(code) and (not ends or conditional):
            follow.append(i + 1)
        after[i] = follow
        for j in follow:
            before[j].append(i)
    return after, before


ARRIVAL = re.compile(r"ATOMG?\.E\.ADD.*(GPU|SYS)")
MEMBAR = re.compile(r"MEMBAR\.(SC|ALL)\.(GPU|SYS)")
STRONG = re.compile(r"LDG\.[\w.]*STRONG\.(GPU|SYS)|LDGSTS\.[\w.]*BYPASS")


def broken_arrivals(code: list[SassInstruction]) -> list[tuple[SassInstruction, str]]:
    """Counted arrivals of blocks that do not publish what the block has stored, or after which nothing is read past L1.

    Before an arrival every path to a store has a barrier of the block and a MEMBAR of the GPU, in either order: all
    threads may fence or the one that arrives, which needs no barrier for its own stores. After it comes a barrier, then
    loads that no L1 cache answers.
    """
    after, before = _edges(code)
    starts = {one.target for one in code}
    found = []
    for i, one in enumerate(code):
        if not ARRIVAL.match(one.op):
            continue
        own = i  # from here on the arriving thread is alone, if anybody is
        while own and code[own].address not in starts and not code[own - 1].op.startswith(("BRA", "BSYNC", "BAR.")):
            own -= 1
        seen, todo = set(), [(j, False, False) for j in before[i]]
        while todo:
            state = todo.pop()
            if state in seen:
                continue
            seen.add(state)
            j, fenced, met = state
            op = code[j].op
            if op.startswith("STG") and not (fenced and (met or own <= j < i)):
                missing = "no MEMBAR of the GPU" if not fenced else "no barrier"
                found.append((one, f"{missing} after {code[j]}"))
                break
            if (op.startswith("STG") and met) or ARRIVAL.match(op):
                continue
            fenced, met = fenced or bool(MEMBAR.match(op)), met or op.startswith("BAR.")
            todo += [(k, fenced, met) for k in before[j]]
        if not _reads_past_l1(code, after, i):
            found.append((one, "no barrier and no load past L1 after it"))
    return found


def _reads_past_l1(code: list[SassInstruction], after: list[list[int]], start: int) -> bool:
    seen, todo = set(), [(j, False) for j in after[start]]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        j, met = state
        if met and STRONG.match(code[j].op):
            return True
        met = met or code[j].op.startswith("BAR.")
        todo += [(k, met) for k in after[j]]
    return False
