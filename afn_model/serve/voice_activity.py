"""Where somebody begins to speak and where they stop, by loudness."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

FRAME = 0.02  # seconds
ONSET = 3  # loud frames in a row that begin a turn: a click is shorter
QUIETEST, RANGE = -60.0, 40.0  # dB of full scale at threshold 0, and how much louder at threshold 1


class VoiceTurn(NamedTuple):
    """A turn has begun or ended at a sample."""

    what: Literal["started", "stopped"]
    at: int


class VoiceActivity:
    """Turns in a stream of samples. A frame of 20 ms is loud where its mean square reaches
    10^((-60 + 40 · threshold) / 10) of full scale: -40 dB at a threshold of 0.5.

    Args:
        rate: of the samples, Hz.
        threshold: 0 to 1.
        prefix_padding_ms: that a turn begins before its first loud frame, but not before the last turn's end.
        silence_duration_ms: of frames that are not loud, after which a turn has ended, those included.

    Attributes:
        keep: samples before the last one that a turn may still begin at.
    """

    def __init__(self, rate: int, threshold: float, prefix_padding_ms: float, silence_duration_ms: float):
        self.frame = round(FRAME * rate)
        self.level = 10 ** ((QUIETEST + RANGE * threshold) / 10) * 32768.0**2
        self.padding = round(prefix_padding_ms * rate / 1000)
        self.silence = max(1, round(silence_duration_ms / (1000 * FRAME)))
        self.keep = self.padding + (ONSET + 1) * self.frame
        self.speaking = False
        self._rest = np.empty(0, dtype=np.int16)
        self._at = self._last = 0  # the first sample of the rest, and where the last turn ended
        self._run = 0  # frames in a row that are loud outside of a turn, not loud in one

    def feed(self, pcm: np.ndarray) -> list[VoiceTurn]:
        """The turns that the next samples [n] int16 begin and end."""
        rest = np.concatenate([self._rest, pcm])
        frames = rest[: len(rest) // self.frame * self.frame].reshape(-1, self.frame)
        self._rest = rest[frames.size :].copy()
        loud = np.square(frames, dtype=np.float32).mean(1) >= self.level
        found = []
        for one in loud.tolist():
            self._at += self.frame
            self._run = self._run + 1 if one != self.speaking else 0
            if not self.speaking and self._run == ONSET:
                found.append(VoiceTurn("started", max(self._last, self._at - ONSET * self.frame - self.padding)))
            elif self.speaking and self._run == self.silence:
                found.append(VoiceTurn("stopped", self._at))
                self._last = self._at
            else:
                continue
            self.speaking, self._run = not self.speaking, 0
        return found

    def stop(self, at: int) -> None:
        """A turn is ended from outside, at a sample; the next begins there at the earliest."""
        self.speaking, self._run, self._last = False, 0, at
