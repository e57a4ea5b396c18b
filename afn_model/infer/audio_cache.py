"""Encoder features of audio windows, found by what is heard in them: each window is encoded once."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.audio.digests import digests_of
from afn_model.audio.frames import audio_tokens
from afn_model.prompt.batch import Batch

if TYPE_CHECKING:
    from afn_model.network.network import Network


@dataclass
class CachedWindow:
    """A window's samples until it is encoded, its features from then on, and how often it is in use."""

    pcm: Tensor | None = None
    features: Tensor | None = None
    references: int = 0


class AudioCache:
    """Features of audio windows before the rotary time embedding, which depends on a window's place, and the adaptor.

    A window in use is kept; of the others the least recently used are dropped while features take more than
    ``capacity``. Samples are kept on the host while their window is in use and not encoded. What calls it wrongly
    (a window that is not held, one released too often) fails an assertion.

    Args:
        model: its encoder and adaptor are used, without gradients.
        capacity: bytes of features. Those in use may take more, which ``over`` says.
        together: windows encoded in one forward, at most.
        deterministic: encode each window in a forward of its own, so that its bits depend on nothing else.

    Attributes:
        bytes: what features take now, those in use included.
        windows_encoded: how many windows ``encode`` has computed.
        windows_reused: occurrences given to ``add`` that were known already.
        windows_evicted: features dropped for want of room.
    """

    def __init__(self, model: Network, *, capacity: int, together: int = 4, deterministic: bool = False):
        if capacity < 0 or together < 1:
            raise ValueError(f"capacity must be at least 0 and together at least 1, got {capacity} and {together}")
        self.model, self.capacity = model, capacity
        self.together = 1 if deterministic else together
        self.bytes = self.windows_encoded = self.windows_reused = self.windows_evicted = 0
        self._windows: dict[bytes, CachedWindow] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()  # encoded and not in use, least recently used first

    @property
    def over(self) -> int:
        """Bytes of features beyond ``capacity``, all of them in use."""
        return max(0, self.bytes - self.capacity)

    def add(
        self,
        windows: Tensor | Sequence[Tensor],
        samples: Sequence[int],
        digests: Sequence[bytes | None] | None = None,
    ) -> list[bytes]:
        """Takes a reference to a window for each time it occurs.

        Args:
            windows: [W, T] padded, [Σ samples] window after window, or a list of [n], as of ``windows_of``. Copied
                where they are new.
            samples: valid samples of each.
            digests: ``window_digest`` of each, None where that is not known; one that is spares 1 ms of hashing.

        Returns:
            The digest of each.

        Raises:
            ValueError: windows, samples and digests that do not add up, or what ``window_digest`` raises; no reference
                is taken then.
        """
        given = windows
        if isinstance(windows, Tensor) and windows.dim() == 1:
            if sum(samples) != len(windows):
                raise ValueError(f"audio windows of {sum(samples)} samples were given with {len(windows)}")
            given = windows.split(list(samples))
        if len(given) != len(samples):
            raise ValueError(f"{len(given)} audio windows were given with the samples of {len(samples)}")
        rows = [row[:n] for row, n in zip(given, samples, strict=True)]
        if any(len(row) != n for row, n in zip(rows, samples, strict=True)):
            raise ValueError(f"an audio window of {min(map(len, rows))} samples was given for one of {max(samples)}")
        known = [None] * len(rows) if digests is None else digests
        if len(known) != len(rows):
            raise ValueError(f"{len(known)} digests for {len(rows)} audio windows")
        hashed = iter(digests_of([row for row, digest in zip(rows, known, strict=True) if digest is None]))
        found = [next(hashed) if digest is None else digest for digest in known]
        new = {d: row for d, row in zip(found, rows, strict=True) if d not in self._windows}
        self._windows |= {digest: CachedWindow(row.detach().to("cpu", copy=True)) for digest, row in new.items()}
        self.windows_reused += len(found) - len(new)
        for digest in found:
            self._windows[digest].references += 1
            self._idle.pop(digest, None)
        return found

    def hold(self, digests: Iterable[bytes]) -> None:
        """Takes one reference more to windows that are held."""
        for digest in digests:
            self._window(digest).references += 1

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """The windows among these that are not encoded yet, each once."""
        return [digest for digest in dict.fromkeys(digests) if self._window(digest).features is None]

    @torch.no_grad()
    def encode(self, digests: Iterable[bytes]) -> None:
        """Computes the features of these windows where they are missing.

        An error leaves those that were computed before it; the others are still missing.
        """
        missing = self.missing(digests)
        for _, same in groupby(sorted(missing, key=self._dtype), key=self._dtype):
            group = list(same)
            for at in range(0, len(group), self.together):
                some = group[at : at + self.together]
                for digest, features in zip(some, self._encoded(some), strict=True):
                    self._keep(digest, features)
                    self.windows_encoded += 1
                self._evict()

    def put(self, digest: bytes, features: Tensor) -> None:
        """Takes features that are known already, as they are; a window that has some keeps them.

        Args:
            digest: of the window, whether it is held or not.
            features: [tokens, audio width], as of ``Network.encode_batch``; moved to the model's device and dtype.

        Raises:
            ValueError: another shape.
        """
        known = self._windows.get(digest)
        tokens = len(features) if known is None or known.pcm is None else audio_tokens(len(known.pcm))
        if tuple(features.shape) != (tokens, self.model.config.audio.width):
            wanted = [tokens, self.model.config.audio.width]
            raise ValueError(f"features of the audio window must be {wanted}, got {list(features.shape)}")
        if known is None or known.features is None:
            self._windows.setdefault(digest, CachedWindow())
            self._keep(digest, features.detach().to(self.model.device, self.model.dtype))
            self._evict()

    @torch.no_grad()
    def embeddings(self, digest: bytes, index: int) -> Tensor:
        """What the language model reads of a window that is encoded: [tokens, text width].

        The whole window is computed at once, whatever part of it is wanted: its bits depend on nothing else.

        Args:
            digest: of the window.
            index: its number in its recording.
        """
        features = self._window(digest).features
        assert features is not None, "the audio window is not encoded yet"
        frame = torch.arange(len(features), device=features.device)
        return self.model.adapt(features, torch.full_like(frame, index), frame)

    def release(self, digests: Iterable[bytes]) -> None:
        """Gives references back, one for each time a digest is named."""
        counts = Counter(digests)
        assert all(self._window(d).references >= count for d, count in counts.items()), "released too often"
        for digest, count in counts.items():
            window = self._windows[digest]
            window.references -= count
            if not window.references and window.features is None:
                del self._windows[digest]
            elif not window.references:
                self._idle[digest] = None
        self._evict()

    def clear(self) -> None:
        """Drops all features, for when the encoder's weights have changed; no window may be in use."""
        assert not any(window.references for window in self._windows.values()), "audio windows are in use"
        self._windows, self.bytes = {}, 0
        self._idle.clear()

    def _window(self, digest: bytes) -> CachedWindow:
        found = self._windows.get(digest)
        assert found is not None, "the audio window is not held"
        return found

    def _dtype(self, digest: bytes) -> str:
        return str(self._samples(digest).dtype)

    def _samples(self, digest: bytes) -> Tensor:
        pcm = self._window(digest).pcm
        assert pcm is not None, "the audio window is encoded already"
        return pcm

    def _encoded(self, digests: list[bytes]) -> list[Tensor]:
        """Features of windows of one dtype, in one forward; each in memory of its own, which it is dropped with."""
        pcm = [self._samples(digest) for digest in digests]
        batch = Batch(
            input_ids=torch.empty(0, dtype=torch.int64),
            cu_seqlens=torch.zeros(1, dtype=torch.int32),
            pcm=torch.cat(pcm),
            samples=torch.tensor([len(row) for row in pcm]),
            windows_per_audio=torch.ones(len(pcm), dtype=torch.int64),
        )
        encoded = self.model.encode_batch(batch)
        assert encoded is not None, "there are no windows"
        return [row.clone() for row in encoded[0].split(encoded[1])]

    def _keep(self, digest: bytes, features: Tensor) -> None:
        window = self._windows[digest]
        window.pcm, window.features = None, features
        self.bytes += features.nbytes
        if not window.references:
            self._idle[digest] = None

    def _evict(self) -> None:
        while self.bytes > self.capacity and self._idle:
            digest, _ = self._idle.popitem(last=False)
            features = self._windows.pop(digest).features
            assert features is not None
            self.bytes -= features.nbytes
            self.windows_evicted += 1
