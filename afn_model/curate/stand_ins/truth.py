"""Annotators that know the truth: they answer from a side file with the events of recordings, for tests and the demo.

    annotators:
      captioner: {call: "afn_model.curate.stand_ins.truth:answer", options: {truth: /tmp/world/truth.jsonl}}

Each line of the file is {"source_id", "events": [{"kind": "word", "sound" or "note", "label", "start", "end", "voice",
"speaker"}]}, as records of the synthetic world have them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from afn_model.curate.requests import AnnotationRequest, parts_of
from afn_model.curate.stand_ins.rules import RULES
from afn_model.curate.stand_ins.rules.rule_input import Event, RuleInput


def answer(requests: Sequence[AnnotationRequest], truth: str) -> list[Any]:
    """Replies to requests of any stage that has a rule, from a side file."""
    known = read_truth(truth)
    found: list[Any] = []
    for request in requests:
        parts = [part for message in request.messages for part in parts_of(message)]
        audio = [part["audio"] for part in parts if "audio" in part]
        text = "\n".join(part["text"] for part in parts if "text" in part)
        try:
            events = [between(known[Path(one["path"]).stem], one.get("start"), one.get("end")) for one in audio]
            found.append(RULES[request.prompt](RuleInput(text, events)))
        except KeyError as error:
            found.append(ValueError(f"the truth has nothing of {error}"))
    return found


def read_truth(path: str) -> dict[str, list[dict[str, Any]]]:
    """source id -> events by start."""
    return _read(path, Path(path).stat().st_mtime_ns)


@lru_cache(4)
def _read(path: str, _: int) -> dict[str, list[dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {row["source_id"]: sorted(row["events"], key=lambda one: one["start"]) for row in rows}


def between(events: Sequence[Event], start: float | None, end: float | None) -> list[dict[str, Any]]:
    """Events that are heard between two moments, for the most part, in seconds from the first."""
    start, end, found = start or 0.0, float("inf") if end is None else end, []
    for one in events:
        if start <= (one["start"] + one["end"]) / 2 < end:
            times = {"start": round(max(one["start"], start) - start, 3), "end": round(min(one["end"], end) - start, 3)}
            found.append({**one, **times})
    return found
