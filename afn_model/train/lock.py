"""One run at a time in a run folder: RUN/.lock says which process on which host has it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from afn_model.files import write_json

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder, which is made if need be.

    The lock of a process of this host that has ended is taken over, and so is the one that an earlier attempt of the
    same torchrun left on another host.

    Raises:
        ValueError: another process has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, own = folder / LOCK, this_process()
    with _alone(folder):
        held = _read(file)
        if held is not None and not _ended(held, own):
            raise ValueError(
                f"{folder}: in use by process {held.get('pid')} on {held.get('host')} since {held.get('since')}; "
                f"if that has ended, remove {file}"
            )
        try:
            write_json(file, own)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from None
    try:
        yield
    finally:
        if _read(file) == own:
            file.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it, no other process of this host looks at the lock or changes it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError, OSError):  # some network file systems lock no folders
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def this_process() -> dict[str, Any]:
    """What a lock says about its holder."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began": began(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "torchrun": os.environ.get("TORCHELASTIC_RUN_ID", ""),
        "attempt": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
    }


def began(pid: int) -> int | None:
    """When a process of this host was started, in clock ticks since the host was; None where that is not known."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def alive(pid: int) -> bool:
    """Whether a process of this host runs; one that has ended and that nobody has asked about does not."""
    if (fields := _stat(pid)) is not None:
        return fields[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat behind the command's name, from the state on."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return None


def _read(file: Path) -> dict[str, Any] | None:
    """What a lock says; {} where a power cut has left nothing in it, None where there is none."""
    try:
        held = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _ended(held: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether the holder of a lock has surely ended."""
    if not held:
        return True
    if held.get("torchrun") and held["torchrun"] == own["torchrun"] and held.get("attempt", 0) < own["attempt"]:
        return True
    pid = held.get("pid")
    if held.get("host") != own["host"] or not isinstance(pid, int):
        return False
    if not alive(pid):
        return True
    then, now = held.get("began"), began(pid)
    return then is not None and now is not None and then != now  # another process has its number by now
