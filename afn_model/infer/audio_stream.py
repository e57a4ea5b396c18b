"""Recordings as the windows that the encoder reads: given at once, or piece by piece while they are recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.digests import window_digest
from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE, WINDOW

LOUDEST = 2.0**31  # beyond, the power of a sample would overflow float32


@dataclass(frozen=True, eq=False)
class StreamWindow:
    """Window ``index`` of a recording: its samples [n] and their ``window_digest``."""

    digest: bytes
    index: int
    pcm: Tensor


class AudioStream:
    """A recording that comes piece by piece; its windows and digests are those of the whole recording given at once.

    Only the last window is held here.

    Args:
        dtype: of the windows, float32 or int16; pieces of the other one are converted as ``load_audio`` converts.
        max_seconds: the longest recording.

    Attributes:
        samples: how many have come.
        digests: of the full windows, in order; after ``close`` of all windows.
    """

    def __init__(self, *, dtype: torch.dtype = torch.float32, max_seconds: float = 1800):
        if dtype not in (torch.float32, torch.int16):
            raise ValueError(f"dtype must be torch.float32 or torch.int16, not {dtype}")
        self.dtype, self.max_seconds, self.samples = dtype, max_seconds, 0
        self.digests: list[bytes] = []
        self._last = torch.empty(WINDOW, dtype=dtype)
        self._open = True

    def push(self, pcm: Tensor | np.ndarray) -> list[StreamWindow]:
        """Takes the next samples.

        Args:
            pcm: [n] at 16 kHz, any n; float32 in [-1, 1] or int16.

        Returns:
            The windows that these samples have filled.

        Raises:
            ValueError: another shape or dtype, NaN or infinite samples, more than ``max_seconds`` in all, or a stream
                that has ended; nothing of the piece is taken then.
        """
        self._check_open()
        piece = checked(pcm, self.samples)
        most = round(self.max_seconds * SAMPLE_RATE)
        if self.samples + len(piece) > most:
            raise ValueError(
                f"streamed audio of {self.samples + len(piece)} samples is longer than {self.max_seconds:g} s, {most}"
                " samples: close the stream and begin another"
            )
        full: list[StreamWindow] = []
        while len(piece):
            at = self.samples % WINDOW
            taken, piece = piece[: WINDOW - at], piece[WINDOW - at :]
            self._last[at : at + len(taken)] = converted(taken, self.dtype)
            self.samples += len(taken)
            if self.samples % WINDOW == 0:
                full.append(self._window(WINDOW))
                self.digests.append(full[-1].digest)
        return full

    def partial(self) -> StreamWindow | None:
        """The last window as far as it is there; None while that is too short for a token."""
        count = self.samples % WINDOW
        return self._window(count) if self._open and count >= MIN_SAMPLES else None

    def close(self) -> StreamWindow | None:
        """Ends the recording; returns its last window where that is not a full one.

        Raises:
            ValueError: the recording is too short for a token, or it has ended before.
        """
        self._check_open()
        if self.samples < MIN_SAMPLES:
            raise ValueError(
                f"streamed audio of {self.samples / SAMPLE_RATE:.4f} s is too short: one audio token needs"
                f" {MIN_SAMPLES / SAMPLE_RATE:.4f} s"
            )
        last = self.partial()
        if last is not None:
            self.digests.append(last.digest)
        self.abort()
        return last

    def abort(self) -> None:
        """Ends the recording and forgets the window that is not full; a stream that has ended stays so."""
        self._open, self._last = False, self._last[:0]

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("the audio stream has ended: begin another")

    def _window(self, count: int) -> StreamWindow:
        index = (self.samples - count) // WINDOW
        pcm = self._last[:count].clone()
        return StreamWindow(window_digest(pcm), index, pcm)


def checked(pcm: Tensor | np.ndarray, before: int) -> Tensor:
    """The next samples of a stream on the host.

    Args:
        pcm: [n] at 16 kHz, float32 or int16.
        before: samples that have come before them.

    Raises:
        ValueError: another shape or dtype, NaN or infinite samples.
    """
    piece = torch.as_tensor(pcm).detach().cpu()
    if piece.dim() != 1 or piece.dtype not in (torch.float32, torch.int16):
        raise ValueError(f"streamed audio must be [n] float32 or int16, got {piece.dtype} {list(piece.shape)}")
    if piece.is_floating_point() and not (piece.abs() <= LOUDEST).all():
        after = f"after {before / SAMPLE_RATE:.3f} s"
        raise ValueError(f"streamed audio has a sample {after} that is no number or far beyond full scale, 1")
    return piece


def converted(pcm: Tensor, dtype: torch.dtype) -> Tensor:
    """Samples as float32 or int16, which counts 1/32768."""
    if pcm.dtype == dtype:
        return pcm
    if dtype == torch.float32:
        return pcm.float() * (1 / 32768)
    return (pcm * 32768).round_().clamp_(-32768, 32767).to(torch.int16)
