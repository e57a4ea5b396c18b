"""Recordings that clients have uploaded, found by their content; each client sees its own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from afn_model.audio.digests import windows_of
from afn_model.audio.frames import window_samples
from afn_model.infer.engine import Engine
from afn_model.infer.listen import AHEAD
from afn_model.infer.request import set_clocks
from afn_model.infer.tokens import PromptTokens, spans_of
from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor
from afn_model.serve.recording import Recording
from afn_model.serve.upload_folder import UploadFolder

EARLY = 4  # recordings that may wait to be computed before there is a question


@dataclass(frozen=True, eq=False)
class Upload:
    """A recording that is kept.

    Args:
        recording: its samples.
        size: bytes of its file.
        created: seconds since 1970.
    """

    recording: Recording
    size: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def shown(self) -> dict[str, Any]:
        """As the API writes it."""
        return {
            "object": "audio",
            "id": self.recording.id,
            "seconds": self.recording.seconds,
            "windows": self.recording.windows,
            "bytes": self.size,
            "created": self.created,
            "problems": list(self.recording.problems),
        }


class Uploads:
    """Keeps decoded recordings, as many as ``capacity`` bytes of samples are.

    Where there are more, the client that has the most loses the one it has used least recently: nobody can push out
    what others keep.

    Args:
        capacity: bytes.
        folder: where they are kept too, and found again.
    """

    def __init__(self, capacity: int, folder: UploadFolder | None = None):
        self.capacity, self.folder, self.bytes = capacity, folder, 0
        self._kept: OrderedDict[tuple[str, str], Upload] = OrderedDict()
        self._owned: Counter[str] = Counter()  # bytes
        self._coming: dict[tuple[str, str], asyncio.Task[Upload]] = {}

    def add(self, owner: str, recording: Recording, size: int = 0, created: int | None = None) -> Upload:
        """Keeps a recording for a client (``client_of`` its request).

        Args:
            owner: the client.
            recording: decoded.
            size: bytes of its file.
            created: when it came; now if None.
        """
        self._forget(owner, recording.id)
        created = int(time.time()) if created is None else created
        kept = self._kept[owner, recording.id] = Upload(recording, size, created)
        self._count(owner, recording.pcm.nbytes)
        while self.bytes > self.capacity and len(self._kept) > 1:
            most = max(self._owned, key=lambda one: self._owned[one])
            first = next(id for client, id in self._kept if client == most)
            if most == owner and first == recording.id:  # alone more than all others
                break
            self._forget(most, first)
        return kept

    def save(self, owner: str, upload: Upload) -> None:
        """Writes a recording into the folder, if there is one; takes a while."""
        if self.folder is not None:
            self.folder.save(owner, upload.recording, {"size": upload.size, "created": upload.created})

    async def made(self, owner: str, id: str, make: Callable[[], Coroutine[Any, Any, Upload]]) -> Upload:
        """A client's upload; made where there is none, once for all who ask at the same time."""
        found = self.find(owner, id)
        if found is not None:
            return found
        task = self._coming.get((owner, id))
        if task is None:
            task = self._coming[owner, id] = asyncio.ensure_future(make())
            task.add_done_callback(lambda _: self._coming.pop((owner, id), None))
        return await asyncio.shield(task)

    def find(self, owner: str, id: str) -> Upload | None:
        """What a client has uploaded; None where it has nothing of this id."""
        found = self._kept.get((owner, id))
        if found is not None:
            self._kept.move_to_end((owner, id))
        elif self.folder is not None and (saved := self.folder.load(owner, id)) is not None:
            recording, said = saved
            found = self.add(owner, recording, **said)
        return found

    def get(self, owner: str, id: str) -> Recording | None:
        """A client's recording; None where it has none of this id."""
        found = self.find(owner, id)
        return None if found is None else found.recording

    def of(self, owner: str) -> list[Upload]:
        """What a client has, what it used last first."""
        for id in self.folder.ids(owner) if self.folder is not None else ():
            self.find(owner, id)
        return [kept for (client, _), kept in reversed(self._kept.items()) if client == owner]

    def remove(self, owner: str, id: str) -> bool:
        """Forgets a recording, in the folder too; whether there was one here."""
        if self.folder is not None:
            self.folder.remove(owner, id)
        return self._forget(owner, id)

    def _forget(self, owner: str, id: str) -> bool:
        found = self._kept.pop((owner, id), None)
        if found is not None:
            self._count(owner, -found.recording.pcm.nbytes)
        return found is not None

    def _count(self, owner: str, more: int) -> None:
        self.bytes += more
        self._owned[owner] += more
        if not self._owned[owner]:
            del self._owned[owner]


def begun(processor: AFNextProcessor, recording: Recording) -> list[int]:
    """The tokens that a question about a recording begins with, where nothing stands before the recording."""
    turn = Turn("user", (recording.audio, "-"))
    ids = processor.prepare([turn], max_seconds=recording.seconds + 1.0).ids.tolist()
    return ids[: len(ids) - ids[::-1].index(processor.sound_id)]


def compute_ahead(engine: Engine, ids: list[int], recording: Recording) -> None:
    """Has an engine encode a recording, and compute what questions about it begin with, when nothing else waits.

    Nothing is held for it when it is done; features and pages stay while there is room. A recording that is too long
    for the engine, or that comes while others wait, is left out: the question will have it computed.
    """
    config, samples = engine.model.config, window_samples(len(recording.pcm))
    if len(ids) >= config.text.max_positions or len(engine.early) >= EARLY:
        return
    held = engine.audio.add(windows_of([recording.pcm]), samples, recording.digests or None)
    try:
        prompt = PromptTokens(ids, spans_of(ids, [samples], config.audio_token_id, held))
        set_clocks([prompt], [samples], config)
        with suppress(ValueError):
            engine.compute_ahead(prompt, AHEAD)
    finally:
        engine.audio.release(held)
