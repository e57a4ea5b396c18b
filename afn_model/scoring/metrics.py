"""Scores of answers by data axis: each record's truth says how it is scored.

truth["metric"] is "exact" (the default), "f1", "seconds", "values", "segments", "constraint" or "refusal"; "values"
needs truth["choices"], what each category could have been.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median

import numpy as np

from afn_model.scoring.constraints import obeys
from afn_model.scoring.text import answer_in, normalise, refuses, seconds_in, words_in
from afn_model.scoring.timestamps import match_times, stated_times

_THINK = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
_SEGMENT = re.compile(r"(\d+ to \d+ seconds):([^.:]*)\.")


def score(record: dict, answer: str) -> float:
    """How right an answer is, from 0 to 1, by the record's truth.

    Args:
        record: with a truth, as the world's records have.
        answer: the model's, reasoning included.
    Raises:
        ValueError: a record without a truth, or with an unknown metric.
    """
    truth = record.get("truth") or {}
    metric = truth.get("metric", "exact")
    if metric not in METRICS:
        raise ValueError(f"record {record.get('id')!r}: unknown metric {metric!r}; there are {', '.join(METRICS)}")
    if "answer" not in truth:
        raise ValueError(f"record {record.get('id')!r} has no true answer")
    return METRICS[metric](truth, answer_in(answer))


def timestamps(record: dict, answer: str) -> float:
    """Share of the times stated in the reasoning ("0.4 s bell") that lie within 1 s of such an event; 0 for none.

    Unlike the reward of this name it asks only whether what is said is right: an event left out costs nothing.
    """
    reasoning = _THINK.search(answer)
    if reasoning is None:
        return 0.0
    right, named = match_times(reasoning[1], [(event["label"], event["start"]) for event in record.get("events") or []])
    stated = max(named, len(stated_times(reasoning[1])))  # times of what is not heard are wrong, too
    return right / stated if stated else 0.0


def seconds_off(record: dict, answer: str) -> float:
    """|time answered − true time| in seconds; an answer without a time is as wrong as the recording is long."""
    found, length = seconds_in(answer_in(answer)), record.get("duration") or 0.0
    if found is None:
        return float(sum(length) if isinstance(length, list) else length)
    return abs(found - record["truth"]["seconds"])


def by_axis(records: Iterable[dict], answers: Iterable[str]) -> dict[str, dict[str, float]]:
    """Mean score and number of records of every axis.

    Axis cot also has the mean of ``timestamps``, an axis of times alone the median of ``seconds_off``.

    Raises:
        ValueError: not as many answers as records.
    """
    axes: dict[str, list[tuple[dict, str]]] = defaultdict(list)
    for record, answer in zip(records, answers, strict=True):
        axes[record.get("axis", "")].append((record, answer))
    found = {}
    for axis, pairs in sorted(axes.items()):
        found[axis] = {"score": fmean(score(*pair) for pair in pairs), "n": len(pairs)}
        if axis == "cot":
            found[axis]["timestamps"] = fmean(timestamps(*pair) for pair in pairs)
        if all(record["truth"].get("metric") == "seconds" for record, _ in pairs):
            found[axis]["median_error_s"] = median(seconds_off(*pair) for pair in pairs)
    return found


def word_f1(said: str, true: str) -> float:
    """2 · common / (words said + words true), where common is the longest sequence of words that both hold in order."""
    a, b = words_in(said), words_in(true)
    if not a or not b:
        return float(a == b)
    row = [0] * (len(b) + 1)
    for word in a:
        corner = 0
        for place, other in enumerate(b, 1):
            corner, row[place] = row[place], corner + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(a) + len(b))


def edits(said: Sequence, true: Sequence) -> int:
    """Levenshtein distance: the fewest items of ``said`` to replace, remove or add to get ``true``."""
    names = {item: number for number, item in enumerate(dict.fromkeys([*said, *true]))}
    numbers = np.array([names[item] for item in true], np.int64)
    steps = np.arange(len(true) + 1)
    row = steps.copy()
    for place, item in enumerate(said, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (numbers != names[item]))
        # An item that is left out costs 1 more than what stands before it.
        row = np.minimum.accumulate(np.concatenate(([place], best)) - steps) + steps
    return int(row[-1])


def word_error_rate(said: str, true: str) -> float:
    """Edits of words ÷ words of ``true``, case and punctuation aside; may exceed 1."""
    words = words_in(true)
    return edits(words_in(said), words) / max(len(words), 1)


def character_error_rate(said: str, true: str) -> float:
    """Edits of characters ÷ characters of ``true``, case, punctuation and spaces aside; may exceed 1."""
    characters = "".join(words_in(true))
    return edits("".join(words_in(said)), characters) / max(len(characters), 1)


def _exact(truth: dict, answer: str) -> float:
    return float(normalise(answer) == normalise(truth["answer"]))


def _f1(truth: dict, answer: str) -> float:
    return word_f1(answer, truth["answer"])


def _seconds(truth: dict, answer: str) -> float:
    found = seconds_in(answer)
    return float(found is not None and abs(found - truth["seconds"]) <= truth["within"] + 1e-6)


def _values(truth: dict, answer: str) -> float:
    # A value counts where no other of its category stands beside it: naming all of them earns nothing.
    sections, right = answer.lower().split("then:"), 0
    for key, value in truth["values"].items():
        category, _, place = key.partition("_")
        words = words_in(sections[int(place or 1) - 1]) if int(place or 1) <= len(sections) else []
        right += {word for word in words if word in truth["choices"][category]} == {value}
    return right / len(truth["values"])


def _segments(truth: dict, answer: str) -> float:
    said = dict(_SEGMENT.findall(answer if answer.rstrip().endswith(".") else f"{answer}."))
    true = truth["values"]
    return sum(word_f1(said[when], what) for when, what in true.items() if when in said) / len(
        true.keys() | said.keys()
    )


def _constraint(truth: dict, answer: str) -> float:
    # Half for the form; the other half for what the answer says, which is worth nothing without the form.
    content = truth["label"].lower() in words_in(answer)
    return obeys(answer, truth["constraint"]) * (0.5 + 0.5 * content)


def _refusal(truth: dict, answer: str) -> float:
    return float(refuses(answer) == truth["due"])


METRICS: dict[str, Callable[[dict, str], float]] = {
    "exact": _exact,
    "f1": _f1,
    "seconds": _seconds,
    "values": _values,
    "segments": _segments,
    "constraint": _constraint,
    "refusal": _refusal,
}
