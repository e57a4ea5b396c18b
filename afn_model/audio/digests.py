"""Recordings as the windows that the encoder reads, and what these are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from afn_model.audio.frames import MIN_SAMPLES, WINDOW, window_samples

HASHERS, HASHED_TOGETHER = 4, 8  # threads, and the windows from which on they pay


def window_digest(pcm: Tensor) -> bytes:
    """sha256(dtype ‖ number of samples as 8 bytes, little-endian ‖ samples), 32 bytes.

    The same recording as int16 and as float32 has different digests: convert it first, as ``load_audio`` and
    ``AudioStream`` do with ``dtype``.

    Args:
        pcm: [n] valid samples at 16 kHz, float32 or int16.

    Raises:
        ValueError: another shape or dtype, or a window too short for a token or longer than 30 s.
    """
    if pcm.dim() != 1 or pcm.dtype not in (torch.float32, torch.int16):
        raise ValueError(f"an audio window must be [n] float32 or int16, got {pcm.dtype} {list(pcm.shape)}")
    if not MIN_SAMPLES <= len(pcm) <= WINDOW:
        raise ValueError(f"an audio window must have {MIN_SAMPLES} to {WINDOW} samples, got {len(pcm)}")
    found = hashlib.sha256(str(pcm.dtype).removeprefix("torch.").encode() + len(pcm).to_bytes(8, "little"))
    found.update(pcm.detach().cpu().contiguous().numpy().data)
    return found.digest()


def digests_of(windows: Sequence[Tensor]) -> list[bytes]:
    """``window_digest`` of each, of many on several threads: hashing lets others run."""
    if len(windows) < HASHED_TOGETHER:
        return [window_digest(window) for window in windows]
    with ThreadPoolExecutor(HASHERS) as pool:
        return list(pool.map(window_digest, windows))


def windows_of(clips: Iterable[Tensor]) -> list[Tensor]:
    """Every window of recordings [n], in order: 30 s each, then what is left; a tail too short for a token is not."""
    return [row for clip in clips for row, _ in zip(clip.split(WINDOW), window_samples(len(clip)), strict=False)]


class DecodedRecording:
    """A recording in memory that several questions are asked about: it is decoded once and hashed once.

    It stands for a recording in a conversation, ``{"type": "audio", "audio": DecodedRecording(pcm)}``. The processor
    hands its samples on without a copy, and its digests with them (``Batch.digests``): an engine that knows its windows
    reads no sample.

    Args:
        pcm: [n] at 16 kHz, float32 or int16, as ``load_audio`` returns it in the processor's ``pcm_dtype``. Nobody may
            write to it from now on.
        digests: ``window_digest`` of each of its windows, where that is known; hashed when first asked for, if None.

    Raises:
        ValueError: another shape or dtype, or another number of digests than windows.
    """

    def __init__(self, pcm: Tensor, digests: Sequence[bytes] | None = None):
        if pcm.dim() != 1 or pcm.dtype not in (torch.float32, torch.int16):
            raise ValueError(f"a recording must be [n] float32 or int16, got {pcm.dtype} {list(pcm.shape)}")
        windows = len(window_samples(len(pcm)))
        if digests is not None and len(digests) != windows:
            raise ValueError(f"{len(digests)} digests for the {windows} audio windows of the recording")
        self.pcm = pcm
        self._digests = None if digests is None else tuple(digests)

    @property
    def digests(self) -> tuple[bytes, ...]:
        """``window_digest`` of each window, in order."""
        if self._digests is None:
            self._digests = tuple(digests_of(windows_of([self.pcm])))
        return self._digests
