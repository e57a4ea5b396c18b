"""Runs csrc/cuda on a CPU: a source compiled by the host's compiler with host.h, its blocks as threads."""

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
FLAGS = (
    "-std=c++20",
    "-O2",
    "-DAFN_HOST",
    "-x",
    "c++",
    "-shared",
    "-fPIC",
    "-pthread",
    "-Wall",
    "-Wno-unknown-pragmas",
)
SANITISERS = {"": (), "address": ("-fsanitize=address", "-g"), "thread": ("-fsanitize=thread", "-g", "-Wno-tsan")}


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
    """$AFN_SANITISE (address or thread) builds it with a sanitiser, whose library then has to be preloaded."""
    root = _cuda.sources()
    flags = (*FLAGS, *SANITISERS[os.environ.get("AFN_SANITISE", "")])
    files = [root / "cuda" / f"{source}.cu", HERE / "host.h", *sorted((root / "include" / "afn").glob("*.cuh"))]

    def compile_to(out: Path) -> None:
        command = ["g++", *flags, f"-I{HERE}", f"-I{root / 'include'}", str(files[0]), "-o", str(out)]
        subprocess.run(command, check=True)

    made_of = (_version().encode(), repr(flags).encode(), *(file.read_bytes() for file in files))
    return ctypes.CDLL(str(built(f"host-{source}", made_of, compile_to)))


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
    launch(*grid, shared, parameters, backwards)


@contextmanager
def emulated(*, backwards: bool = False):
    """Within it ``impl="cuda"`` runs on CPU tensors."""
    before = _cuda.emulator
    _cuda.emulator = lambda *args: run(*args, backwards=backwards)
    try:
        yield
    finally:
        _cuda.emulator = before
