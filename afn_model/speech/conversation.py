"""Answers that are said while they are made: text tokens in, sound out, several at once.

answers = spoken_answers(AFVoice.from_pretrained(folder), processor.tokenizer)
answer = answers.open()
answer.say(ids)
answer.end()
while answers.busy:
    for which, pcm in answers.step():
        ...
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afn_model.infer.finish import END_OF_THINKING, THINK, begun
from afn_model.speech.engine import SpeechEngine

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from afn_model.infer.engine import Engine
    from afn_model.infer.request import Request
    from afn_model.infer.sampling_params import SamplingParams
    from afn_model.prompt.batch import Batch
    from afn_model.speech.engine import SpokenStream
    from afn_model.speech.speaker import SpeakerPrompt
    from afn_model.speech.voice import AFVoice

AHEAD = 32  # tokens that a stream is given before it has used the ones before
AT_ONCE = 256  # tokens that are looked at between two steps: a few milliseconds
UNREAD = 30.0  # seconds of sound that may wait for a reader before no more text is given
LOOKED_AT = 16  # tokens before the first sound that are looked at together: characters are parted by tokens
PAUSES = (".", "!", "?", ";", ":", "Ċ", "ãĢĤ")  # how tokens end behind which speech may pause; the last are \n and 。
MARKS = frozenset("*_`#~|\\^")
Mark = Callable[[Tensor], Tensor]  # of the next samples [n] float32; as many


def pauses(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens behind which a long text may be cut: ``SpeechEngine``'s ``breaks``."""
    return frozenset(id for token, id in tokenizer.get_vocab().items() if token.endswith(PAUSES))


def spoken_answers(voice: AFVoice, tokenizer: Tokenizer, *, streams: int = 16, **options: Any) -> SpokenAnswers:
    """What says texts in a voice.

    Args:
        voice: with a talker.
        tokenizer: of the texts.
        streams: said at the same time.
        options: of ``SpokenAnswers``.

    Raises:
        ValueError: a voice without a talker, or one that was made for other tokens.
    """
    talker = voice.talker
    if talker is None:
        raise ValueError("the voice has a codec and no talker: it says nothing")
    known, size = talker.config.text.vocab_size, tokenizer.get_vocab_size()
    if size > known:
        raise ValueError(
            f"the voice says {known} tokens and the tokenizer has {size}: they are not made for each other"
        )
    engine = SpeechEngine(voice, streams=streams, breaks=pauses(tokenizer))
    return SpokenAnswers(engine, tokenizer, voice.config.codec.sample_rate, **options)


class SpokenTokens:
    """Which of an answer's tokens are said: no special ones, no marks of Markdown, and nothing inside of ``<think>``.

    A token whose text may begin a tag waits for the next ones; what stands in one token with a tag is not said.

    Args:
        tokenizer: of the answer, and of the voice.
        thinking: whether the answer begins inside of ``<think>``.
    """

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool = False):
        self.decode, self.thinking = tokenizer.decode, thinking
        self.special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._held: list[int] = []

    def feed(self, ids: Sequence[int]) -> list[int]:
        """Takes the next tokens; those that are said from now on."""
        said: list[int] = []
        for token in ids:
            if token in self.special or self._marks(token):
                continue
            self._held.append(token)
            text, tag = self.decode(self._held), END_OF_THINKING if self.thinking else THINK
            if (at := text.find(tag)) >= 0:
                while self._held and len(self.decode(self._held)) > at:
                    self._held.pop()
                said += self._taken()
                self.thinking = not self.thinking
            else:
                may = begun(text, tag)  # characters that may go on to a tag: what stands before them waits for nothing
                count = next(at for at in range(len(self._held), -1, -1) if len(self.decode(self._held[at:])) >= may)
                said += self._taken(count)
        return said

    def close(self) -> list[int]:
        """As ``feed``, of what was waiting: nothing more comes."""
        return self._taken()

    def _marks(self, token: int) -> bool:
        text = self.decode([token]).strip()
        return bool(text) and MARKS.issuperset(text)

    def _taken(self, count: int | None = None) -> list[int]:
        count = len(self._held) if count is None else count
        taken, self._held = self._held[:count], self._held[count:]
        return [] if self.thinking else taken


