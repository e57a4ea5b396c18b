"""Speech written down while it comes: the current window is decoded again and again, and what two decodes agree on stays.

stream = SpeechStream(SpeechWriter(model, processor, "Transcribe the input speech."))
for pcm in microphone:
    print(said(stream.push(pcm)), end=" ")
print(said(stream.close()))
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from afn_model.infer.audio_stream import checked, converted
from afn_model.infer.long_speech import EDGE, LONGEST, JoinedWindows, SpeechWindow, Write, next_window, placed_words
from afn_model.infer.speech_writer import Written
from afn_model.infer.word_times import TimedWord


class SpeechStream:
    """A recording that is written down while it comes.

    A word is settled, and never changes, when two decodes one after the other have begun with the same tokens up to the
    word behind it. Settled tokens begin all later texts of the window. Windows are those of ``long_speech.windows_of``,
    so that the words in the end are those of ``long_texts`` wherever the text of each whole window begins with what was
    settled before the window was whole. They differ where two decodes agreed on what the whole window would have
    contradicted, where beam search finds another text behind a given beginning, and where a word's time moves across
    the edge of a window that ends without a pause.

    Args:
        write: a ``SpeechWriter``.
        longest: seconds of a window.
        step: seconds of audio between two decodes.

    Attributes:
        words: that are settled, in seconds of the recording.
        pending: words of the last decode that are not.
        circles: decodes of whole windows whose text was cut before a loop.

    Raises:
        ValueError: a step that is no length of time.

    Source: LocalAgreement with n = 2: Macháček et al., 2023, arXiv:2307.14743.
    """

    def __init__(self, write: Write, *, longest: float = LONGEST, step: float = 1.0):
        if not 0 < step < float("inf"):
            raise ValueError(f"step must be a number of seconds above 0, got {step}")
        self.write, self.longest, self.step = write, longest, round(step * SAMPLE_RATE)
        self.words: list[TimedWord] = []
        self.pending: list[TimedWord] = []
        self.circles = 0
        self._joined = JoinedWindows(longest)
        self._pcm = torch.zeros(0)
        self._start = 0  # sample at which the window begins
        self._looked = 0  # samples of the window that the last decode has heard
        self._last = Written("")
        self._begun: tuple[int, ...] = ()  # tokens of the window's text that are settled
        self._taken = list[TimedWord]()  # words of the window that are settled
        self._open = True

    def push(self, pcm: Tensor | np.ndarray) -> list[TimedWord]:
        """Takes the next samples; returns the words that they have settled.

        Args:
            pcm: [n] at 16 kHz, any n; float32 in [-1, 1] or int16.

        Raises:
            ValueError: another shape or dtype, NaN or infinite samples, a stream that has ended, or a window that the
                writer cannot write down.
        """
        self._check_open()
        piece = converted(checked(pcm, self._start + len(self._pcm)), torch.float32)
        settled = len(self.words)
        for part in piece.split(self.step):
            self._pcm = torch.cat([self._pcm, part])
            while (window := next_window(self._pcm, 0, self.longest)) is not None:
                self._close(window)
            if len(self._pcm) - self._looked >= self.step and len(self._pcm) >= MIN_SAMPLES:
                self._look()
        return self.words[settled:]

    def close(self) -> list[TimedWord]:
        """Ends the recording; returns the words that this has settled.

        Raises:
            ValueError: it is too short for a token, or has ended before.
        """
        self._check_open()
        settled, count = len(self.words), len(self._pcm)
        if count >= MIN_SAMPLES or not self._start:
            self._close(SpeechWindow(0, count, count))
        self._open, self.pending = False, []
        return self.words[settled:]

    def _look(self) -> None:
        """Decodes the window as far as it is there, and settles what the decode before has said too."""
        found = self._text(self._pcm)
        same = 0
        for ours, theirs in zip(found.tokens, self._last.tokens, strict=False):
            if ours != theirs:
                break
            same += 1
        self._looked, self._last = len(self._pcm), found
        # A word of the last second may belong to the next window, where this one ends without a pause.
        words, latest = self._placed(found), self._seconds(0) + (1 - EDGE) * self.longest
        agreed = [one for one in words if one.tokens < same and one.end <= latest]
        fresh = self._joined.fresh(agreed, self._seconds(0))
        # What both windows have heard is known when a word behind it is.
        if agreed and agreed[-1].start >= self._joined.heard:
            self._settle(fresh)
            self._begun = found.tokens[: max(len(self._begun), agreed[-1].tokens)]
        self.pending = [one for one in self._joined.fresh(words, self._seconds(0)) if one.tokens > len(self._begun)]

    def _close(self, window: SpeechWindow) -> None:
        found = self._text(self._pcm[: window.end])
        self.circles += found.finish == "repetition"
        end, following = self._seconds(window.end), self._seconds(window.following)
        last = end if following < end else None
        self._settle(self._joined.fresh(self._placed(found), self._seconds(0), last))
        self._joined.close(self._taken, end, following)
        self._pcm, self._start = self._pcm[window.following :].clone(), self._start + window.following
        self._looked, self._last, self._begun, self._taken, self.pending = 0, Written(""), (), [], []

    def _settle(self, words: list[TimedWord]) -> None:
        """Takes those words of the window that are not taken yet."""
        new = [one for one in words if one.tokens > len(self._begun)]
        self.words += new
        self._taken += new

    def _text(self, pcm: Tensor) -> Written:
        (found,) = self.write([pcm], before=self._begun, words=True)
        if isinstance(found, ValueError):
            raise found
        return found

    def _placed(self, found: Written) -> list[TimedWord]:
        return placed_words(found.words, self._seconds(0))

    def _seconds(self, sample: int) -> float:
        return (self._start + sample) / SAMPLE_RATE

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("the stream has ended: begin another")
