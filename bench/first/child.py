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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

DEVICE = os.environ.get("FIRST_DEVICE", "cuda")
COMPILE = os.environ.get("FIRST_COMPILE") == "1"
FOLDER = Path(os.environ.get("FIRST_FOLDER", "runs/first"))
LIMIT = float(os.environ.get("FIRST_LIMIT", "600"))  # seconds of the step
END = float(os.environ.get("FIRST_END", time.monotonic() + LIMIT))  # on the machine's monotonic clock
AS_THEY_ARE = ("engine", "serving")  # on a CPU by its own kernels: a whole engine is too much for an interpreter
PATIENCE = 0.5  # of the limit: after it a step is timed even if another one still prepares
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
    "engine": "engine",
    "serving": "serving",
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


def left(seconds: float = 0.0) -> float:
    """Seconds that this step still has, without those at its end."""
    return max(0.0, END - time.monotonic() - seconds)


def output(command: Sequence[str], limit: float, folder: Path) -> tuple[str, str, int | None]:
    """What a tool prints on stdout and stderr, and its exit code, or None if it was ended.

    Files and no pipes: the program that an ended tool leaves behind would keep a pipe open. It ends with its step.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return texts[0], texts[1], code


def told() -> list[dict]:
    """The lines of this run until now; one that is being written is left out."""
    file, found = FOLDER / "first.jsonl", []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def verdicts(lines: list[dict]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(op, implementation) that part A found right, and those that it found wrong."""
    judged = [x for x in lines if x.get("kind") in ("verify", "repeats", "assembler") and x.get("impl")]
    wrong = {(x["op"], x["impl"]) for x in judged if x["status"] == "failed"}
    return {(x["op"], x["impl"]) for x in judged if x["kind"] == "verify" and x["status"] == "ok"} - wrong, wrong


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """Compilation and first calls: others may prepare at the same time, and nobody is timed."""
    path = os.environ.get("FIRST_LOCK")
    with contextlib.nullcontext() if not path else open(path, "a", encoding="utf-8") as file:
        if file:
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The GPU for one process, once nobody prepares; a process that dies gives it back.

    Processes that are ready stand in line. The first waits for those that prepare until half of its limit is over: one
    that hangs takes no times from the others, and a line says that they were taken beside it.
    """
    path = os.environ.get("FIRST_LOCK")
    if not path:
        yield
        return
    with open(f"{path}.line", "a", encoding="utf-8") as line, open(path, "a", encoding="utf-8") as file:
        fcntl.flock(line, fcntl.LOCK_EX)
        while not _free(file):
            if left() < (1 - PATIENCE) * LIMIT:
                say("alone", status="skipped", why="timed while another step still prepared")
                break
            time.sleep(0.02)
        yield


def _free(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
    with contextlib.nullcontext() if name in AS_THEY_ARE else emulated():
        return getattr(module, name)(*words) or 0


if __name__ == "__main__":
    sys.exit(main())
