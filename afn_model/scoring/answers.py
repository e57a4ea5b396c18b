"""Scoring short answers: exact match after normalisation, and onset times in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from afn_model.scoring.text import normalise, seconds_in

__all__ = ["accuracy", "normalise", "onset_errors", "onset_summary", "seconds_in"]


def accuracy(answers: Iterable[str], truths: Iterable[str]) -> float:
    """Share of answers that equal the truth after normalisation."""
    pairs = list(zip(answers, truths, strict=True))
    return sum(normalise(a) == normalise(t) for a, t in pairs) / len(pairs)


def onset_errors(answers: Iterable[str], onsets: Iterable[float], worst: float) -> list[float]:
    """|answer − onset| in seconds of every clip; an answer without a number counts as ``worst``."""
    read = [(seconds_in(answer), onset) for answer, onset in zip(answers, onsets, strict=True)]
    return [worst if seconds is None else abs(seconds - onset) for seconds, onset in read]


def onset_summary(errors: list[float]) -> dict[str, float]:
    """Median error in seconds and the share of clips within 0.3 s."""
    return {"median_error_s": median(errors), "within_0.3_s": sum(e <= 0.3 for e in errors) / len(errors)}
