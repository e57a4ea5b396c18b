"""Stated times, confirmed by listening again: is what a sentence says heard where it says?

For each time the model hears a few seconds and is asked yes or no; the odds of the two words are how sure it is.

    asked = questions(times, text, pcm)                       # one conversation for each time
    ... one token of each, by ASKED ...
    log_odds(top_logprobs, processor)                         # > 0: yes

Source: temporal chains of thought whose steps are heard again, arXiv 2604.22245.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from afn_model.audio.recording import Audio
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import MOST_LOGPROBS, SamplingParams
from afn_model.infer.stated_times import StatedTime
from afn_model.infer.time_checks import sentence_of
from afn_model.infer.timestamps import clock
from afn_model.prompt.conversation import Turn

if TYPE_CHECKING:
    from afn_model.prompt.processor import AFNextProcessor

BEFORE, BEHIND = 2.0, 6.0  # seconds heard around a moment; around a span BEFORE on both sides
LONGEST = 30.0  # seconds, a window of the encoder
# Without a repetition penalty, which the words "yes" and "no" of the question would bring on themselves.
ASKED = SamplingParams(max_new_tokens=1, logprobs=MOST_LOGPROBS, temperature=0.0, repetition_penalty=1.0)
QUESTION = (
    "This is the part from {start} to {end} of a recording. Somebody wrote: “{sentence}” "
    "Is that heard in this part, at the time that is stated? Answer yes or no."
)
_TAG = re.compile(r"<[|/]?[\w-]{0,40}\|?>|\[/?[A-Z]{3,20}\]")


def excerpt(time: StatedTime, seconds: float) -> tuple[float, float]:
    """The seconds that are heard for a time: [t - 2, t + 6], or a span and 2 s on both sides, 30 s at most.

    Of a longer span it is the beginning. What lies outside of the recording is left out.
    """
    first = min(time.start, time.start if time.end is None else time.end)
    last = first + BEHIND if time.end is None else max(time.start, time.end) + BEFORE
    start = max(0.0, first - BEFORE)
    return start, max(start, min(last, start + LONGEST, seconds))


def questions(times: Sequence[StatedTime], text: str, recording: Tensor) -> list[list[Turn] | None]:
    """A conversation for each time, about the sentence that states it; None where there is nothing to hear.

    Args:
        times: of the text.
        text: which they are from.
        recording: [n] samples at 16 kHz, float32 or int16.
    """
    asked: list[list[Turn] | None] = []
    for time in times:
        start, end = excerpt(time, len(recording) / SAMPLE_RATE)
        heard = recording[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        if len(heard) < MIN_SAMPLES:
            asked.append(None)
            continue
        sentence = " ".join(_TAG.sub(" ", text[slice(*sentence_of(text, time.span))]).split())
        said = QUESTION.format(start=_clock(start), end=_clock(end), sentence=sentence)
        asked.append([Turn("user", (Audio(heard.clone()), said))])
    return asked


def log_odds(top_logprobs: Sequence[tuple[int, float]], processor: AFNextProcessor) -> float | None:
    """log p(yes) - log p(no) of the first token of an answer, in nats.

    p sums over all tokens that are the word, in any case and with spaces around it. Where one of the words is not among
    the likeliest tokens, it counts as likely as the last of these, or as what they leave, whichever is less: the odds
    are at least that far on the other's side.

    Args:
        top_logprobs: (token id, log-probability) of the likeliest tokens, likeliest first.
        processor: of the model.

    Returns:
        None where neither word is among them.
    """
    shares = {"yes": 0.0, "no": 0.0}
    for token, logprob in top_logprobs:
        word = processor.decode([token]).strip(" .,!\n\t").lower()
        if word in shares:
            shares[word] += math.exp(logprob)
    if not any(shares.values()):
        return None
    rest = 1.0 - sum(math.exp(logprob) for _, logprob in top_logprobs)
    least = max(min(rest, math.exp(top_logprobs[-1][1])), 1e-12)
    yes, no = (share or least for share in shares.values())
    return math.log(yes) - math.log(no)


def verify(
    engine: Engine, processor: AFNextProcessor, times: Sequence[StatedTime], text: str, recording: Tensor
) -> list[float | None]:
    """The log-odds for each time that it is right, all asked at once; None where there is nothing to hear or no answer.

    Args:
        engine: nobody else makes its steps.
        processor: of the model.
        times, text, recording: as of ``questions``.
    """
    asked = questions(times, text, recording)
    prepared = [processor.prepare(turns) for turns in asked if turns is not None]
    if not prepared:
        return [None] * len(asked)
    requests = engine.add(processor.pack(prepared), ASKED)
    with torch.inference_mode():
        engine.run()
    top = iter(request.answers[0].top for request in requests)
    found = [None if turns is None else next(top) for turns in asked]
    return [log_odds(one[0], processor) if one else None for one in found]


def _clock(seconds: float) -> str:
    return clock(seconds, 1, hours=seconds >= 3600)
