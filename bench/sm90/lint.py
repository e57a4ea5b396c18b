"""Rules that a kernel's PTX and SASS keep, each found by reading: none is left to a GPU to break.

``lint`` says what breaks them; ``EXCEPTIONS`` has those that are meant, with the reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from bench.sm90 import ptx, sass
from bench.sm90.hazards import Finding, hazards

SAFE_REGISTER_OPERANDS = (3, 7)  # Triton before it may overwrite a pending wgmma's operand in registers
WIDEST = {("log_mel_kernel", "pcm"): "declared contiguous though every other sample is taken: bytes of one sample"}


@dataclass(frozen=True)
class Allowed:
    """A finding that is meant: by rule, kernel and a part of the workload's name."""

    rule: str
    kernel: str
    workload: str
    reason: str

    def covers(self, rule: str, kernel: str, workload: str) -> bool:
        return rule == self.rule and kernel == self.kernel and self.workload in workload


AHEAD, WAVES = "loads run ahead", "persistent programs fit at once"
MOST_WAVES = 16  # programs a multiprocessor of a grid that is made for the machine and not for the work
EXCEPTIONS: tuple[Allowed, ...] = (
    Allowed(AHEAD, "forward_kernel", "16:8 x 256", "two stages of 16 keys, and 220 registers"),
    Allowed(AHEAD, "dkv_kernel", "16:8 x 256", "two stages of 16 queries, and 255 registers"),
    Allowed(AHEAD, "dkv_kernel", "32:32 x 96", "two stages of 32 queries, and 228 registers"),
)


def register_operands(kernel: ptx.PtxKernel, triton: tuple[int, ...]) -> list[Finding]:
    """No matrix instruction with an operand in registers stays pending in a loop while Triton may overwrite it."""
    if triton >= SAFE_REGISTER_OPERANDS:
        return []
    found = []
    for span in kernel.loops:
        part = [kernel.code[i] for i in span]
        held = [x for x in part if x.op.startswith("wgmma.mma") and x.operands[1].startswith("{")]
        for one in part:
            if held and one.op.startswith("wgmma.wait") and int(one.operands[0]) > 0:
                found.append(Finding("register operands are done", str(one), f"leaves {held[0].op} pending in a loop"))
    return found


def pipelined(kernel: ptx.PtxKernel) -> list[Finding]:
    """A loop that copies ahead does not wait for every copy that it has begun."""
    found = []
    for span in kernel.loops:
        part = [kernel.code[i] for i in span]
        waits = [x for x in part if x.op.startswith("cp.async.wait")]
        if waits and any(x.op.startswith("cp.async.c") for x in part):
            least = min(waits, key=lambda x: int(x.operands[0]) if x.operands else 0)
            if not least.operands or int(least.operands[0]) == 0:
                found.append(Finding(AHEAD, str(least), "waits for every copy begun in the step before"))
    return found


def sources(kernel: ptx.PtxKernel) -> dict[str, set[str]]:
    """Of every register, the parameters that its value may come from, by any path; not through memory."""
    found: dict[str, set[str]] = defaultdict(set)
    steps = [
        x for x in kernel.code if x.operands and not x.op.startswith(("ld.global", "atom", "st.", "shfl", "wgmma"))
    ]
    changed = True
    while changed:
        changed = False
        for one in steps:
            result = ptx.registers(one.operands[0])
            if not result or one.op.startswith(("cp.", "bar", "bra", "red")):
                continue
            come = {x for operand in one.operands[1:] for name in ptx.registers(operand) for x in found.get(name, ())}
            if one.op.startswith("ld.param"):
                come |= set(re.findall(r"\w+_param_\d+", one.operands[1]))
            for name in result:
                if not come <= found[name]:
                    found[name] |= come
                    changed = True
    return found


