"""Recordings that clients have uploaded, found by their content; each client sees its own."""

from __future__ import annotations

from collections import OrderedDict

from afn_model.serve.recording import Recording


class Uploads:
    """Keeps decoded recordings, the least recently used until ``capacity`` bytes of samples.

    Args:
        capacity: bytes.
    """

    def __init__(self, capacity: int):
        self.capacity, self.bytes = capacity, 0
        self._kept: OrderedDict[tuple[str, str], Recording] = OrderedDict()

    def add(self, owner: str, recording: Recording) -> None:
        """Keeps a recording for a client (``client_of`` its request)."""
        self.remove(owner, recording.id)
        self._kept[owner, recording.id] = recording
        self.bytes += recording.pcm.nbytes
        while self.bytes > self.capacity and len(self._kept) > 1:
            _, last = self._kept.popitem(last=False)
            self.bytes -= last.pcm.nbytes

    def get(self, owner: str, id: str) -> Recording | None:
        """A client's recording; None where it has none of this id."""
        found = self._kept.get((owner, id))
        if found is not None:
            self._kept.move_to_end((owner, id))
        return found

    def remove(self, owner: str, id: str) -> bool:
        """Forgets a recording; whether there was one."""
        found = self._kept.pop((owner, id), None)
        if found is not None:
            self.bytes -= found.pcm.nbytes
        return found is not None
