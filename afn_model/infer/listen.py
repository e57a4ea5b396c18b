"""A recording that is heard while it comes: what is there is encoded and computed before there is a question.

listening = Listening(engine, processor)
for pcm in microphone:
    listening.push(pcm)
    engine.step()
request = listening.ask("What happened?", SamplingParams(max_new_tokens=256))
"""

from __future__ import annotations

from collections.abc import Sequence as Run
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from afn_model.audio.frames import SAMPLE_RATE, WINDOW, audio_tokens
from afn_model.infer.audio_stream import AudioStream, StreamWindow
from afn_model.infer.engine import Engine
from afn_model.infer.request import Request, set_clocks
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.sequence import Sequence
from afn_model.infer.tokens import PromptTokens, spans_of
from afn_model.prompt.conversation import read_conversation

if TYPE_CHECKING:
    from afn_model.prompt.processor import AFNextProcessor

AHEAD = -1  # priority of what nobody waits for yet


class Listening:
    """A recording of one conversation, and what the engine has computed of it.

    Every full window is encoded, and its pages are computed, as soon as it is there; a question then costs the last
    window and itself. The answer is that of a request with the whole recording; the engine's deterministic mode makes
    the bits equal too.

    Args:
        engine: steps are its owner's to make; one after each ``push`` keeps pace.
        processor: of the model.
        system: a system message before the recording.
        max_seconds: longest recording; that of the processor if None.
    """

    def __init__(
        self,
        engine: Engine,
        processor: AFNextProcessor,
        *,
        system: str | None = None,
        max_seconds: float | None = None,
    ):
        longest = processor.max_seconds if max_seconds is None else max_seconds
        self.engine, self.processor, self.system = engine, processor, system
        self.stream = AudioStream(dtype=processor.pcm_dtype, max_seconds=longest)
        self.held: list[bytes] = []
        self.early: list[Sequence] = []
        self.before, _ = self._around("-")

    def push(self, pcm: Tensor | np.ndarray) -> None:
        """Takes the next samples, and has the engine compute what they complete.

        Args:
            pcm: [n] at 16 kHz, float32 or int16.

        Raises:
            ValueError: what ``AudioStream.push`` raises.
        """
        full = self.stream.push(pcm)
        for window in full:
            self._hold(window)
        if full:
            samples = [WINDOW] * len(self.held)
            prompt = self._prompt(self.before, [], samples, self.held)
            if len(prompt.ids) < self.engine.model.config.text.max_positions:
                with suppress(ValueError):  # too long for the engine's pages: the question will say so
                    self.early.append(self.engine.compute_ahead(prompt, AHEAD))

    @property
    def behind(self) -> int:
        """How many times what ``push`` has completed is not computed yet."""
        self.early = [sequence for sequence in self.early if sequence in self.engine.early]
        return len(self.early)

    def ask(
        self,
        question: str,
        params: SamplingParams | None = None,
        key: int = 0,
        *,
        prediction: Run[int] | None = None,
    ) -> Request:
        """Asks about what has been heard so far. The recording may go on afterwards.

        Args:
            question: what is asked.
            params, key, prediction: as of ``Engine.submit``.

        Raises:
            ValueError: nothing that can be heard yet, or no room in the context.
        """
        last = self.stream.partial()
        samples, held = [WINDOW] * len(self.held), list(self.held)
        if last is not None:
            samples, held = [*samples, len(last.pcm)], [*held, last.digest]
        if not samples:
            raise ValueError(f"{self.stream.samples} samples of audio are too few for a token")
        prompt, context = (
            self._prompt(*self._around(question), samples, held),
            self.engine.model.config.text.max_positions,
        )
        if len(prompt.ids) >= context:
            raise ValueError(f"{len(prompt.ids)} tokens leave no room for an answer in a context of {context}")
        self.engine.audio.hold(self.held)
        if last is not None:
            self.engine.audio.add([last.pcm], [len(last.pcm)], [last.digest])
        return self.engine.submit(prompt, params or SamplingParams(), key, prediction=prediction)

    def close(self) -> None:
        """The recording is over: its windows may be forgotten. Questions that were asked go on."""
        self.stream.abort()
        self.engine.audio.release(self.held)
        self.held = []

    def abandon(self) -> None:
        """The recording is not wanted any longer: as ``close``, and nothing more is computed of it."""
        with self.engine.lock:
            for sequence in self.early:
                if sequence in self.engine.early:
                    self.engine.scheduler.finish(sequence)
                    self.engine.audio.release(self.engine.early.pop(sequence))
        self.close()

    def _around(self, question: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the recording's."""
        parts = [
            {"type": "audio", "audio": np.zeros(SAMPLE_RATE, dtype=np.float32)},
            {"type": "text", "text": question},
        ]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        prepared = self.processor.prepare(read_conversation([*system, {"role": "user", "content": parts}]))
        ids, sound = prepared.ids.tolist(), self.processor.sound_id
        first = ids.index(sound)
        return ids[:first], ids[first + ids.count(sound) :]

    def _hold(self, window: StreamWindow) -> None:
        self.held += self.engine.audio.add([window.pcm], [len(window.pcm)], [window.digest])

    def _prompt(self, before: list[int], after: list[int], samples: list[int], held: list[bytes]) -> PromptTokens:
        config = self.engine.model.config
        tokens = sum(map(audio_tokens, samples))
        ids = [*before, *[config.audio_token_id] * tokens, *after]
        prompt = PromptTokens(ids, spans_of(ids, [samples], config.audio_token_id, held))
        set_clocks([prompt], [samples], config)
        return prompt
