"""Files that are complete or not there, JSON, and fingerprints of what a file holds.

``afn_kernels`` and ``afn_distributed`` cannot import this package: the binary cache of the one and the plan digest of
the other have their own few lines.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

_ATTEMPTS = 10  # where several processes give one name to folders
PARTIAL = ".partial-"  # folders in which several files are written before they get their names together
_TEMPORARY = re.compile(rf"{re.escape(PARTIAL)}.+|\.[0-9a-f]{{8}}-.+")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes ``path`` when the block ends and disappears when it raises.

    It lies in the same folder, with the same suffix, and its bytes are on the disk before it gets its name: a reader,
    or a run killed at any moment, finds the old file or the new one. A link stays and what it leads to is replaced; the
    new file has the permissions of the old one, or those that the umask gives.

    Raises:
        ValueError: something other than a file has this name.
    """
    path = Path(path)
    target = path.resolve() if path.is_symlink() else path
    if target.exists() and not target.is_file():
        raise ValueError(f"{path}: is there and not a regular file")
    temporary = target.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        else:
            follow_umask(temporary)
        os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what writers that were killed have left in a folder and below it; nobody may be writing there."""
    for path in [path for path in folder.rglob(".*") if _TEMPORARY.fullmatch(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def follow_umask(file: Path) -> None:
    """Gives a file the permissions of a new one, whatever the library that wrote it gave: safetensors' are 0600."""
    # A new file shows the umask; os.umask would change it for a moment, under every thread.
    probe = file.with_name(f".{secrets.token_hex(4)}-mode")
    probe.touch()
    try:
        file.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically; ValueError where the text is not Unicode."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: {error}") from None
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: str | Path, rows: Iterable[Any]) -> None:
    """Writes a JSON Lines file, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: Any) -> None:
    """Adds a line to a JSON Lines file that several processes may write to: one write for each line, so that none tears
    another's, and a line that was torn is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
        torn = end and file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")


def appended_rows(path: Path) -> Iterator[Any]:
    """Rows of a file that ``append_row`` writes; none where there is no file, and torn lines are left out."""
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    if line.endswith(b"\n"):
                        yield json.loads(line)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file when it is not one."""
    if not path.is_file():
        raise ValueError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value


def model_folder(folder: str | Path) -> Path:
    """A folder that a model is to be read from.

    Raises:
        ValueError: no such folder, or one that holds an adapter or other folders with models, which are named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(folder)) and not folder.parent.exists()
        hint = f"; if it is a name of the Hugging Face hub: hf download {folder} --local-dir DIR"
        raise ValueError(f"{folder}: no such folder{hint if hub else ''}")
    home = folder / "llm"
    if any((place / name).exists() for place in (folder, home) for name in ("config.json", "model.safetensors")):
        return folder
    if (folder / "adapter_config.json").exists():
        merged = folder.parent / "model"
        if (merged / "config.json").exists():
            raise ValueError(f"{folder}: a LoRA adapter, not a model; the model with it is {merged}")
        raise ValueError(f"{folder}: a LoRA adapter, not a model; --adapter {folder} puts it on its base, --model")
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return folder
    models = sorted(str(file.parent) for depth in ("*", "*/*") for file in folder.glob(f"{depth}/config.json"))
    if models:
        more = f" and {len(models) - 3} more" if len(models) > 3 else ""
        raise ValueError(f"{folder}: not a model, but it holds {', '.join(models[:3])}{more}")
    return folder


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return fingerprint_of(iter(lambda: file.read(1 << 20), b""))


@cache
def fingerprint_as_of(path: Path, size: int, written: int) -> str:
    """The fingerprint of a file that has not changed since: every stage of a run opens the same corpora."""
    return fingerprint(path)


def fingerprint_of(parts: Iterable[str | bytes | memoryview]) -> str:
    """SHA-256 of parts one after another, text as UTF-8, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def put_folder(folder: Path, place: Path) -> None:
    """Renames a folder, and removes what was called so; others may do the same at the same time."""
    for attempt in range(_ATTEMPTS):
        former = place.with_name(f".former-{secrets.token_hex(4)}")
        try:
            if place.is_dir() and not place.is_symlink():
                with suppress(FileNotFoundError):
                    place.rename(former)
            folder.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt + 1 == _ATTEMPTS:
                raise
        finally:
            shutil.rmtree(former, ignore_errors=True)