def width(one: ptx.PtxInstruction) -> int:
    """Bytes of a load or store by one thread."""
    vector = re.search(r"\.v(\d)", one.op)
    return int(vector[1] if vector else 1) * int(re.search(r"(\d+)$", one.op)[1]) // 8


def widest_loads(kernel: ptx.PtxKernel) -> dict[str, int]:
    """The widest global load of a thread through each parameter, in bytes."""
    come, found = sources(kernel), defaultdict(int)
    for one in kernel.code:
        if one.op.startswith("ld.global"):
            for name in {x for register in ptx.registers(one.operands[1]) for x in come.get(register, ())}:
                found[name] = max(found[name], width(one))
    return dict(found)


def vector_widths(kernel: ptx.PtxKernel, names: dict[str, str], sizes: dict[str, int]) -> list[Finding]:
    """Loads through the pointers of ``WIDEST`` take one element, whatever the kernel says of their contiguity."""
    found = []
    for parameter, most in widest_loads(kernel).items():
        name = names.get(parameter, "")
        if (kernel.name, name) in WIDEST and most > sizes[name]:
            why = WIDEST[kernel.name, name]
            found.append(Finding("loads take one element", name, f"{most} bytes at a time, {why}"))
    return found


def last_block(kernel: ptx.PtxKernel) -> list[Finding]:
    """After an arrival that is counted, what other blocks stored is not read from an L1 cache."""
    atomics = [i for i, x in enumerate(kernel.code) if x.op.startswith("atom.global") and ".add." in x.op]
    if not atomics:
        return []
    come = sources(kernel)

    def through(one: ptx.PtxInstruction, operand: int) -> set[str]:
        return {x for register in ptx.registers(one.operands[operand]) for x in come.get(register, ())}

    pointers = {one.operands[1].strip("[] ") for one in kernel.code if one.op.startswith("ld.param.b64")}
    shared = {x for one in kernel.code if one.op.startswith("st.global") for x in through(one, 0)} & pointers
    found = []
    for one in kernel.code[max(atomics) :]:
        weak = one.op.startswith("ld.global") and not re.search(r"\.(cg|cv|volatile|relaxed|acquire)\b", one.op)
        if weak and through(one, 1) & shared:
            found.append(Finding("last block", str(one), "may read from L1 what another block has stored"))
    return found


def of_ptx(text: str, triton: tuple[int, ...], names: dict[str, str], sizes: dict[str, int]) -> list[Finding]:
    """What the rules say of a kernel's PTX.

    Args:
        text: the PTX.
        triton: version of the compiler that made it.
        names: parameters of the PTX to those of the kernel.
        sizes: bytes of an element behind each of the kernel's pointers.
    """
    kernel = ptx.parse(text)
    found = [*register_operands(kernel, triton), *pipelined(kernel), *vector_widths(kernel, names, sizes)]
    found += last_block(kernel)
    return found + (hazards(kernel) if "wgmma" in text or "cp.async" in text else [])


def of_sass(code: list[sass.SassInstruction]) -> list[Finding]:
    """What the rules say of a kernel's machine code."""
    return [Finding("last block", str(one), text) for one, text in sass.broken_arrivals(code)]


def waves(programs: int, resident: int, processors: int) -> list[Finding]:
    """A grid of some programs for every multiprocessor is one that they all have room for, or the last run alone."""
    if programs % processors or programs > MOST_WAVES * processors or programs <= resident:
        return []
    return [Finding(WAVES, f"{programs} programs", f"only {resident} fit on {processors} multiprocessors")]


def judged(workload: str, kernel: str, one: Finding) -> dict[str, str]:
    """A finding as a record, with the reason why it is allowed, or "" where it is not."""
    reasons = [x.reason for x in EXCEPTIONS if x.covers(one.rule, kernel, workload)]
    record = {"workload": workload, "kernel": kernel, "rule": one.rule, "where": one.where, "text": one.text}
    return record | {"reason": reasons[0] if reasons else ""}
