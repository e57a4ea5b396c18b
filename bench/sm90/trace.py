"""One thread's walk through a kernel, without data: addresses in shared memory are known, most else is not.

Where buffers lie follows from constants, the thread's number and counters that start at constants. Values that come
from parameters or memory are unknown; a branch on one stays in a loop for some steps, and otherwise goes where there is
something that no walk has come to.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random

from bench.sm90.ptx import PtxInstruction, PtxKernel, registers

STEPS, STEPS_OF_A_LOOP = 60_000, 5
COMPARE = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
SHARED_EVENTS = ("bar.", "barrier", "wgmma.", "cp.async", "fence.proxy", "stmatrix", "mbarrier.try_wait", "ldmatrix")


def notable(one: PtxInstruction) -> bool:
    """Whether an instruction touches shared memory, synchronises or multiplies matrices."""
    return one.op.startswith(SHARED_EVENTS) or ".shared" in one.op


def signed(x: int, width: int) -> int:
    return x - (1 << width) if x >> (width - 1) & 1 else x


@cache
def width_of(op: str) -> tuple[int, bool]:
    """Bits and signedness of an instruction's type, its last part."""
    kind = op.rpartition(".")[2]
    if kind == "pred":
        return 1, False
    number = re.fullmatch(r"([subf])(\d+)", kind)
    return (int(number[2]), number[1] == "s") if number and number[1] != "f" else (0, False)


def _divide(a: int, b: int) -> int | None:
    return None if not b else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _extract(a: int, start: int, count: int, sign: bool) -> int:
    found = a >> (start & 255) & ((1 << (count & 255)) - 1)
    return signed(found, count & 255) if sign and count & 255 else found


def _lop3(a: int, b: int, c: int, table: int, width: int) -> int:
    found = 0
    for at in range(width):
        index = (a >> at & 1) << 2 | (b >> at & 1) << 1 | (c >> at & 1)
        found |= (table >> index & 1) << at
    return found


BINARY: dict[str, Callable] = {
    "add": operator.add, "sub": operator.sub, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "min": min, "max": max, "div": _divide, "rem": lambda a, b: None if not b else a - b * _divide(a, b),
}  # fmt: skip


@cache
def number_of(operand: str) -> int | None:
    """What is written out, and the beginning of shared memory; None of all else."""
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
        return int(operand.rstrip("U"), 0)
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
        return int(operand[2:], 16)
    return 0 if operand == "global_smem" else None


