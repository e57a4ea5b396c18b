"""PTX as a list of instructions with its labels, parameters and loops."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

STATEMENT = re.compile(r"(?:@(!?)(%?\w+)\s+)?([a-z_][\w.:]*)\s*(.*)", re.S)
LABEL = re.compile(r"^([$%\w]+):")
NO_RESULT = ("st.", "bar", "wgmma.fence", "wgmma.commit", "wgmma.wait", "cp.", "fence", "membar", "red.", "stmatrix")
NO_RESULT += ("mbarrier.init", "mbarrier.inval", "prefetch", "bra", "ret", "exit", "trap", "griddepcontrol")
REGISTER = re.compile(r"%\w+(?:\.\w)?")


@dataclass(frozen=True)
class PtxInstruction:
    """One instruction; ``guard`` is the predicate it depends on, ``negated`` with a "!"."""

    op: str
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False

    @cached_property
    def written(self) -> frozenset[str]:
        """Registers that it writes: its first operand's, unless that is an address."""
        if not self.operands or self.operands[0].startswith("[") or self.op.startswith(NO_RESULT):
            return frozenset()
        return frozenset(registers(self.operands[0]))

    @cached_property
    def read(self) -> frozenset[str]:
        """Registers that it reads; an accumulator counts as written."""
        rest = self.operands[1:] if self.written else self.operands
        return frozenset(name for operand in rest for name in registers(operand))

    @cached_property
    def text(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"{guard}{self.op} {', '.join(self.operands)}"[:120]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class PtxKernel:
    """The entry of a PTX text. A label within braces has their number behind its name: others have their own."""

    name: str
    code: list[PtxInstruction]
    labels: dict[str, int]
    parameters: list[str] = field(default_factory=list)

    def target(self, at: int) -> int:
        """Where the branch at a place leads."""
        return self.labels[self.code[at].operands[0]]

    def follow(self, at: int) -> int:
        """The place past branches that are always taken."""
        for _ in range(8):
            if at >= len(self.code) or not self.code[at].op.startswith("bra") or self.code[at].guard:
                break
            at = self.target(at)
        return at

    @cached_property
    def spans(self) -> list[range]:
        """All loops: from where a branch leads back to, to the branch; none that only waits for a barrier."""
        found = {}
        for at, one in enumerate(self.code):
            if one.op.startswith("bra") and self.target(at) <= at:
                found[self.target(at)] = at
        spans = [range(start, end + 1) for start, end in found.items()]
        return [x for x in spans if len(x) > 2]

    @cached_property
    def loops(self) -> list[range]:
        """The innermost loops."""
        spans = self.spans
        return [x for x in spans if not any(y != x and x.start <= y.start and y.stop <= x.stop for y in spans)]

    @cached_property
    def blocks(self) -> dict[int, tuple[int, list[int]]]:
        """Runs without a branch in between: where each begins, to its end and the beginnings that may follow."""
        branches = [at for at, one in enumerate(self.code) if one.op.startswith(("bra", "ret", "exit", "trap"))]
        starts = {0, *(at + 1 for at in branches), *(self.target(at) for at in branches if self.code[at].operands)}
        order = sorted(x for x in starts if x < len(self.code))
        found = {}
        for start, end in zip(order, [*order[1:], len(self.code)], strict=True):
            last = self.code[end - 1]
            after = [self.target(end - 1)] if last.op.startswith("bra") else []
            if end < len(self.code) and (last.guard or not last.op.startswith(("bra", "ret", "exit", "trap"))):
                after.append(end)
            found[start] = (end, after)
        return found


def parse(text: str) -> PtxKernel:
    """The first entry of a text.

    Raises:
        ValueError: it has none.
    """
    found = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*)", text, re.S)
    if not found:
        raise ValueError("no .entry in this PTX")
    name, head, body = found.groups()
    body = re.sub(r"//[^\n]*|/\*.*?\*/", "", body.partition("{")[2], flags=re.S)
    code: list[PtxInstruction] = []
    inside: list[tuple[int, ...]] = []  # of every instruction, the braces around it
    labels: dict[str, int] = {}
    around, opened = (0,), 0
    for statement in body.split(";"):
        lines = [
            line for line in statement.splitlines() if not re.match(r"\s*\.(loc|file|pragma|section|b\d+)\b", line)
        ]
        rest = "\n".join(lines).strip()
        while True:
            braces = re.match(r"[{}\s]*", rest)[0]
            for brace in re.findall(r"[{}]", braces):
                opened += brace == "{"
                around = (*around, opened) if brace == "{" else around[:-1]
            rest = rest[len(braces) :]
            label = LABEL.match(rest)
            if not label:
                break
            labels[scoped(label[1], around[-1])] = len(code)
            rest = rest[label.end() :]
        if not rest or rest.startswith("."):
            continue
        guard = STATEMENT.match(rest)
        if guard:
            negated, predicate, op, operands = guard.groups()
            code.append(PtxInstruction(op, tuple(split(operands)), predicate or "", negated == "!"))
            inside.append(around)
    for at, one in enumerate(code):
        if one.op.startswith("bra"):
            names = (scoped(one.operands[0], brace) for brace in reversed(inside[at]))
            code[at] = replace(one, operands=(next(x for x in names if x in labels),))
    return PtxKernel(name, code, labels, re.findall(r"(\w+_param_\d+)", head))


def scoped(label: str, brace: int) -> str:
    """A label's name, with the number of the braces that it stands in."""
    return f"{label}#{brace}" if brace else label


def split(operands: str) -> list[str]:
    """Operands at their commas, those in braces and brackets kept whole."""
    found, depth, start = [], 0, 0
    for at, letter in enumerate(operands):
        if letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
        elif letter == "," and not depth:
            found.append(operands[start:at].strip())
            start = at + 1
    last = operands[start:].strip()
    return [*found, last] if last else found


@lru_cache(maxsize=100_000)
def registers(operand: str) -> tuple[str, ...]:
    return tuple(REGISTER.findall(operand))
