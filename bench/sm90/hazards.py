"""Hazards of asynchronous copies and matrix instructions in one thread's walk through a kernel's PTX.

Matrix instructions read shared memory after they were issued, until a wait retires them; copies write it so; and both
see what ordinary stores wrote only past a fence. A barrier carries each of these to the other threads.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from bench.sm90.ptx import PtxInstruction, PtxKernel, registers
from bench.sm90.trace import Walker, notable

WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.\w+\.(\w+)\.(\w+)")
BYTES = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}
WALKS = range(4, 24)  # at least, and at most where instructions are hard to come to

Range = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """What a rule says of a kernel: its name, the instruction that breaks it, and how."""

    rule: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}: {self.where}"


@dataclass
class Watched:
    """A range of shared memory that something is still happening to; ``ready``: the next barrier ends it.

    ``met``: a barrier came first. Of a store that is all the same: the reader may fence what a barrier told it of.
    """

    range: Range
    where: str
    ready: bool = False
    met: bool = False

    def meets(self, other: Range) -> bool:
        return self.range[0] < other[1] and other[0] < self.range[1]


@dataclass(frozen=True)
class Busy:
    """Registers of a matrix instruction that is still running: those of its result and of its left operand."""

    result: frozenset[str]
    operand: frozenset[str]
    where: str


def tiles(descriptor: int, rows: int, depth: int, size: int, transposed: bool) -> list[Range]:
    """Ranges of shared memory that a matrix descriptor of ``rows`` x ``depth`` elements reads."""
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if not transposed:  # rows in groups of eight; an instruction takes 32 bytes of each, wherever a swizzle puts them
        first = start & ~127
        return [(first, first + rows // 8 * stride)]
    width = (16, 128, 64, 32)[descriptor >> 62 & 3]  # bytes of a row that lie together
    groups = max(1, rows * size // width)
    return [(start + i * leading, start + i * leading + depth // 8 * stride) for i in range(groups)]


def of_copy(one: PtxInstruction) -> int:
    """Bytes that this thread's cp.async or store writes."""
    if one.op.startswith("cp.async.bulk"):
        return 16  # its beginning
    if one.op.startswith("cp.async"):
        return int(one.operands[2], 0)
    if one.op.startswith("stmatrix"):
        return 16
    vector = re.search(r"\.v(\d)", one.op)
    return int(vector[1] if vector else 1) * int(re.search(r"(\d+)$", one.op)[1]) // 8


