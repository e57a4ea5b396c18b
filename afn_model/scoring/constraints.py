"""Forms that an instruction can ask of an answer, such as capital letters; a reward and a metric alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from afn_model.scoring.text import normalise, says

Spec = Mapping[str, Any]


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


def obeys(answer: str, spec: Spec) -> bool:
    """Whether an answer keeps a constraint.

    Args:
        answer: without the reasoning.
        spec: "name", a key of ``CONSTRAINTS``, and the fields that it has.
    Raises:
        ValueError: another name.
    """
    if spec.get("name") not in CONSTRAINTS:
        raise ValueError(f"unknown constraint {spec.get('name')!r}; there are {', '.join(CONSTRAINTS)}")
    return CONSTRAINTS[spec["name"]][0](answer, spec)
