"""Records of a corpus: what is wrong with one in a line, and the sample it becomes.

Two formats are read: the public ``{"id", "sound": path or paths, "duration", "conversations": [{"from", "value"}]}``,
and our own ``{"id", "axis", "task", "source", "audios": [{"path", "start", "end"}], "duration", "messages": [{"role",
"content"}], "rewards": [{"kind", ...}], "truth": {...}, "events": [...]}``, of which only ``messages`` must be there.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from afn_model.audio.recording import Audio, measured_seconds
from afn_model.prompt.conversation import Turn, read_conversation

AXES = (
    "music",
    "talkers",
    "long",
    "skills",
    "multi_audio",
    "multi_turn",
    "safety",
    "multilingual",
    "text",
    "cot",
)
_TEXTS = ("axis", "task", "source")


@dataclass(frozen=True)
class Sample:
    """A record to learn from.

    Args:
        id: of the record, "" where it has none.
        turns: the conversation, with full paths to the recordings.
        seconds: of audio, all recordings together, as the record says; 0 where it does not.
        axis, task, source: what kind of data it is; "" where the record does not say.
        rewards: how answers are judged.
        truth: what is known about the recordings.
    """

    id: str
    turns: list[Turn]
    seconds: float
    axis: str = ""
    task: str = ""
    source: str = ""
    rewards: tuple[dict, ...] = ()
    truth: dict = field(default_factory=dict)


def check(record: dict) -> None:
    """Checks a record against the formats; keys they do not know are allowed.

    Raises:
        ValueError: one line saying what is wrong.
    """
    _checked(record)


def sample(record: dict, folder: str | Path) -> Sample:
    """The sample of a record. Nothing is read from its recordings.

    Args:
        record: in either format.
        folder: what relative paths start from, that of the .jsonl file.

    Raises:
        ValueError: what ``check`` complains about.
    """
    turns, seconds = _checked(record), duration(record)
    found = {
        audio: replace(audio, source=os.path.join(folder, audio.source)) for turn in turns for audio in turn.audios
    }
    turns = [
        replace(turn, parts=tuple(found[part] if isinstance(part, Audio) else part for part in turn.parts))
        for turn in turns
    ]
    axis, task, source = (record.get(key) or "" for key in _TEXTS)
    rewards, truth = tuple(record.get("rewards") or ()), record.get("truth") or {}
    return Sample(str(record.get("id", "")), turns, seconds, axis, task, source, rewards, truth)


def audios_of(sample: Sample) -> list[Audio]:
    """The recordings of a sample in order of appearance, each as often as it is mentioned."""
    return [audio for turn in sample.turns for audio in turn.audios]


def duration(record: dict) -> float:
    """Seconds of audio that a record says it has, all recordings together; 0 where it says nothing.

    Where a record has no duration, the parts of its recordings that have both ``start`` and ``end`` say it.
    """
    seconds = record.get("duration")
    if seconds is None:
        return _parts_seconds(record.get("audios"))
    parts = seconds if isinstance(seconds, list) else [seconds]
    if not all(_is_seconds(part) for part in parts):
        raise ValueError(f"duration is {seconds!r}, not a number of seconds or a list of them")
    return float(sum(parts))


def _parts_seconds(audios) -> float:
    """Seconds of parts of recordings; 0 where one has no beginning or end."""
    if not isinstance(audios, list) or not all(isinstance(audio, dict) for audio in audios):
        return 0.0
    parts = [(audio.get("start"), audio.get("end")) for audio in audios]
    if not all(_is_seconds(start) and _is_seconds(end) and start < end for start, end in parts):
        return 0.0
    return float(sum(end - start for start, end in parts))


def _is_seconds(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def measured_duration(record: dict, folder: str | Path) -> float:
    """Seconds of audio of a record from the headers of its recordings, all of them together, each counted once.

    Raises:
        ValueError: what ``check`` complains about, or a recording that is not there or whose header cannot be read.
    """
    return sum(measured_seconds(audio) for audio in dict.fromkeys(audios_of(sample(record, folder))))


def _checked(record: dict) -> list[Turn]:
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object, not {type(record).__name__}")
    _check_types(record)
    duration(record)
    turns = _turns(record)
    for turn in turns:
        for audio in turn.audios:
            _check_audio(audio)
    audios = {audio for turn in turns for audio in turn.audios}
    lengths = record.get("duration")
    if isinstance(lengths, list) and len(lengths) != len(audios):
        raise ValueError(f"{len(lengths)} durations for {len(audios)} audios")
    if not any(turn.role == "assistant" for turn in turns) and not record.get("rewards"):
        raise ValueError("nothing to learn: neither an assistant message nor rewards")
    return turns


def _check_types(record: dict) -> None:
    if not isinstance(record.get("id", ""), str | int):
        raise ValueError(f"id is {record['id']!r}, not text")
    for key in _TEXTS:
        if not isinstance(record.get(key) or "", str):
            raise ValueError(f"{key} is {record[key]!r:.80}, not text")
    rewards = record.get("rewards") or []
    if not isinstance(rewards, list) or not all(
        isinstance(r, dict) and isinstance(r.get("kind"), str) for r in rewards
    ):
        raise ValueError(f"rewards must be a list of objects with a 'kind', got {rewards!r:.80}")
    if not isinstance(record.get("truth") or {}, dict):
        raise ValueError(f"truth must be an object, got {record['truth']!r:.80}")
    if not isinstance(record.get("events") or [], list):
        raise ValueError(f"events must be a list, got {record['events']!r:.80}")


def _turns(record: dict) -> list[Turn]:
    ours, public = "messages" in record, "conversations" in record
    if ours == public:
        raise ValueError("a record needs either 'messages' or 'conversations'" + (", not both" if ours else ""))
    messages = record["messages" if ours else "conversations"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"messages must be a list of objects, got {messages!r:.80}")
    if not messages:
        raise ValueError("the conversation has no messages")
    audios = record.get("audios" if ours else "sound")
    if not ours:
        for message in messages:
            if not isinstance(message.get("value"), str):
                raise ValueError(f"a message's value must be text, got {message.get('value')!r:.80}")
        return read_conversation(record)
    if audios is not None and not isinstance(audios, list):
        raise ValueError(f"audios must be a list, got {audios!r:.80}")
    return read_conversation(messages, audios)


def _check_audio(audio: Audio) -> None:
    if not isinstance(audio.source, str) or not audio.source:
        raise ValueError(f"an audio's path must be text, got {audio.source!r:.80}")
    for name, value in (("start", audio.start), ("end", audio.end)):
        if value is not None and not _is_seconds(value):
            raise ValueError(f"{audio.source}: {name} is {value!r}, not a number of seconds")
    if audio.end is not None and not audio.end > (audio.start or 0):
        raise ValueError(f"{audio.source}: end {audio.end} s is not after start {audio.start or 0} s")
