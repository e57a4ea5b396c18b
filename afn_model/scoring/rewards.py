"""Rewards: small functions (text, specification) → 0..1, by the kind that a record names them with.

A record has ``"rewards": [{"kind": "exact", "answer": "two", "weight": 1.0}, ...]``. "judge" and "python" are asked for
elsewhere (``afn_model.scoring.judge`` and ``own``) and handed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from afn_model.scoring.constraints import CONSTRAINTS, Spec, obeys
from afn_model.scoring.metrics import character_error_rate, word_error_rate
from afn_model.scoring.text import answer_in, normalise, refuses, says, thought_and_answer
from afn_model.scoring.timestamps import WITHIN, match_times

JUDGE, PYTHON = "judge", "python"
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


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
    return float(obeys(answer_in(text), spec))


def refusal(text: str, spec: Spec) -> float:
    """1 where the answer declines exactly when that is ``due``."""
    return float(refuses(answer_in(text)) == spec["due"])


def timestamps(text: str, spec: Spec) -> float:
    """Times stated right, divided by the events or the times stated for them, whichever are more.

    An event is [label, seconds]; a time may be off by ``within`` seconds (1 by default). The reasoning counts.
    """
    right, stated = match_times(text, spec["events"], spec.get("within", WITHIN))
    return right / max(len(spec["events"]), stated)


def wer(text: str, spec: Spec) -> float:
    """1 − word error rate to ``text``, and 0 where that is above 1; see ``afn_model.scoring.metrics``."""
    return max(0.0, 1.0 - word_error_rate(answer_in(text), spec["text"]))


def cer(text: str, spec: Spec) -> float:
    """1 − character error rate to ``text``, and 0 where that is above 1: for languages without spaces."""
    return max(0.0, 1.0 - character_error_rate(answer_in(text), spec["text"]))


REWARDS: dict[str, Callable[[str, Spec], float]] = {
    "format": formatted,
    "exact": exact,
    "caption": caption,
    "constraint": constraint,
    "refusal": refusal,
    "timestamps": timestamps,
    "wer": wer,
    "cer": cer,
}
KINDS = (*REWARDS, JUDGE, PYTHON)


_FIELDS = {
    "format": {},
    "exact": {"answer": (str, list, int, float)},
    "caption": {"values": dict},
    "constraint": {"name": str},
    "refusal": {"due": bool},
    "timestamps": {"events": list},
    "wer": {"text": str},
    "cer": {"text": str},
    JUDGE: {"rubric": str},
    PYTHON: {"function": str},
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
        if kind in ("wer", "cer") and not spec["text"].strip():
            raise ValueError(f"reward {kind}: text is empty")
        if kind == PYTHON and not _FUNCTION.fullmatch(spec["function"]):
            raise ValueError(f"reward python: function is {spec['function']!r:.60}, expected package.module:name")


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


def reward(
    text: str, specs: Iterable[Spec], judged: Iterable[float] = (), own: Iterable[float] = ()
) -> dict[str, float]:
    """The reward of every kind, the weighted mean where a kind comes twice.

    Args:
        text: the whole answer, reasoning included.
        specs: of the record, checked.
        judged: what the judge says to its specifications, in order; without them they are left out.
        own: what functions of one's own return for theirs, in order; without them they are left out.
    """
    sums: dict[str, list[float]] = {}
    given = {JUDGE: iter(judged), PYTHON: iter(own)}
    for spec in specs:
        kind = spec["kind"]
        value = next(given[kind], None) if kind in given else REWARDS[kind](text, spec)
        if value is not None:
            entry = sums.setdefault(spec["kind"], [0.0, 0.0])
            entry[0] += spec.get("weight", 1.0) * value
            entry[1] += spec.get("weight", 1.0)
    return {kind: value / weight for kind, (value, weight) in sums.items()}


def total(found: Mapping[str, float], specs: Iterable[Spec]) -> float:
    """Σ weight · reward / Σ weight over the specifications whose kind was found; 0 where there is none."""
    weights = [(spec["kind"], spec.get("weight", 1.0)) for spec in specs if spec["kind"] in found]
    return sum(weight * found[kind] for kind, weight in weights) / (sum(weight for _, weight in weights) or 1.0)
