"""Transcripts as files that players and other tools read: txt, json, srt, vtt, tsv."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from afn_model.infer.timestamps import Segment, clock


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues, ``HH:MM:SS,mmm``."""
    cues = [
        f"{number}\n{clock(one.start, separator=',')} --> {clock(one.end, separator=',')}\n{_cue(one.text)}\n"
        for number, one in enumerate(segments, 1)
    ]
    return "\n".join(cues)


def to_vtt(segments: Sequence[Segment], note: str = "") -> str:
    """WebVTT; what would be a tag or an entity there is written as entities. ``note`` is a line for readers."""
    escaped = [_cue(one.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for one in segments]
    cues = [f"\n{clock(one.start)} --> {clock(one.end)}\n{text}\n" for one, text in zip(segments, escaped, strict=True)]
    return "WEBVTT\n" + (f"\nNOTE {note}\n" if note else "") + "".join(cues)


def to_tsv(segments: Sequence[Segment]) -> str:
    """Start and end in whole milliseconds and the text, as Whisper writes them."""
    rows = [f"{round(1000 * one.start)}\t{round(1000 * one.end)}\t{' '.join(one.text.split())}\n" for one in segments]
    return "start\tend\ttext\n" + "".join(rows)


def segments_of(row: dict[str, Any]) -> list[Segment]:
    """The segments of an answer's row, which has them as objects."""
    return [Segment(one["start"], one["end"], one["text"]) for one in row["segments"]]


def to_json(row: dict[str, Any]) -> str:
    """The row with its answer as ``text``, beside ``segments``, where readers of Whisper's files look for them."""
    numbered = [{"id": number} | one for number, one in enumerate(row["segments"])]
    rest = {name: value for name, value in row.items() if name not in ("answer", "segments")}
    return json.dumps({"text": row["answer"], "segments": numbered} | rest, indent=2, ensure_ascii=False) + "\n"


# What makes the file of a format from the row of an answer: ``answer``, and ``segments`` with start, end and text.
FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "txt": lambda row: row["answer"] + "\n",
    "json": to_json,
    "srt": lambda row: to_srt(segments_of(row)),
    "vtt": lambda row: to_vtt(segments_of(row)),
    "tsv": lambda row: to_tsv(segments_of(row)),
}


def _cue(text: str) -> str:
    """Without empty lines, which end a cue, and arrows, which begin one."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()).replace("-->", "->")