@dataclass
class SpeechTimes:
    """When an answer's text and sound came; seconds by one clock.

    Args:
        rate: samples a second.
        asked: when the question had ended; None where there is none.
        first_token, first_audio, last_audio: when they came.
        chunks, samples: of sound so far.
        gap, longest_gap, gaps: between the last two chunks, the longest one, and all of them together.
        stalled: seconds that a listener waits who plays the sound from its first chunk on.
    """

    rate: int
    asked: float | None = None
    first_token: float | None = None
    first_audio: float | None = None
    last_audio: float | None = None
    chunks: int = 0
    samples: int = 0
    gap: float | None = None
    longest_gap: float = 0.0
    gaps: float = 0.0
    stalled: float = 0.0

    def token(self, now: float) -> None:
        """Text has come."""
        self.first_token = now if self.first_token is None else self.first_token

    def chunk(self, samples: int, now: float) -> None:
        """Sound has come."""
        if self.first_audio is None or self.last_audio is None:
            self.first_audio = now
        else:
            self.gap = now - self.last_audio
            self.gaps += self.gap
            self.longest_gap = max(self.longest_gap, self.gap)
            played = self.first_audio + self.stalled + self.seconds
            self.stalled += max(0.0, now - played)
        self.last_audio = now
        self.chunks += 1
        self.samples += samples

    @property
    def seconds(self) -> float:
        """Of sound."""
        return self.samples / self.rate

    def as_json(self) -> dict[str, Any]:
        """Seconds; those that are not known are None. ``real_time_factor`` is the time from the first token to the last
        sound, divided by the sound's own: what waits for the language model is in it."""
        first, text = self.first_audio, self.first_token
        spent = None if self.last_audio is None or text is None else self.last_audio - text
        return {
            "after_question": None if first is None or self.asked is None else first - self.asked,
            "after_token": None if first is None or text is None else first - text,
            "longest_gap": self.longest_gap,
            "mean_gap": self.gaps / max(1, self.chunks - 1),
            "stalled": self.stalled,
            "audio": self.seconds,
            "real_time_factor": None if spent is None or not self.samples else spent / self.seconds,
        }


