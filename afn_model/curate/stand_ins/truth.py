"""Annotators that know the truth: they answer from a side file with the events of recordings, for tests and the demo.

    annotators:
      captioner: {call: "afn_model.curate.stand_ins.truth:answer", options: {truth: /tmp/world/truth.jsonl}}

Each line of the file is {"source_id", "events": [{"kind": "word", "sound" or "note", "label", "start", "end", "voice",
"speaker"}]}, as records of the synthetic world have them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from afn_model.curate.requests import AnnotationRequest, parts_of

Event = Mapping[str, Any]


@dataclass(frozen=True)
class RuleInput:
    """What a rule gets.

    Args:
        text: of the request.
        events: that are heard in its recordings, those of each in a list, in seconds from the beginning of what was
            sent.
    """

    text: str
    events: Sequence[Sequence[Event]] = ()

    @property
    def first(self) -> Sequence[Event]:
        return self.events[0] if self.events else ()


def caption(asked: RuleInput) -> str:
    """What happens in order: runs of words of one voice, sounds, notes."""
    told = []
    for (kind, what), _ in groupby(asked.first, key=lambda one: (one["kind"], _what(one))):
        told.append(f"a {what or 'voice'} speaks" if kind == "word" else f"{_article(what)} is heard")
    return f"{', then '.join(told)}.".capitalize() if told else "There is silence, and nothing else is heard."


def voices(asked: RuleInput) -> str:
    told = []
    for voice in dict.fromkeys(_what(one) for one in asked.first if one["kind"] == "word"):
        said = [one for one in asked.first if one["kind"] == "word" and _what(one) == voice]
        pace = sum(one["end"] - one["start"] for one in said) / len(said)
        told.append(f"A {voice or 'voice'} speaks {'slowly' if pace > 0.6 else 'fast'} and calmly.")
    return " ".join(told) or "Nobody speaks here."


def transcript(asked: RuleInput) -> dict[str, Any]:
    said = [one for one in asked.first if one["kind"] == "word"]
    words = [{"word": one["label"], "start": one["start"], "end": one["end"]} for one in said]
    languages = [one.get("language") or "en" for one in said] or [""]
    language = max(languages, key=languages.count)
    return {"text": " ".join(one["word"] for one in words), "language": language, "words": words}


def turns(asked: RuleInput) -> dict[str, Any]:
    said = [one for one in asked.first if one["kind"] == "word"]
    return {
        "turns": [
            {"speaker": one.get("speaker") or _what(one) or "voice", "start": one["start"], "end": one["end"]}
            for one in said
        ]
    }


def merge(asked: RuleInput) -> dict[str, Any]:
    """All that the lines say by ear, in one caption."""
    lines = dict(line.split(": ", 1) for line in asked.text.splitlines() if line.split(": ")[0] in _LINES)
    told = [lines[name] for name in ("sound", "voice") if name in lines]
    if "speech" in lines:
        told.append(f'The words are "{lines["speech"]}".')
    return {"caption": " ".join(told) or "Somebody speaks.", "events": [one.rstrip(".") for one in told[:1]]}


def merge_whole(asked: RuleInput) -> dict[str, Any]:
    told = [line.split(" s: ", 1)[1] for line in asked.text.splitlines() if " s: " in line]
    told = list(dict.fromkeys(told))
    return {"caption": " ".join(told), "events": [one.split(".")[0] for one in told]}


_LINES = ("sound", "speech", "voice", "speakers", "seen")
# By the name of the prompt. Other stages add theirs.
RULES: dict[str, Callable[[RuleInput], str | dict[str, Any]]] = {
    "caption": caption,
    "voices": voices,
    "transcript": transcript,
    "diarise": turns,
    "merge": merge,
    "merge_whole": merge_whole,
}


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


def _what(event: Event) -> str:
    return event.get("voice") or "" if event["kind"] == "word" else event["label"]


def _article(what: str) -> str:
    return f"{'an' if what[:1] in 'aeiou' else 'a'} {what}"
