"""One step of the plan in a process of its own: python -m bench.first.child WORDS. Its lines of JSON are its results.

FIRST_DEVICE is cuda or cpu; on a CPU kernels run in Triton's interpreter and compiled for the host, at toy shapes.
FIRST_COMPILE=1 compiles what the step would launch at real shapes for sm_90a instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

DEVICE = os.environ.get("FIRST_DEVICE", "cuda")
COMPILE = os.environ.get("FIRST_COMPILE") == "1"
FOLDER = Path(os.environ.get("FIRST_FOLDER", "runs/first"))
STEPS = {
    "setting": "checks",
    "ceilings": "checks",
    "verify": "checks",
    "noise": "checks",
    "tests": "checks",
    "repeats": "repeats",
    "assembler": "repeats",
    "launches": "launches",
    "sanitised": "launches",
    "goal": "figures",
    "peers": "figures",
    "step": "decoding",
    "sweep": "sweeps",
    "once": "profile",
    "profile": "profile",
    "compiled": "everything",
}


def say(kind: str, **record: object) -> None:
    """A line of the step's results."""
    print(json.dumps({"kind": kind, **record}), flush=True)


def program(name: str) -> str:
    """Where one of CUDA's tools is; empty when it is not here."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin") or ""


def told() -> list[dict]:
    """The lines of this run until now."""
    file = FOLDER / "first.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def verdicts(lines: list[dict]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(op, implementation) that part A found right, and those that it found wrong."""
    judged = [x for x in lines if x.get("kind") in ("verify", "repeats", "assembler") and x.get("impl")]
    wrong = {(x["op"], x["impl"]) for x in judged if x["status"] == "failed"}
    return {(x["op"], x["impl"]) for x in judged if x["kind"] == "verify" and x["status"] == "ok"} - wrong, wrong


@contextlib.contextmanager
def _held(how: int) -> Iterator[None]:
    path = os.environ.get("FIRST_LOCK")
    if not path:
        yield
        return
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, how)
        yield


def preparing() -> contextlib.AbstractContextManager[None]:
    """Compilation and first calls: others may prepare at the same time, and nobody is timed."""
    return _held(fcntl.LOCK_SH)


def alone() -> contextlib.AbstractContextManager[None]:
    """The GPU for one process, once nobody prepares; a process that dies gives it back."""
    return _held(fcntl.LOCK_EX)


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """On a CPU, where kernels are no machine code: Triton's interpreter, and csrc/cuda compiled for the host."""
    if DEVICE == "cuda" or COMPILE:
        yield
        return
    os.environ["TRITON_INTERPRET"] = "1"
    from tests import cuda
    from tests.kernels.interpreter import install

    install()
    with cuda.emulated() if cuda.compiler() else contextlib.nullcontext():
        yield


def planted(what: str) -> None:
    """Faults on purpose, for the rehearsal and the tests."""
    say("planted", what=what)
    if what == "hang":
        time.sleep(3600)
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "error":
        raise RuntimeError("planted")


def main() -> int:
    name, *words = sys.argv[1:]
    if name == "planted":
        planted(*words)
        return 0
    module = importlib.import_module(f"bench.first.{STEPS[name]}")
    with emulated():
        return getattr(module, name)(*words) or 0


if __name__ == "__main__":
    sys.exit(main())
