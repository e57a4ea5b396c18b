"""Decoded recordings in a folder, which several servers may share: replicas, or one that is started again."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from afn_model.serve.recording import Recording

_ID = re.compile(r"[0-9a-f]{64}")
NOBODY = "all"  # the folder of clients without a key


class UploadFolder:
    """Keeps recordings as ``OWNER/ID.npy``, samples that are mapped when they are used, and ``OWNER/ID.json``.

    A recording is there once its json is. Where there are more than ``capacity`` bytes, the client that has the most
    loses the one it has used least recently, as of ``Uploads``.

    Args:
        path: made if it is not there; nobody else may read it.
        capacity: bytes of samples.
    """

    def __init__(self, path: str | Path, capacity: int):
        self.path, self.capacity = Path(path), capacity
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def save(self, owner: str, recording: Recording, more: dict[str, Any]) -> None:
        """Writes a recording; what is there already stays.

        Args:
            owner: a client.
            recording: decoded.
            more: what else is to be known of it, as JSON.

        Raises:
            OSError: the disk is full, or may not be written to.
        """
        there = self._file(owner, recording.id)
        if there is None or there.with_suffix(".json").exists():
            return
        there.parent.mkdir(mode=0o700, exist_ok=True)
        self._make_room(there.parent, recording.pcm.nbytes)
        said = more | {"digests": [one.hex() for one in recording.digests], "problems": recording.problems}
        with _replacing(there) as file:
            np.save(file, recording.pcm.numpy())
        with _replacing(there.with_suffix(".json")) as file:
            file.write(json.dumps(said).encode())

    def load(self, owner: str, id: str) -> tuple[Recording, dict[str, Any]] | None:
        """A recording and what was saved with it; None where there is none, or it cannot be read."""
        there = self._file(owner, id)
        if there is None:
            return None
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(there.with_suffix(".json").read_bytes())
            samples = np.load(there, mmap_mode="c", allow_pickle=False)
            digests = tuple(bytes.fromhex(one) for one in said.pop("digests"))
            recording = Recording(id, torch.from_numpy(samples), digests, tuple(said.pop("problems")))
            os.utime(there)
            return recording, said
        return None

    def ids(self, owner: str) -> list[str]:
        """What a client has, what it used last first."""
        times = {file.stem: _used(file.with_suffix(".npy")) for file in (self.path / (owner or NOBODY)).glob("*.json")}
        return sorted(times, key=lambda id: -times[id])

    def remove(self, owner: str, id: str) -> None:
        there = self._file(owner, id)
        if there is not None:
            for file in (there.with_suffix(".json"), there):
                file.unlink(missing_ok=True)

    def _file(self, owner: str, id: str) -> Path | None:
        """Where the samples are; None where that is no id."""
        return self.path / (owner or NOBODY) / f"{id}.npy" if _ID.fullmatch(id) else None

    def _make_room(self, owner: Path, size: int) -> None:
        """For so many bytes more of a client's, by its folder."""
        owned: dict[Path, list[tuple[float, int, Path]]] = {owner: []}
        for file in self.path.glob("*/*.npy"):
            owned.setdefault(file.parent, []).append((_used(file), _size(file), file))
        sizes = {client: sum(of for _, of, _ in files) for client, files in owned.items()}
        sizes[owner] += size
        for files in owned.values():
            files.sort(key=lambda one: -one[0])
        while sum(sizes.values()) > self.capacity:
            most = max((client for client in sizes if owned[client]), key=lambda one: sizes[one], default=None)
            if most is None:
                return
            _, of, file = owned[most].pop()
            sizes[most] -= of
            for one in (file.with_suffix(".json"), file):
                one.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes another one's place when all of it has been written."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            yield file
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _used(file: Path) -> float:
    with suppress(OSError):
        return file.stat().st_mtime
    return 0.0


def _size(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size
    return 0
