"""Runs csrc/cuda on a CPU: a source compiled by the host's compiler with host.h, and every access checked."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

from afn_kernels import _cuda, _tensor_map
from tests.built import built
from tests.cuda import tensor_map

HERE = Path(__file__).parent
# Each library has a machine of its own, so nothing of it is one for the whole process.
FLAGS = ("-std=c++20", "-fPIC", "-fno-gnu-unique", "-DAFN_HOST", "-Wall", f"-I{HERE}")
# The hooks of -fsanitize=thread tell run.cpp of every access; a library of the sanitiser is not linked.
KERNEL = ("-O1", "-fno-tree-sra", "-g1", "-fno-exceptions", "-Wno-unknown-pragmas", "-Wno-tsan", "-x", "c++")
MACHINE = ("-O2", "-ftls-model=initial-exec")
PARTS = ("run", "barriers", "stores", "products")  # of the machine
SANITISERS = {
    "": ("-fsanitize=thread",),
    "address": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DAFN_UNCHECKED"),
}

# In the assembler's remarks: products that wait for one another, because something comes between them.
SERIALISED = r"C75\d\d|wgmma\.mma_async instructions are serialized"


class MemoryFault(AssertionError):
    """What the host's checker says of a launch."""


def compiler() -> str | None:
    """The host's compiler, where there is one."""
    return shutil.which("g++")


def library(source: str, csrc: Path | None = None) -> ctypes.CDLL:
    """The source as a library, compiled once, whichever thread asks first."""
    with _LOCK:
        return _library(source, csrc or _cuda.sources())


_LOCK = threading.Lock()


@lru_cache
def _library(source: str, csrc: Path) -> ctypes.CDLL:
    """$AFN_SANITISE=address builds it with that sanitiser instead of the checks, whose library has to be preloaded."""
    return ctypes.CDLL(str(build(source, csrc, os.environ.get("AFN_SANITISE", ""))))


def build(name: str, csrc: Path, sanitiser: str = "") -> Path:
    """The kernels of cuda/<name>.cu as a library for the host."""
    source, include = csrc / "cuda" / f"{name}.cu", csrc / "include"
    sanitise = SANITISERS[sanitiser]
    headers = sorted((include / "afn").glob("*.cuh"))
    ours, plain = sorted(HERE.glob("*.h")), _cuda.sources() / "include"  # the machine needs no other sources' headers

    def compiled(what: str, flags: tuple[str, ...], include: Path, files: list[Path]) -> Path:
        def compile_to(out: Path) -> None:
            run_compiler(*flags, f"-I{include}", "-c", str(files[0]), "-o", str(out))

        return built(what, _made_of(flags, files), compile_to)

    flags = (*FLAGS, *MACHINE, *(sanitise if sanitiser else ()))
    needs = [*ours, *(plain / "afn" / header for header in ("device.cuh", "hopper.cuh"))]
    objects = [compiled(f"host-{part}{sanitiser}", flags, plain, [HERE / f"{part}.cpp", *needs]) for part in PARTS]
    flags = (*FLAGS, *KERNEL, *sanitise)
    kernels = [source, *(HERE / header for header in ("host.h", "hopper.h")), *headers]
    objects.append(compiled(f"host-{name}{sanitiser}.o", flags, include, kernels))

    def link_to(out: Path) -> None:
        flags = ("-shared", "-Wl,-Bsymbolic", *(sanitise if sanitiser else ()))
        run_compiler(*flags, "-x", "none", *map(str, objects), "-o", str(out), "-ldl")

    return built(f"host-{name}{sanitiser}", [str(x).encode() for x in objects], link_to)


def _made_of(flags: tuple[str, ...], files: list[Path]) -> list[bytes]:
    return [_version().encode(), repr(flags).encode(), *(file.read_bytes() for file in files)]


@lru_cache
def _version() -> str:
    return run_compiler("--version")


def sanitised(script: str, *arguments: str) -> tuple[subprocess.CompletedProcess | None, str]:
    """Runs Python with the kernels under the sanitisers of addresses and undefined behaviour, or says why it cannot."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [run_compiler(f"-print-file-name={name}").strip() for name in names]
    if not all(Path(file).is_absolute() for file in found):
        return None, "no libraries of the sanitisers"
    root = HERE.parents[1]
    env = {**os.environ, "AFN_SANITISE": "address", "LD_PRELOAD": " ".join(found), "OMP_NUM_THREADS": "1"}
    env |= {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    if "unexpected memory mapping" in done.stderr or "Shadow memory range" in done.stderr:
        return None, "this system lays out memory as the address sanitiser cannot have it (vm.mmap_rnd_bits)"
    return done, ""


def stub_driver(folder: Path) -> dict[str, str]:
    """The environment of a process that finds libcuda.c instead of a GPU's driver, which is built into the folder."""
    stub = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(HERE / "libcuda.c")]
    subprocess.run([*stub, "-o", str(folder / "libcuda.so.1"), "-ldl"], check=True)
    here = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **here}


def run_compiler(*arguments: str) -> str:
    """What it says; a preloaded sanitiser would watch it too, at twice the time."""
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(["g++", *arguments], stdout=subprocess.PIPE, text=True, check=True, env=plain).stdout


def run(
    kernel: _cuda.Kernel,
    grid: tuple[int, int],
    shared: int,
    parameters: bytes,
    *,
    backwards: bool = False,
    schedule: int = 0,
    ordered_adds: bool = False,
    short_sums: bool = False,
    csrc: Path | None = None,
) -> None:
    """What ``_cuda.emulator`` is set to.

    Args:
        backwards: runs the last block first.
        schedule: a seed of the order in which threads take turns and bytes come; without it threads wait in line, and
            bytes come when no thread can go on.
        ordered_adds: blocks that add to the same sum asynchronously have to do so in a known order.
        short_sums: products of e4m3 keep 14 bits of their sums, as Hopper is known to; else all of float32.
        csrc: has other sources.
    """
    found = library(kernel.source, csrc)
    found.afn_schedule(schedule)
    found.afn_order_adds(ordered_adds)
    found.afn_short_sums(short_sums)
    size, threads = getattr(found, f"afn_size_{kernel.name}"), getattr(found, f"afn_threads_{kernel.name}")
    size.restype = ctypes.c_uint64
    assert size() == len(parameters), f"{kernel.name} takes {size()} bytes of parameters, not {len(parameters)}"
    assert threads() == kernel.threads, f"{kernel.name} has blocks of {threads()}, not {kernel.threads}"
    launch = getattr(found, f"afn_host_{kernel.name}")
    launch.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int)
    launch.restype = ctypes.c_char_p
    room = ctypes.create_string_buffer(len(parameters) + 64)  # as on a GPU, a tensor map is where 64 divides
    aligned = ctypes.addressof(room) + -ctypes.addressof(room) % 64
    ctypes.memmove(aligned, parameters, len(parameters))
    if wrong := launch(*grid, shared, aligned, backwards):
        raise MemoryFault(f"{kernel.name}: {wrong.decode()}")


@contextmanager
def emulated(**options):
    """Within it ``impl="cuda"`` runs on CPU tensors; options as of ``run``."""
    before = _cuda.emulator, _tensor_map.emulator
    _cuda.emulator = partial(run, **options)
    _tensor_map.emulator = tensor_map.encode
    try:
        yield
    finally:
        _cuda.emulator, _tensor_map.emulator = before
