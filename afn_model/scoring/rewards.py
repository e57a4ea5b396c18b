"""Rewards: small functions (text, specification) → 0..1, by the kind that a record names them with.

A record has ``"rewards": [{"kind": "exact", "answer": "two", "weight": 1.0}, ...]``. "judge" is asked for elsewhere
(``afn_model.scoring.judge``) and handed in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from afn_model.scoring.text import answer_in, clauses, normalise, says, thought_and_answer, times_in

Spec = Mapping[str, Any]
JUDGE = "judge"
_REFUSAL = re.compile(
    r"\b(i (can(no|')t|can not|won't|will not|am unable|am not able|must decline|have to decline|refuse)"
    r"|i'm (unable|not able|sorry,? (but )?i (can|won))|sorry,? (but )?i (can(no|')t|won't)"
    r"|(can(no|')t|unable to) (help|assist|comply|answer))\b"
)


def formatted(text: str, spec: Spec) -> float:
    """1 for ``<think>…</think><answer>…</answer>`` with something in both."""
    parts = thought_and_answer(text)
    return float(parts is not None and all(parts))


def exact(text: str, spec: Spec) -> float:
    """1 where the answer equals ``answer`` after normalisation, or one of them where it is a list."""
    right = spec["answer"] if isinstance(spec["answer"], list) else [spec["answer"]]
    return float(normalise(answer_in(text)) in [normalise(str(answer)) for answer in right])


def caption(text: str, spec: Spec) -> float:
    """Share of the ``values`` {category: value or list of values} that the answer names."""
    values = [v for value in spec["values"].values() for v in (value if isinstance(value, list) else [value])]
    answer = answer_in(text)
    return sum(says(answer, str(value)) for value in values) / len(values)


def constraint(text: str, spec: Spec) -> float:
    """1 where the answer keeps the constraint ``name``; see ``CONSTRAINTS``."""
    return float(CONSTRAINTS[spec["name"]][0](answer_in(text), spec))


def refusal(text: str, spec: Spec) -> float:
    """1 where the answer declines exactly when that is ``due``."""
    declines = _REFUSAL.search(answer_in(text).lower().replace("\u2019", "'")) is not None
    return float(declines == spec["due"])


def timestamps(text: str, spec: Spec) -> float:
    """Times named right, divided by the events or the times named for them, whichever are more.

    An event [label, seconds] is named right by a clause that holds its label and, first of its times, one within
    ``within`` seconds (1 by default). The reasoning counts. Every clause serves one event.
    """
    labels = {normalise(label) for label, _ in spec["events"]}
    named = [
        (label, times[0])
        for clause in clauses(text)
        if (times := times_in(clause))
        for label in labels
        if says(clause, label)
    ]
    left, right = list(named), 0
    for label, seconds in sorted(spec["events"], key=lambda event: event[1]):
        near = [one for one in left if one[0] == normalise(label) and abs(one[1] - seconds) <= spec.get("within", 1.0)]
        if near:
            left.remove(min(near, key=lambda one: abs(one[1] - seconds)))
            right += 1
    return right / max(len(spec["events"]), len(named))


REWARDS: dict[str, Callable[[str, Spec], float]] = {
    "format": formatted,
    "exact": exact,
    "caption": caption,
    "constraint": constraint,
    "refusal": refusal,
    "timestamps": timestamps,
}
KINDS = (*REWARDS, JUDGE)


def _words(answer: str, spec: Spec) -> bool:
    count = len(answer.split())
    return spec.get("min", 0) <= count <= spec.get("max", count) and count == spec.get("exact", count)


def _repeats(answer: str, spec: Spec) -> bool:
    found = re.findall(rf"(?<!\w){re.escape(normalise(spec['text']))}(?!\w)", answer.lower())
    return len(found) == spec["times"]


def _is_json(answer: str, spec: Spec) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    keys = spec.get("keys", [])
    return isinstance(found, dict | list) and (not keys or (isinstance(found, dict) and set(keys) <= set(found)))


# Whether an answer keeps a constraint, and the fields that its specification must have, with their types.
CONSTRAINTS: dict[str, tuple[Callable[[str, Spec], bool], dict[str, type | tuple[type, ...]]]] = {
    "upper": (lambda answer, spec: answer.isupper(), {}),
    "lower": (lambda answer, spec: answer.islower(), {}),
    "starts": (lambda answer, spec: answer.lower().startswith(spec["text"].lower()), {"text": str}),
    "ends": (lambda answer, spec: normalise(answer).endswith(normalise(spec["text"])), {"text": str}),
    "contains": (lambda answer, spec: says(answer, spec["text"]), {"text": str}),
    "repeat": (_repeats, {"text": str, "times": int}),
    "words": (_words, {}),
    "json": (_is_json, {}),
}
_FIELDS = {
    "format": {},
    "exact": {"answer": (str, list, int, float)},
    "caption": {"values": dict},
    "constraint": {"name": str},
    "refusal": {"due": bool},
    "timestamps": {"events": list},
    JUDGE: {"rubric": str},
}


def check(specs: Iterable[Spec]) -> None:
    """Checks the rewards of a record.

    Raises:
        ValueError: one line: an unknown kind or constraint, a field that is absent or of another type.
    """
    for spec in specs:
        kind = spec.get("kind")
        if kind not in KINDS:
            raise ValueError(f"reward kind {kind!r} is none of {', '.join(KINDS)}")
        _need(spec, _FIELDS[kind], f"reward {kind}")
        weight = spec.get("weight", 1.0)
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < float("inf"):
            raise ValueError(f"reward {kind}: weight is {weight!r}, expected a number above zero")
        if kind == "constraint":
            _check_constraint(spec)
        if kind == "caption" and (not spec["values"] or [] in spec["values"].values()):
            raise ValueError("reward caption: no values")
        if kind == "timestamps":
            _check_events(spec)


def _check_constraint(spec: Spec) -> None:
    name = spec["name"]
    if name not in CONSTRAINTS:
        raise ValueError(f"reward constraint: {name!r} is none of {', '.join(CONSTRAINTS)}")
    _need(spec, CONSTRAINTS[name][1], f"reward constraint {name}")
    if name == "words":
        bounds = {key: spec[key] for key in ("min", "max", "exact") if key in spec}
        if not bounds or not all(isinstance(bound, int) and bound >= 0 for bound in bounds.values()):
            raise ValueError(f"reward constraint words: needs min, max or exact as whole numbers, got {dict(spec)}")


def _check_events(spec: Spec) -> None:
    for event in spec["events"]:
        pair = isinstance(event, list | tuple) and len(event) == 2
        if not pair or not isinstance(event[0], str) or not isinstance(event[1], int | float):
            raise ValueError(f"reward timestamps: an event is [label, seconds], got {event!r:.80}")
    if not spec["events"] or not isinstance(spec.get("within", 1.0), int | float):
        raise ValueError(f"reward timestamps: {len(spec['events'])} events within {spec.get('within', 1.0)!r} seconds")


def _need(spec: Spec, fields: Mapping[str, type | tuple[type, ...]], what: str) -> None:
    for name, kind in fields.items():
        if not isinstance(spec.get(name), kind):
            raise ValueError(f"{what}: {name} is {spec.get(name)!r:.60}, got {dict(spec)!r:.120}")


def reward(text: str, specs: Iterable[Spec], judged: Iterable[float] = ()) -> dict[str, float]:
    """The reward of every kind, the weighted mean where a kind comes twice.

    Args:
        text: the whole answer, reasoning included.
        specs: of the record, checked.
        judged: what the judge says to its specifications, in order; without them they are left out.
    """
    sums: dict[str, list[float]] = {}
    judged = iter(judged)
    for spec in specs:
        value = next(judged, None) if spec["kind"] == JUDGE else REWARDS[spec["kind"]](text, spec)
        if value is not None:
            entry = sums.setdefault(spec["kind"], [0.0, 0.0])
            entry[0] += spec.get("weight", 1.0) * value
            entry[1] += spec.get("weight", 1.0)
    return {kind: value / weight for kind, (value, weight) in sums.items()}


def total(found: Mapping[str, float], specs: Iterable[Spec]) -> float:
    """Σ weight · reward / Σ weight over the specifications whose kind was found; 0 where there is none."""
    weights = [(spec["kind"], spec.get("weight", 1.0)) for spec in specs if spec["kind"] in found]
    return sum(weight * found[kind] for kind, weight in weights) / (sum(weight for _, weight in weights) or 1.0)
