"""What a compiled kernel needs of a multiprocessor, read back from its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from afn_kernels import _cuda
from bench.sm90 import bundle, sass

REGISTERS, THREADS, SHARED, BLOCKS = 65536, 2048, 227 * 1024, 32  # of one multiprocessor of an H100
PROCESSORS = 132


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


def binary(compiled) -> Binary:
    """Reads a compiled kernel's machine code back with the tools that Triton brings."""
    use = dumped(compiled.asm["cubin"], "--dump-resource-usage")
    return read(use, listed(compiled.asm["cubin"]), 32 * compiled.metadata.num_warps, compiled.metadata.shared)


def listing(compiled) -> list[sass.SassInstruction]:
    return sass.parse(listed(compiled.asm["cubin"]))


def cuda_binary(kernel: _cuda.Kernel, shared: int) -> tuple[Binary, list[sass.SassInstruction]]:
    """The same of a kernel of csrc/cuda, compiled by NVRTC."""
    cubin = compiled_cuda(kernel.source)
    (use,) = re.findall(rf"Function {kernel.name}:\s*\n(.*)", dumped(cubin, "--dump-resource-usage"))
    code = listed(cubin).partition(f"Function : {kernel.name}\n")[2].partition("Function : ")[0]
    return read(use, code, kernel.threads, shared), sass.parse(code)


_LISTINGS: dict[bytes, str] = {}


def list_at_once(cubins: Iterable[bytes]) -> None:
    """Disassembles in one go what will be asked for: a quarter of a second for all instead of for each."""
    groups: dict[tuple, list[bytes]] = {}
    for cubin in dict.fromkeys(cubins):
        groups.setdefault(bundle.architecture(cubin), []).append(cubin)
    for group in groups.values():
        found = bundle.apart(dumped(bundle.bundled(group), "-sass"))
        _LISTINGS.update({cubin: found[i] for i, cubin in enumerate(group)})


def listed(cubin: bytes) -> str:
    return _LISTINGS.get(cubin) or dumped(cubin, "-sass")


@lru_cache
def compiled_cuda(source: str) -> bytes:
    return _cuda.compiled(source, _cuda.HOPPER)


@lru_cache(maxsize=64)
def dumped(cubin: bytes, option: str) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(Path(knobs.nvidia.cuobjdump.path)), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(use: str, code: str, threads: int, shared: int) -> Binary:
    registers, stack = (int(re.search(rf"{key}:(\d+)", use)[1]) for key in ("REG", "STACK"))
    blocks = min(REGISTERS // (-(-registers // 8) * 8 * threads), THREADS // threads, BLOCKS)
    if shared:
        blocks = min(blocks, SHARED // shared)
    found = Counter(re.findall(r"\b(?:STL|LDL|[HQ]GMMA|HMMA)\b", code))
    spills = found["STL"] + found["LDL"]
    return Binary(
        registers, max(spills, stack), shared, threads, found["HGMMA"] + found["QGMMA"], found["HMMA"], blocks
    )
