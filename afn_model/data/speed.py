"""Copies of a dataset at another speed: length, pitch and formants change together, as a record player's do.

Source: Ko et al., 2015, Audio augmentation for speech recognition, which copies the training data at 0.9 and 1.1.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from afn_model.audio.resample import resample
from afn_model.checks import is_number, shown
from afn_model.data.records import Sample

SLOWEST, FASTEST = 0.5, 2.0
_DECIMALS = 3
_LAST_TIME = 30.0  # seconds that Whisper's tokens of times go up to, in steps of 0.02
_TOKEN = re.compile(r"<\|(\d+\.\d\d)\|>")
# Times in words: 12.5 s, 3.2 seconds, 1:05.2, [00:12]. Whole seconds and 10:30 are what people say.
_WORDS = re.compile(r"\d\.\d+ ?s(?:ecs?|econds?)?\b|\d:\d\d\.\d|[\[(<]\d+:\d\d\b", re.I)


class StatesTimesError(ValueError):
    """A text with times that would be wrong at another speed."""


def checked_speed(value: object, what: str) -> float:
    """A speed, 0.5 to 2 with at most three decimals.

    Raises:
        ValueError: it is none, with what it is called.
    """
    if not is_number(value) or not SLOWEST <= value <= FASTEST or round(value, _DECIMALS) != value:  # type: ignore
        expected = f"a number from {SLOWEST:g} to {FASTEST:g} with at most {_DECIMALS} decimals is expected"
        raise ValueError(f"{what} is {shown(value)}; {expected}")
    return float(value)  # type: ignore[arg-type]


def at_speed(pcm: Tensor, speed: float) -> Tensor:
    """A recording played ``speed`` times as fast.

    Args:
        pcm: [n] float32.
        speed: 0.5 to 2, taken to three decimals.

    Returns:
        [⌈n / speed⌉] float32 at the same rate, every frequency times ``speed``; what would lie beyond 0.95 of the
        Nyquist frequency is left out.
    """
    ratio = Fraction(round(speed * 10**_DECIMALS), 10**_DECIMALS)
    if ratio == 1:
        return pcm
    found = torch.cat([pcm[:0], *resample([pcm], ratio.numerator, ratio.denominator)])
    return found[: math.ceil(len(pcm) / ratio)]


def sample_at_speed(sample: Sample, speed: float) -> Sample:
    """A sample whose recordings are played at a speed: its seconds, and the tokens ``<|1.20|>`` of its texts.

    Times become t / speed, to the nearest 0.02 s. What a text says of tempo, pitch or length is not found.

    Raises:
        StatesTimesError: a time beyond ``<|30.00|>``, or one in words (12.5 s, 1:05.2, [00:12]).
    """
    if speed == 1:
        return sample
    turns = [replace(turn, parts=tuple(_part(part, speed) for part in turn.parts)) for turn in sample.turns]
    return replace(sample, turns=turns, seconds=sample.seconds / speed, speed=speed)


def _part(part: object, speed: float) -> object:
    if not isinstance(part, str):
        return part
    if found := _WORDS.search(part):
        raise StatesTimesError(f"a text says {found[0]!r}, which is wrong at speed {speed:g}")
    return _TOKEN.sub(lambda found: _moved(float(found[1]), speed), part)


def _moved(time: float, speed: float) -> str:
    moved = round(50 * time / speed) / 50
    if moved > _LAST_TIME:
        raise StatesTimesError(f"at speed {speed:g} {time:.2f} s is {moved:.2f} s, beyond <|{_LAST_TIME:.2f}|>")
    return f"<|{moved:.2f}|>"
