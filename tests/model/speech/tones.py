"""Stands in for ``SpeechEngine``: a frame of each token is as loud as the token's id, and a clock that steps move."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from afn_model.speech.conversation import SpokenAnswers
from afn_model.speech.speaker import LEAST_SECONDS, SILENCE, SpeakerPrompt

RATE, FRAME = 1000, 100  # samples a second, and of a frame
AFTER = 3  # frames behind the last token
STEP = 0.06  # seconds


class ToneStream:
    """As ``SpokenStream``."""

    def __init__(self, engine: ToneEngine, speaker: SpeakerPrompt | None):
        self.engine, self.speaker = engine, speaker
        self.done, self.reason, self.said = False, "", list[int]()
        self.queue, self.ended, self.after = deque[int](), False, AFTER

    @property
    def waiting(self) -> bool:
        return not (self.done or self.queue or self.ended)

    def say(self, ids: Sequence[int]) -> None:
        assert not self.ended
        assert not self.done
        self.queue.extend(ids)

    def end(self) -> None:
        self.ended = True

    def close(self) -> None:
        if not self.done:
            self.leave("closed")

    def leave(self, reason: str) -> None:
        self.done, self.reason = True, reason
        self.engine.streams.remove(self)


class ToneEngine:
    """As ``SpeechEngine``; ``broken`` steps fail."""

    def __init__(self):
        self.streams: list[ToneStream] = []
        self.all: list[ToneStream] = []
        self.now, self.steps, self.broken = 0.0, 0, False

    def open(self, speaker: SpeakerPrompt | None = None, *, seed: int | None = None) -> ToneStream:
        self.all.append(ToneStream(self, speaker))
        self.streams.append(self.all[-1])
        return self.all[-1]

    def step(self) -> list[tuple[ToneStream, Tensor]]:
        self.now += STEP
        self.steps += 1
        if self.broken:
            raise RuntimeError("the device is gone")
        found = []
        for stream in list(self.streams):
            if stream.queue:
                stream.said.append(stream.queue.popleft())
                found.append((stream, torch.full((FRAME,), stream.said[-1] / 1000)))
            elif stream.ended:
                stream.after -= 1
                found.append((stream, torch.full((FRAME,), -0.5)))
                if not stream.after:
                    stream.leave("end")
        return found


def tones(tokenizer, rate: int = RATE, **options) -> SpokenAnswers:
    """Answers whose clock is the engine's."""
    engine = ToneEngine()
    return SpokenAnswers(engine, tokenizer, rate, clock=lambda: engine.now, **options)  # type: ignore[arg-type]


def tone_prompt(pcm: Tensor, rate: int, consent: str) -> SpeakerPrompt:
    """As ``speaker_prompt``."""
    if len(pcm) < LEAST_SECONDS * rate or pcm.abs().max() < SILENCE:
        raise ValueError("a speaker prompt that is silent or too short")
    return SpeakerPrompt(torch.zeros(3, 2, dtype=torch.long), consent)