class Walker:
    """Walks one thread through a kernel.

    Args:
        kernel: parsed.
        seen: called with (instruction, walker) before an instruction runs.
        thread: its number in the block.
        reached: places that earlier walks came to; this one adds its own.
        number: of the walk: where there is nothing new either way, each goes its own.
    """

    def __init__(
        self, kernel: PtxKernel, seen: Callable, reached: set[int] | None = None, thread: int = 0, number: int = 0
    ):
        self.kernel, self.seen, self.thread = kernel, seen, thread
        self.values: dict[str, int | None] = {}
        self.visits: Counter[int] = Counter()
        self.random = Random(number)
        self.reached: set[int] = set() if reached is None else reached
        self.new = {at for at, one in enumerate(kernel.code) if notable(one)} - self.reached

    def value(self, operand: str) -> int | None:
        if operand in self.values:
            return self.values[operand]
        if operand.startswith("%"):
            special = {"%tid.x": self.thread, "%laneid": self.thread % 32, "%tid.y": 0, "%tid.z": 0}
            return special.get(operand)
        return number_of(operand)

    def address(self, operand: str) -> int | None:
        """Of "[%r1+16]"."""
        base, _, offset = operand.strip("[] ").partition("+")
        found = self.value(base.strip())
        return None if found is None else found + int(offset or "0", 0)

    def walk(self) -> None:
        at, steps, code = 0, 0, self.kernel.code
        while at < len(code) and steps < STEPS:
            one, steps = code[at], steps + 1
            self.reached.add(at)
            self.new.discard(at)
            go = self._guard(one)
            if one.op.startswith("bra"):
                if go is None:
                    go = self._choose(at)
                at = self.kernel.target(at) if go else at + 1
                continue
            if one.op.startswith(("ret", "exit", "trap")) and go:
                return
            if go is not False:
                self.seen(one, self)
                self._run(one)
            at += 1

    def _choose(self, at: int) -> bool:
        """Which way a branch on an unknown value goes."""
        ways = {True: self.kernel.follow(self.kernel.target(at)), False: self.kernel.follow(at + 1)}
        self.visits[at] += 1
        for span in self.kernel.spans:
            stay = [way for way, place in ways.items() if place in span]
            if at in span and len(stay) == 1:
                return stay[0] if self.visits[at] % STEPS_OF_A_LOOP else not stay[0]
        new = [way for way, place in ways.items() if self._leads_to_new(place)]
        return new[0] if len(new) == 1 else self.random.random() < 0.5

    def _leads_to_new(self, place: int) -> bool:
        blocks, seen = self.kernel.blocks, set()
        todo = [max((x for x in blocks if x <= place), default=0)] if self.new else []
        while todo:
            start = todo.pop()
            if start in seen:
                continue
            seen.add(start)
            end, after = blocks[start]
            if not self.new.isdisjoint(range(start, end)):
                return True
            todo += after
        return False

    def _guard(self, one: PtxInstruction) -> bool | None:
        if not one.guard:
            return True
        found = self.value(one.guard)
        return None if found is None else bool(found) != one.negated

    def _run(self, one: PtxInstruction) -> None:
        if not one.written:
            return
        result, *sources = one.operands
        if one.op.startswith("elect.sync"):  # one lane of a warp: the first
            self.values[registers(result)[-1]] = int(self.thread % 32 == 0)
            return
        if one.op.startswith("mbarrier.try_wait"):
            self.values[result] = 1
            return
        found = None
        if not result.startswith("{") and "|" not in result:
            width, sign = width_of(one.op)
            known = [self.value(x) for x in sources]
            found = self._result(one.op, known, width, sign) if width else None
            if found is not None and not one.op.startswith("cvt"):
                wide = 2 * width if ".wide" in one.op else width
                found = int(found) & ((1 << wide) - 1)
            self.values[result] = found
        else:
            for name in registers(result):
                self.values[name] = None

    def _result(self, op: str, known: list[int | None], width: int, sign: bool) -> int | None:
        name, *parts = op.split(".")
        if name == "selp":
            a, b, choice = known
            return (a if a == b else None) if choice is None else a if choice else b
        if name in ("and", "or") and width == 1 and None in known:
            decided = 0 if name == "and" else 1
            return decided if decided in known else None
        if None in known:
            return None
        if name in ("mov", "cvta") or (name == "ld" and "param" in parts):
            return known[0] if name != "ld" else None
        if name == "mad" and "wide" in parts:
            product = self._result(op.replace("mad", "mul", 1), known[:2], width, sign)
            return None if product is None else product + known[2]
        known = [signed(x & ((1 << width) - 1), width) if sign else x & ((1 << width) - 1) for x in known]
        if name == "setp":
            found = COMPARE[parts[0]](known[0], known[1]) if parts[0] in COMPARE else None
            return found if len(known) == 2 else None
        if name == "cvt":  # to the first type from the last, whose width and sign ``known`` has
            to = re.fullmatch(r"[sub](\d+)", parts[-2])
            return known[0] & ((1 << int(to[1])) - 1) if to else None
        if name in BINARY:
            return BINARY[name](*known) if len(known) == 2 else None
        return self._shifted(name, parts, known, width, sign)

    def _shifted(self, name: str, parts: list[str], known: list[int], width: int, sign: bool) -> int | None:
        if name in ("shl", "shr"):
            count = min(known[1], width)
            return known[0] << count if name == "shl" else known[0] >> count
        if name in ("mul", "mad"):
            product = known[0] * known[1]
            product = product >> width if "hi" in parts else product
            return product + (known[2] if name == "mad" else 0)
        if name in ("not", "neg", "abs"):
            return {"not": lambda x: ~x, "neg": lambda x: -x, "abs": abs}[name](known[0])
        if name == "bfe":
            return _extract(*known, sign)
        if name == "lop3":
            return _lop3(*known[:4], width)
        if name == "shfl" and "idx" in parts:  # the same in every lane, as a warp's number is
            return known[0]
        return None
