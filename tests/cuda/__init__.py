"""Runs csrc/cuda on a CPU: a source compiled by the host's compiler with host.h, and every access checked."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from afn_kernels import _cuda
from tests.built import built

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-fPIC", "-DAFN_HOST", "-Wall", f"-I{HERE}")
# The hooks of -fsanitize=thread tell run.cpp of every access; a library of the sanitiser is not linked.
KERNEL = ("-O1", "-g1", "-fno-exceptions", "-Wno-unknown-pragmas", "-Wno-tsan", "-x", "c++")
MACHINE = ("-O2", "-ftls-model=initial-exec")
SANITISERS = {
    "": ("-fsanitize=thread",),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DAFN_UNCHECKED"),
}


class MemoryFault(AssertionError):
    """What the host's checker says of a launch."""


def compiler() -> str | None:
    """The host's compiler, where there is one."""
    return shutil.which("g++")


def library(source: str) -> ctypes.CDLL:
    """The source as a library, compiled once, whichever thread asks first."""
    with _LOCK:
        return _library(source)


_LOCK = threading.Lock()


@lru_cache
def _library(source: str) -> ctypes.CDLL:
    """$AFN_SANITISE=address builds it with that sanitiser instead of the checks, whose library has to be preloaded."""
    return ctypes.CDLL(str(build(_cuda.sources() / "cuda" / f"{source}.cu", os.environ.get("AFN_SANITISE", ""))))


def build(source: Path, sanitiser: str = "", include: Path | None = None) -> Path:
    """The kernels of a source as a library for the host."""
    include = include or _cuda.sources() / "include"
    sanitise = SANITISERS[sanitiser]
    machine = [HERE / name for name in ("run.cpp", "machine.h", "check.h", "host.h")]
    headers = sorted((include / "afn").glob("*.cuh"))

    def compiled(name: str, flags: tuple[str, ...], files: list[Path]) -> Path:
        def compile_to(out: Path) -> None:
            subprocess.run(["g++", *flags, "-c", str(files[0]), "-o", str(out)], check=True)

        return built(name, _made_of(flags, files), compile_to)

    flags = (*FLAGS, *MACHINE, *(sanitise if sanitiser else ()))
    objects = [compiled(f"host-machine{sanitiser}", flags, machine)]
    flags = (*FLAGS, *KERNEL, *sanitise, f"-I{include}")
    objects.append(compiled(f"host-{source.stem}{sanitiser}.o", flags, [source, HERE / "host.h", *headers]))

    def link_to(out: Path) -> None:
        flags = ("-shared", "-Wl,-Bsymbolic", *(sanitise if sanitiser else ()))
        subprocess.run(["g++", *flags, "-x", "none", *map(str, objects), "-o", str(out), "-ldl"], check=True)

    return built(f"host-{source.stem}{sanitiser}", [str(x).encode() for x in objects], link_to)


def _made_of(flags: tuple[str, ...], files: list[Path]) -> list[bytes]:
    return [_version().encode(), repr(flags).encode(), *(file.read_bytes() for file in files)]


@lru_cache
def _version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


def run(
    kernel: _cuda.Kernel, grid: tuple[int, int], shared: int, parameters: bytes, *, backwards: bool = False
) -> None:
    """What ``_cuda.emulator`` is set to; ``backwards`` runs the last block first."""
    found = library(kernel.source)
    size, threads = getattr(found, f"afn_size_{kernel.name}"), getattr(found, f"afn_threads_{kernel.name}")
    size.restype = ctypes.c_uint64
    assert size() == len(parameters), f"{kernel.name} takes {size()} bytes of parameters, not {len(parameters)}"
    assert threads() == kernel.threads, f"{kernel.name} has blocks of {threads()}, not {kernel.threads}"
    launch = getattr(found, f"afn_host_{kernel.name}")
    launch.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_int)
    launch.restype = ctypes.c_char_p
    if wrong := launch(*grid, shared, parameters, backwards):
        raise MemoryFault(f"{kernel.name}: {wrong.decode()}")


@contextmanager
def emulated(*, backwards: bool = False):
    """Within it ``impl="cuda"`` runs on CPU tensors."""
    before = _cuda.emulator
    _cuda.emulator = lambda *args: run(*args, backwards=backwards)
    try:
        yield
    finally:
        _cuda.emulator = before