@dataclass
class SharedMemory:
    """What is going on in shared memory; ``seen`` is told every instruction of a walk and adds to ``found``."""

    found: dict[Finding, None] = field(default_factory=dict)
    reads: list[Watched] = field(default_factory=list)
    groups: deque[list[Watched]] = field(default_factory=lambda: deque([[]]))
    loads: list[Watched] = field(default_factory=list)
    stores: list[Watched] = field(default_factory=list)
    copies: list[Watched] = field(default_factory=list)
    batches: deque[list[Watched]] = field(default_factory=lambda: deque([[]]))
    running: deque[list[Busy]] = field(default_factory=lambda: deque([[]]))

    def seen(self, one: PtxInstruction, walker: Walker) -> None:
        op, where = one.op, str(one)
        if len(self.running) > 1 or self.running[0]:
            self._registers(one, where)
        if not notable(one):
            return
        if op.startswith("wgmma.mma_async"):
            self._multiply(one, walker, where)
        elif op.startswith("wgmma.commit"):
            self.groups.append([])
            self.running.append([])
        elif op.startswith("wgmma.wait"):
            _retire(self.groups, int(one.operands[0]))
            while len(self.running) - 1 > int(one.operands[0]):
                self.running.popleft()
        elif op.startswith(("bar.", "barrier", "mbarrier.try_wait")):
            self._barrier()
        elif op.startswith("fence.proxy"):
            self.stores = [x for x in self.stores if not x.met]
            for store in self.stores:
                store.ready = True
        elif op.startswith("cp.async.commit"):
            self.batches.append([])
        elif op.startswith("cp.async.wait"):
            _retire(self.batches, int(one.operands[0]) if one.operands else 0)
        elif op.startswith("cp.async.bulk") and re.match(r"cp\.async\.bulk\.(tensor\.\dd\.)?global", op):
            source = walker.address(one.operands[1])
            self._reads((source, source + 16) if source is not None else None, where)
        elif op.startswith(("ld.shared", "ldmatrix")):
            self._load(one, walker, where)
        elif op.startswith(("cp.async", "st.", "stmatrix")) and "shared" in op and "bulk.commit" not in op:
            self._write(one, walker, where)

    def _registers(self, one: PtxInstruction, where: str) -> None:
        for group in self.running:
            for busy in group:
                if one.read & busy.result or (one.written & busy.result and not one.op.startswith("wgmma.mma")):
                    self._add("results are there", where, f"uses the result of {busy.where} before a wait")
                if one.written & busy.operand:
                    self._add("operands stay", where, f"overwrites the operand of {busy.where} before a wait")

    def _load(self, one: PtxInstruction, walker: Walker, where: str) -> None:
        """An ordinary load sees a copy after a wait and a barrier; it is done when the next barrier is met."""
        start = walker.address(one.operands[1])
        if start is None:
            return
        part = (start, start + (16 if one.op.startswith("ldmatrix") else of_copy(one)))
        self._arrived(part, where)
        self.loads = [x for x in self.loads if x.range != part]
        self.loads.append(Watched(part, where, ready=True))

    def _multiply(self, one: PtxInstruction, walker: Walker, where: str) -> None:
        rows, depth, a, b = WGMMA.match(one.op).groups()
        _, left, right, *rest = one.operands
        operand = frozenset(registers(left)) if left.startswith("{") else frozenset()
        self.running[-1].append(Busy(one.written, operand, where))
        flags = rest[-2:] if not left.startswith("{") else ["0", rest[-1]]
        pairs = [(right, int(rows), BYTES[b], flags[1])]
        if not left.startswith("{"):
            pairs.append((left, 64, BYTES[a], flags[0]))
        for operand, lines, size, transposed in pairs:
            descriptor = walker.value(operand)
            many = None if descriptor is None else tiles(descriptor, lines, int(depth), size, transposed == "1")
            for part in many or [None]:
                self._reads(part, where)
                if part is not None:
                    self.groups[-1].append(Watched(part, where))
                    self.reads.append(self.groups[-1][-1])

    def _reads(self, part: Range | None, where: str) -> None:
        """What the asynchronous proxy reads must have arrived, and been fenced, and every thread must know."""
        if part is None:
            self._add("addresses are known", where, "the walk cannot tell what it reads")
            return
        for store in self.stores:
            if store.meets(part):
                what = "without a barrier" if store.ready else "without fence.proxy.async"
                self._add("stores are fenced", where, f"reads what {store.where} wrote, {what}")
        self._arrived(part, where)

    def _arrived(self, part: Range, where: str) -> None:
        for copy in self.copies:
            if copy.meets(part):
                what = "without a barrier after the wait" if copy.ready else "before a wait"
                self._add("copies have arrived", where, f"reads what {copy.where} brings, {what}")

    def _write(self, one: PtxInstruction, walker: Walker, where: str) -> None:
        start = walker.address(one.operands[0])
        if start is None:
            self._add("addresses are known", where, "the walk cannot tell where it writes")
            return
        part = (start, start + of_copy(one))
        for read in self.reads + (self.loads if one.op.startswith("cp.async") else []):
            if read.meets(part):
                what = "without a barrier after the wait" if read.ready else "before a wait retires it"
                self._add("buffers are free", where, f"writes what {read.where} reads, {what}")
        if one.op.startswith("cp.async.bulk"):
            return  # its mbarrier is waited for
        if one.op.startswith("cp.async"):
            self.batches[-1].append(Watched(part, where))
            self.copies.append(self.batches[-1][-1])
        else:
            self.stores = [x for x in self.stores if not (part[0] <= x.range[0] and x.range[1] <= part[1])]
            self.stores.append(Watched(part, where))

    def _barrier(self) -> None:
        self.reads = [x for x in self.reads if not x.ready]
        self.loads = []
        self.stores = [x for x in self.stores if not x.ready]
        for store in self.stores:
            store.met = True
        self.copies = [x for x in self.copies if not x.ready]

    def _add(self, rule: str, where: str, text: str) -> None:
        self.found[Finding(rule, where, text)] = None


def _retire(groups: deque[list[Watched]], pending: int) -> None:
    """All groups but the newest ``pending`` that were committed, the last being the one not yet committed."""
    while len(groups) - 1 > pending:
        for one in groups.popleft():
            one.ready = True


def hazards(kernel: PtxKernel, walks: range = WALKS) -> list[Finding]:
    """Hazards in walks that together come to every instruction, and those that none of them came to."""
    found: dict[Finding, None] = {}
    reached: set[int] = set()
    wanted = {at for at, one in enumerate(kernel.code) if one.op.startswith(("wgmma.mma", "cp.async", "st.shared"))}
    for number in range(walks.stop):
        memory = SharedMemory()
        Walker(kernel, memory.seen, reached, number=number).walk()
        found |= memory.found
        if number >= walks.start and wanted <= reached:
            break
    for at in sorted(wanted - reached):
        found[Finding("addresses are known", str(kernel.code[at]), "no walk came to it")] = None
    return list(found)
