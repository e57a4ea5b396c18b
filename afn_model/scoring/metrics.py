"""Scores of answers by data axis: each record's truth says how it is scored.

truth["metric"] is "exact" (the default), "f1", "seconds", "values", "segments", "constraint" or "refusal"; "values"
needs truth["choices"], what each category could have been.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from afn_model.scoring.text import answer_in, normalise, seconds_in

_THINK = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
_STATED = re.compile(r"(\d+(?:\.\d+)?)\s*s\b\s*([^\W\d]+)")
_SEGMENT = re.compile(r"(\d+ to \d+ seconds):([^.:]*)\.")
_REFUSAL = re.compile(r"\b(cannot|can't|can not|unable|must not|will not|won't)\b")


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
    """Share of the events stated in the reasoning ("0.4 s bell") that lie within 1 s of such an event; 0 for none.

    An event of the record answers for one statement only.
    """
    reasoning = _THINK.search(answer)
    stated = [(label.lower(), float(time)) for time, label in _STATED.findall(reasoning.group(1) if reasoning else "")]
    left = [(event["label"].lower(), event["start"]) for event in record.get("events") or []]
    right = 0
    for label, time in stated:
        near = [(abs(start - time), place) for place, (other, start) in enumerate(left) if other == label]
        if near and min(near)[0] <= 1.0:
            left.pop(min(near)[1])
            right += 1
    return right / len(stated) if stated else 0.0


def by_axis(records: Iterable[dict], answers: Iterable[str]) -> dict[str, dict[str, float]]:
    """Mean score and number of records of every axis; axis cot also has the mean of ``timestamps``.

    Raises:
        ValueError: not as many answers as records.
    """
    scores, times = defaultdict(list), []
    for record, answer in zip(records, answers, strict=True):
        scores[record.get("axis", "")].append(score(record, answer))
        if record.get("axis") == "cot":
            times.append(timestamps(record, answer))
    found = {axis: {"score": sum(values) / len(values), "n": len(values)} for axis, values in sorted(scores.items())}
    if times:
        found["cot"]["timestamps"] = sum(times) / len(times)
    return found


def word_f1(said: str, true: str) -> float:
    """2 · common / (words said + words true), where common is the longest sequence of words that both hold in order."""
    a, b = _words(said), _words(true)
    if not a or not b:
        return float(a == b)
    row = [0] * (len(b) + 1)
    for word in a:
        corner = 0
        for place, other in enumerate(b, 1):
            corner, row[place] = row[place], corner + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(a) + len(b))


def obeys(constraint: dict, answer: str) -> bool:
    """Whether an answer has the form it should have, whatever it says.

    Args:
        constraint: "name" is "upper", "repeat" (with "times"), "starts" (with "text") or "words" (with "exact").
        answer: without the reasoning.
    Raises:
        ValueError: another name.
    """
    name, words = constraint.get("name"), _words(answer)
    if name == "upper":
        return answer.isupper()
    if name == "repeat":
        once = words[: len(words) // constraint["times"]]
        return bool(once) and words == once * constraint["times"]
    if name == "starts":
        return answer.lower().startswith(constraint["text"].lower())
    if name == "words":
        return len(answer.split()) == constraint["exact"]
    raise ValueError(f"unknown constraint {name!r}")


def refuses(answer: str) -> bool:
    """Whether an answer declines to answer."""
    return bool(_REFUSAL.search(answer.lower()))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+|\[|\]", text.lower())


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
        words = _words(sections[int(place or 1) - 1]) if int(place or 1) <= len(sections) else []
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
    content = truth["label"].lower() in _words(answer)
    return obeys(truth["constraint"], answer) * (0.5 + 0.5 * content)


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
