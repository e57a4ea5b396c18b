"""What the speech decoder writes down of windows of audio, and once more where it went round in circles."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.audio.frames import MIN_SAMPLES
from afn_model.infer.speech_decode import Hypothesis, decode
from afn_model.infer.word_times import Heads, TimedWord, token_times, words_of
from afn_model.network.speech_network import SpeechNetwork
from afn_model.prompt.conversation import read_conversation

if TYPE_CHECKING:
    from afn_model.prompt.batch import Prepared
    from afn_model.prompt.processor import AFNextProcessor

LOOP = 2.4  # bytes of a text to bytes of its zlib stream, above which it repeats itself (Radford et al., 2022, 4.5)
ROUNDS = 3  # times that the end of a text says the same before it is a loop
BEAMS_AGAIN = 5  # beams of the second attempt
SILENT = 2 / 32768  # loudest sample of digital silence


@dataclass(frozen=True)
class Written:
    """What is said in a window.

    Args:
        text: of it.
        tokens: of the text, those that were given as its beginning included.
        words: with seconds from the window's beginning, where they were asked for.
        finish: "stop", "length", or "repetition" where the text was cut before a loop.
        again: whether a second attempt was made.
        prompt: tokens before the text.
    """

    text: str
    tokens: tuple[int, ...] = ()
    words: tuple[TimedWord, ...] = ()
    finish: str = "stop"
    again: bool = False
    prompt: int = 0


class SpeechWriter:
    """Writes down windows of audio.

    A text that repeats itself, as its compression tells, is looked for once more with five beams; where that repeats
    itself too, what stands before the loop is kept, and ``finish`` says so. The decoder does not hear digital silence.

    Args:
        model: the encoder with its decoder.
        processor: of the model.
        question: text of the user's turn, which tells the task of windows.
        system: a system message before it.
        beams, length_penalty: as of ``speech_decode.decode``.
        most: tokens of a window's text, at most.
        heads: whose attention gives the word times; ``word_times.default_heads`` if None.

    Raises:
        ValueError: no beams, or a length penalty that is no number.
    """

    def __init__(
        self,
        model: SpeechNetwork,
        processor: AFNextProcessor,
        question: str = "",
        *,
        system: str | None = None,
        beams: int = 1,
        length_penalty: float = 1.0,
        most: int | None = None,
        heads: Heads | None = None,
    ):
        if beams < 1:
            raise ValueError(f"beams must be at least 1, got {beams}")
        if not abs(length_penalty) < float("inf"):
            raise ValueError(f"length_penalty must be a number, got {length_penalty}")
        self.model, self.processor, self.question, self.system = model, processor, question, system
        self.beams, self.length_penalty, self.most, self.heads = beams, length_penalty, most, heads

    def __call__(
        self, windows: Sequence[Tensor], *, before: Sequence[int] = (), words: bool = False
    ) -> list[Written | ValueError]:
        """The texts of windows, which are heard together.

        Args:
            windows: [n] samples at 16 kHz each.
            before: tokens that every text begins with.
            words: whether word times are wanted.

        Returns:
            for each window its text, or why there is none.
        """
        found: list[Written | ValueError] = [Written("", tuple(before))] * len(windows)
        heard = []
        for place, pcm in enumerate(windows):
            if len(pcm) < MIN_SAMPLES:
                found[place] = ValueError(f"{len(pcm)} samples of audio are too few for a token")
            elif (pcm.abs() > (SILENT if pcm.is_floating_point() else SILENT * 32768)).any():
                heard.append(place)
        if heard:
            try:
                texts = self._heard([windows[place] for place in heard], tuple(before), words)
            except ValueError as error:
                texts = [error] * len(heard)
            for place, text in zip(heard, texts, strict=True):
                found[place] = text
        return found

    @torch.inference_mode()
    def _heard(self, windows: list[Tensor], before: tuple[int, ...], words: bool) -> list[Written]:
        prepared = [self.processor.prepare(self._turns(pcm)) for pcm in windows]
        frames, cu_frames, asked, found = self.decoded(prepared, before)
        again = [place for place, one in enumerate(found) if self._circles((*before, *one.tokens))]
        again = again if self.beams < BEAMS_AGAIN else []
        if again:
            some, edges = _part(frames, cu_frames, again)
            better = self._decode(some, edges, [asked[place] for place in again], before, BEAMS_AGAIN)
            for place, one in zip(again, better, strict=True):
                found[place] = one
        tokens, finishes = list[tuple[int, ...]](), list[str]()
        for one in found:
            whole, finish = (*before, *one.tokens), "stop" if one.ended else "length"
            if self._circles(whole):
                whole, finish = whole[: max(len(before), loop_start(whole))], "repetition"
            tokens.append(whole)
            finishes.append(finish)
        timed: list[tuple[TimedWord, ...]] = [()] * len(tokens)
        if words:
            times = token_times(self.model, frames, cu_frames, asked, tokens, self.heads)
            timed = [
                tuple(words_of(text, when, self.processor.decode)) for text, when in zip(tokens, times, strict=True)
            ]
        return [
            Written(self.processor.decode(text), text, its_words, finish, place in again, len(prepared[place].ids))
            for place, (text, its_words, finish) in enumerate(zip(tokens, timed, finishes, strict=True))
        ]

    @torch.inference_mode()
    def decoded(
        self, prepared: Sequence[Prepared], before: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor, list[list[int]], list[Hypothesis]]:
        """What is heard of conversations, (frames, their boundaries), their prompts, and their likeliest texts.

        Args:
            prepared: with equally many tokens of text.
            before: tokens that every text begins with, which the texts are then without.
        """
        frames, cu_frames = self.model.heard(self.model.prepare(self.processor.pack(prepared, ragged=True)))
        asked = [one.ids[one.ids != self.processor.sound_id].tolist() for one in prepared]
        return frames, cu_frames, asked, self._decode(frames, cu_frames, asked, before, self.beams)

    def _decode(
        self, frames: Tensor, cu_frames: Tensor, asked: list[list[int]], before: Sequence[int], beams: int
    ) -> list[Hypothesis]:
        config = self.model.config
        return decode(
            self.model,
            frames,
            cu_frames,
            [[*prompt, *before] for prompt in asked],
            stop=config.stop_token_ids[0],
            most=self.most,
            beams=beams,
            length_penalty=self.length_penalty,
            suppress=config.suppressed_ids,
            suppress_first=() if before else config.suppressed_first_ids,
        )

    def _circles(self, tokens: Sequence[int]) -> bool:
        return compression(self.processor.decode(tokens)) > LOOP

    def _turns(self, pcm: Tensor) -> list:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        content = [{"type": "audio", "audio": pcm}, {"type": "text", "text": self.question}]
        return read_conversation([*system, {"role": "user", "content": content}])


def compression(text: str) -> float:
    """Bytes of a text in UTF-8 to bytes of its zlib stream; 0 of an empty text."""
    told = text.encode("utf-8", "replace")
    return len(told) / len(zlib.compress(told))


def loop_start(tokens: Sequence[int]) -> int:
    """Where the longest run of equal rounds at the end of a text begins, of ``ROUNDS`` rounds at least; 0 if none."""
    best = len(tokens)
    for period in range(1, len(tokens) // ROUNDS + 1):
        first = len(tokens) - period
        while first and tokens[first - 1] == tokens[first - 1 + period]:
            first -= 1
        if len(tokens) - first >= ROUNDS * period:
            best = min(best, first)
    return best if best < len(tokens) else 0


def _part(frames: Tensor, cu_frames: Tensor, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The frames of some recordings, and their boundaries."""
    edges = cu_frames.tolist()
    parts = [frames[edges[place] : edges[place + 1]] for place in places]
    bounds = torch.tensor([0, *map(len, parts)]).cumsum(0).to(torch.int32)
    return torch.cat(parts), bounds.to(frames.device)
