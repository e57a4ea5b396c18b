"""What is heard in a part of a recording, from the truth, and captions that are merged of it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from afn_model.curate.stand_ins.rules.rule_input import Event, Rule, RuleInput, moments_in


def caption(asked: RuleInput) -> str:
    """What happens in order: runs of words of one voice, sounds, notes; "while" where one begins before those before
    it are over."""
    told, over = "", 0.0
    for (kind, what), some in groupby(asked.first, key=lambda one: (one["kind"], _what(one))):
        run = list(some)
        told += f", {'while' if run[0]['start'] < over else 'then'} " if told else ""
        told += f"a {what or 'voice'} speaks" if kind == "word" else f"{_article(what)} is heard"
        over = max(over, *(one["end"] for one in run))
    return f"{told}.".capitalize() if told else "There is silence, and nothing else is heard."


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
    told = list(dict.fromkeys(one.text for one in moments_in(asked.text)))
    return {"caption": " ".join(told), "events": [one.split(".")[0] for one in told]}


_LINES = ("sound", "speech", "voice", "speakers", "seen")


def _what(event: Event) -> str:
    return event.get("voice") or "" if event["kind"] == "word" else event["label"]


def _article(what: str) -> str:
    return f"{'an' if what[:1] in 'aeiou' else 'a'} {what}"


RULES: dict[str, Rule] = {
    "caption": caption,
    "voices": voices,
    "transcript": transcript,
    "diarise": turns,
    "merge": merge,
    "merge_whole": merge_whole,
}