class SpokenAnswer:
    """One answer that is said; ``SpokenAnswers.open`` makes it.

    It gives its stream a few tokens at a time, none before a letter or a digit has come, and none while more than
    ``UNREAD`` seconds of its sound are not read.

    Attributes:
        times: when what came.
        done: nothing more comes.
        reason: "" while it goes on; then "end", "length", "closed", or "error" where ``error`` says what was wrong.
        read: samples that somebody has taken, as ``heard`` was told; those that are not hold it up.
    """

    def __init__(self, stream: SpokenStream, tokens: SpokenTokens, times: SpeechTimes, mark: Mark | None):
        self.stream, self.tokens, self.times, self.mark = stream, tokens, times, mark
        self.done, self.reason, self.read, self.given = False, "", 0, 0
        self.error: Exception | None = None
        self._raw, self._text = deque[int](), deque[int]()  # tokens that came, and those of them that are said next
        self._sounds = self._ended = self._closed = self._told = False

    def say(self, ids: Sequence[int], now: float) -> None:
        """Takes the next tokens of the text, as the language model makes them."""
        if not self._ended and not self.done:
            self._raw.extend(ids)
            self._look(now)

    def end(self, now: float) -> None:
        """No more text comes."""
        if not self.done:
            self._ended = True
            self._look(now)

    def stop(self) -> None:
        """Somebody speaks, or nobody listens: its pages are free at once, and no more of its sound comes."""
        self.finish("closed")

    def heard(self, samples: int) -> bool:
        """Somebody has taken samples of its sound; whether it may have waited for that.

        Its thread may look at ``full`` at any moment. It finds either these samples read, or so much unread that this
        is True.
        """
        self.read += samples
        return self.unread + samples > UNREAD * self.times.rate

    @property
    def unread(self) -> int:
        """Samples."""
        return self.times.samples - self.read

    @property
    def full(self) -> bool:
        """Whether so much is unread that no more text is given."""
        return self.unread > UNREAD * self.times.rate

    @property
    def busy(self) -> bool:
        """Whether a step would bring it on."""
        if self.done:
            return False
        if not self.stream.waiting or (self._closed and not self._text):
            return True
        return bool(self._raw or (self._sounds and self._text)) and not self.full

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Nothing more comes."""
        if not self.done:
            self.done, self.reason, self.error = True, reason, error
            self._raw.clear()
            self._text.clear()
            if not self.stream.done:
                self.stream.close()

    def feed(self, now: float) -> None:
        """Gives the stream text, if it has none and may have some; called before each step."""
        if self.done or self._told:
            return
        self._look(now)
        if self._text and self._sounds and self.stream.waiting and not self.full:
            given = [self._text.popleft() for _ in range(min(AHEAD, len(self._text)))]
            self.given += len(given)
            self.stream.say(given)
        if self._closed and not self._text:
            self._told = True
            if self.given:
                self.stream.end()
            else:  # there is nothing to say in it
                self.finish("end")

    def take(self, pcm: Tensor, now: float) -> Tensor:
        """Sound that has come, as it goes out, on the CPU."""
        pcm = pcm.detach().to("cpu", torch.float32)
        if self.mark is not None:
            marked = self.mark(pcm)
            if marked.shape != pcm.shape:
                raise ValueError(f"a watermark of {len(pcm)} samples gave {list(marked.shape)}")
            pcm = marked
        self.times.chunk(len(pcm), now)
        return pcm

    def _look(self, now: float) -> None:
        """Finds out what is said of the tokens that came, of so many at once that others do not wait for it."""
        for _ in range(AT_ONCE):
            if not self._raw or len(self._text) >= AHEAD:
                break
            self._put(self.tokens.feed([self._raw.popleft()]), now)
        if self._ended and not self._raw and not self._closed:
            self._closed = True
            self._put(self.tokens.close(), now)
            if not self._sounds:
                self._text.clear()

    def _put(self, ids: list[int], now: float) -> None:
        self._text.extend(ids)
        if self._sounds or not ids:
            return
        last = list(self._text)[-LOOKED_AT - len(ids) :]
        self._sounds = any(one.isalnum() for one in self.tokens.decode(last))
        if self._sounds:
            self.times.token(now)
        while not self._sounds and len(self._text) > LOOKED_AT:
            self._text.popleft()


class SpokenAnswers:
    """What is said at the same time, on one engine and in one thread.

    Args:
        engine: nobody else may use it from now on.
        tokenizer: of the texts.
        rate: of the sound, samples a second.
        watermark: called with the rate for each answer; what it gives is called with every chunk that goes out and
            keeps what it has to know of those before. None marks nothing.
        clock: seconds.
    """

    def __init__(
        self,
        engine: SpeechEngine,
        tokenizer: Tokenizer,
        rate: int,
        *,
        watermark: Callable[[int], Mark] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.engine, self.tokenizer, self.rate = engine, tokenizer, rate
        self.watermark, self.clock = watermark, clock
        self.open_ones: dict[SpokenStream, SpokenAnswer] = {}

    def open(
        self,
        speaker: SpeakerPrompt | None = None,
        *,
        thinking: bool = False,
        asked: float | None = None,
        seed: int | None = None,
    ) -> SpokenAnswer:
        """An answer whose text comes from now on.

        Args:
            speaker: whose voice; the default one if None.
            thinking: whether its text begins inside of ``<think>``.
            asked: when the question had ended, by the clock.
            seed: of its random numbers.
        """
        stream = self.engine.open(speaker, seed=seed)
        mark = None if self.watermark is None else self.watermark(self.rate)
        tokens = SpokenTokens(self.tokenizer, thinking=thinking)
        answer = self.open_ones[stream] = SpokenAnswer(stream, tokens, SpeechTimes(self.rate, asked), mark)
        return answer

    @property
    def busy(self) -> bool:
        """Whether a step would bring something on."""
        return any(answer.busy or answer.done for answer in self.open_ones.values())

    def step(self) -> list[tuple[SpokenAnswer, Tensor]]:
        """One frame of every answer that can go on.

        Returns:
            the next samples [n] float32 of each that sounded; those that end in this step come with their last ones,
            or with none.
        """
        for answer in list(self.open_ones.values()):
            try:
                answer.feed(self.clock())
            except ValueError as error:
                answer.finish("error", error)
        found: dict[SpokenAnswer, Tensor] = {}
        for stream, pcm in self.engine.step():
            answer = self.open_ones.get(stream)
            if answer is None or answer.done or not len(pcm):
                continue
            try:
                found[answer] = answer.take(pcm, self.clock())
            except Exception as error:
                answer.finish("error", error)
        for stream, answer in list(self.open_ones.items()):
            if stream.done:
                answer.finish(stream.reason or "end")
            if answer.done:
                del self.open_ones[stream]
                found.setdefault(answer, torch.zeros(0))
        return list(found.items())

    def stop(self, error: Exception | None = None) -> None:
        """Ends all of them."""
        for answer in self.open_ones.values():
            answer.finish("closed" if error is None else "error", error)
        self.open_ones.clear()


class VoiceConversation:
    """Spoken questions that are answered aloud, in one thread: a step of the language model's engine, then the voice's.

    Args:
        engine: of the language model.
        answers: what says its tokens.
        speaker: whose voice; the default one if None.
    """

    def __init__(self, engine: Engine, answers: SpokenAnswers, speaker: SpeakerPrompt | None = None):
        self.engine, self.answers, self.speaker = engine, answers, speaker
        self.request: Request | None = None
        self.answer: SpokenAnswer | None = None
        self._told = 0

    def ask(
        self,
        batch: Batch,
        params: SamplingParams | None = None,
        *,
        asked: float | None = None,
        on_text: Callable[[str], Any] | None = None,
    ) -> SpokenAnswer:
        """Begins to answer a prompt; an answer that is being said ends.

        Args:
            batch: of the one prompt.
            params: of the answer's text.
            asked: when the question had ended, by the clock of ``answers``; now if None.
            on_text: called with the text, piece by piece.

        Raises:
            ValueError: as of ``Engine.add``; several answers are asked for.
        """
        self.stop()
        asked = self.answers.clock() if asked is None else asked
        (request,) = self.engine.add(batch, params)
        if len(request.answers) != 1:
            self.engine.abort(request)
            raise ValueError(f"one answer is said at a time, not {len(request.answers)}")
        request.answers[0].on_text = on_text
        try:
            self.answer = self.answers.open(self.speaker, thinking=request.thinking, asked=asked)
        except BaseException:
            self.engine.abort(request)
            raise
        self.request, self._told = request, 0
        return self.answer

    @property
    def busy(self) -> bool:
        """Whether an answer is being made."""
        return self.answer is not None and not self.answer.done

    def step(self) -> Tensor:
        """Brings the answer on: sound [n] float32, often none.

        Raises:
            ValueError: the answer could not be completed.
        """
        if self.answer is None or self.answer.done:
            return torch.zeros(0)
        if self.request is not None:
            growing = self.request.answers[0]
            if growing.reason is None:
                self.engine.step()
            told, self._told = self._told, len(growing.finish.answer)
            self.answer.say(growing.finish.answer[told:], self.answers.clock())
            if growing.reason is not None:
                if growing.error is not None:
                    self.stop()
                    raise ValueError(f"the answer could not be completed: {growing.error}")
                self.answer.end(self.answers.clock())
                self.request = None
        answer = self.answer
        pcm = dict(self.answers.step()).get(answer, torch.zeros(0))
        if answer.error is not None:
            self.stop()
            raise ValueError(f"the answer could not be said: {answer.error}")
        return pcm

    def stop(self) -> None:
        """Somebody speaks: the answer ends at once, its text too. A step frees what the engines hold of it."""
        if self.request is not None:
            self.engine.abort(self.request)
        if self.answer is not None and not self.answer.done:
            self.answer.stop()
            self.answers.open_ones.pop(self.answer.stream, None)
        self.request = self.answer = None
