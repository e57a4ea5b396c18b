"""Records of a corpus: checking one, and parsing it into a Sample.

Two formats are read: the public ``{"id", "sound": path or paths, "duration", "conversations": [{"from", "value"}]}``,
and our own ``{"id", "axis", "task", "source", "audios": [{"path", "start", "end"}], "duration", "messages": [{"role",
"content"}], "rewards": [{"kind", ...}], "truth": {...}, "events": [...]}``, of which only ``messages`` must be there.
Either may have two answers to compare, ``chosen`` and ``rejected``.
Other tools' variants of both are read too: recordings under ``audios``, ``audio``, ``sounds`` or ``sound``, messages of
either kind under either name, ``<audio>`` for ``<sound>``, and a ``system`` text. Where audio would be lost, the record
is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from afn_model.audio.recording import Audio, measured_seconds
from afn_model.prompt.conversation import Turn, read_conversation
from afn_model.scoring import rewards
from afn_model.storage import join

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
_AUDIOS = ("audios", "audio", "sounds", "sound")
# Keys under which other tools keep recordings. Not read: a record that has nothing else would lose its audio.
_UNREAD = re.compile(
    r"(audio|sound|wav|speech|video|media)_?(s|path|paths|file|files|filepath|filename|url|urls|bytes)?|wavs?", re.I
)
_PLACEHOLDER = re.compile(r"<(?:sound|audio)(-\d+)?>")
_ALIEN = re.compile(r"<\|(?:audio|sound|speech)\w*\|>", re.I)
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character
_MOST_SECONDS = 1e6  # of a record, 11 days: the index is in float32


@dataclass(frozen=True)
class Sample:
    """A record to learn from.

    Args:
        id: of the record, "" where it has none.
        turns: the conversation, with full paths to the recordings.
        seconds: of audio, all recordings together, as the record says; 0 where it does not.
        axis, task, source: what kind of data it is; "" where the record does not say.
        rewards: specifications of the rewards for sampled answers.
        truth: facts about the recordings, for evaluation.
        chosen, rejected: two answers, the first of which is preferred; "" where there are none.
        speed: at which its recordings are played; ``seconds`` are at that speed.
    """

    id: str
    turns: list[Turn]
    seconds: float
    axis: str = ""
    task: str = ""
    source: str = ""
    rewards: tuple[dict, ...] = ()
    truth: dict = field(default_factory=dict)
    chosen: str = ""
    rejected: str = ""
    speed: float = 1.0


def parse(line: bytes) -> dict:
    """A record from its line.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object, not {type(record).__name__}")
    return record


def check(record: dict) -> None:
    """Checks a record against the formats, with its rewards; keys they do not know are allowed.

    Raises:
        ValueError: one line saying what is wrong.
    """
    _checked(record)
    rewards.check(record.get("rewards") or ())


def parse_sample(record: dict, folder: str | Path) -> Sample:
    """Parses a record into a sample. Its recordings are not opened.

    Args:
        record: in either format.
        folder: what relative paths start from, that of the .jsonl file; it may be an address in storage.

    Raises:
        ValueError: what ``check`` complains about.
    """
    turns, seconds = _checked(record), duration(record)
    located = {audio: replace(audio, source=join(folder, audio.source)) for turn in turns for audio in turn.audios}
    turns = [
        replace(turn, parts=tuple(located[part] if isinstance(part, Audio) else part for part in turn.parts))
        for turn in turns
    ]
    axis, task, source = (record.get(key) or "" for key in _TEXTS)
    rewarded, truth = tuple(record.get("rewards") or ()), record.get("truth") or {}
    pair = (record.get("chosen") or "", record.get("rejected") or "")
    return Sample(str(record.get("id", "")), turns, seconds, axis, task, source, rewarded, truth, *pair)


def audios_of(sample: Sample) -> list[Audio]:
    """The recordings of a sample in order of appearance, each as often as it is mentioned."""
    return [audio for turn in sample.turns for audio in turn.audios]


def duration(record: dict) -> float:
    """Seconds of audio that a record says it has, all recordings together; 0 where it says nothing.

    Where a record has no duration, the parts of its recordings that have both ``start`` and ``end`` say it.

    Raises:
        ValueError: no number, or more than 10⁶ seconds.
    """
    seconds = record.get("duration")
    if seconds is None:
        total = _parts_seconds(next((record[key] for key in _AUDIOS if record.get(key)), None))
    else:
        parts = seconds if isinstance(seconds, list) else [seconds]
        if not all(_is_seconds(part) for part in parts):
            raise ValueError(f"duration is {_shown(seconds)}, not a number of seconds up to 10⁶ or a list of them")
        total = float(sum(parts))
    if total > _MOST_SECONDS:
        raise ValueError(f"the durations add up to {total:.3g} s, more than 10⁶")
    return total


def _parts_seconds(audios) -> float:
    """Seconds of parts of recordings; 0 where one has no beginning or end."""
    audios = [audios] if isinstance(audios, dict) else audios
    if not isinstance(audios, list) or not all(isinstance(audio, dict) for audio in audios):
        return 0.0
    parts = [(audio.get("start"), audio.get("end")) for audio in audios]
    if not all(_is_seconds(start) and _is_seconds(end) and start < end for start, end in parts):
        return 0.0
    return float(sum(end - start for start, end in parts))


def _is_seconds(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_SECONDS


def _shown(value) -> str:
    """A value in a message: the beginning of what may be very long."""
    try:
        return f"{value!r:.60}"
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"


def measured_duration(record: dict, folder: str | Path) -> float:
    """Seconds of audio of a record from the headers of its recordings, all of them together, each counted once.

    Raises:
        ValueError: what ``check`` complains about, or a recording that is not there or whose header cannot be read.
    """
    return sum(measured_seconds(audio) for audio in dict.fromkeys(audios_of(parse_sample(record, folder))))


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
    learnt = any(turn.role == "assistant" for turn in turns) or record.get("rewards") or record.get("chosen")
    if not learnt:
        raise ValueError("nothing to learn: neither an assistant message nor rewards")
    return turns


def _check_types(record: dict) -> None:
    if not isinstance(record.get("id", ""), str | int):
        raise ValueError(f"id is {_shown(record['id'])}, not text")
    for key in _TEXTS:
        if not isinstance(record.get(key) or "", str):
            raise ValueError(f"{key} is {_shown(record[key])}, not text")
    specs = record.get("rewards") or []
    if not isinstance(specs, list) or not all(isinstance(r, dict) and isinstance(r.get("kind"), str) for r in specs):
        raise ValueError(f"rewards must be a list of objects with a 'kind', got {specs!r:.80}")
    pair = [record.get(key) or "" for key in ("chosen", "rejected")]
    if not all(isinstance(text, str) for text in pair) or len([text for text in pair if text]) == 1:
        raise ValueError(f"chosen and rejected must be two texts, got {pair!r:.80}")
    for text in filter(None, pair):
        read_conversation([{"role": "assistant", "content": text}])  # raises
    if not isinstance(record.get("truth") or {}, dict):
        raise ValueError(f"truth must be an object, got {record['truth']!r:.80}")
    if not isinstance(record.get("events") or [], list):
        raise ValueError(f"events must be a list, got {record['events']!r:.80}")
    for key in ("id", *_TEXTS, "rewards", "truth", "events", "chosen", "rejected"):
        value = record.get(key)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value else ""
        if _SURROGATE.search(text):
            raise ValueError(f"{key} is not Unicode text: {text!r:.80}")


def _turns(record: dict) -> list[Turn]:
    ours, public = "messages" in record, "conversations" in record
    if ours == public:
        nemo = "; `afn data import` reads NeMo manifests" if "audio_filepath" in record else ""
        raise ValueError("a record needs either 'messages' or 'conversations'" + (", not both" if ours else nemo))
    messages = record["messages" if ours else "conversations"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"messages must be a list of objects, got {messages!r:.80}")
    if not messages:
        raise ValueError("the conversation has no messages")
    messages = [_message(message, ours) for message in messages]
    system = record.get("system") or ""
    if not isinstance(system, str):
        raise ValueError(f"system must be text, got {system!r:.80}")
    if system and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": system}, *messages]
    audios = _given(record)
    messages = _with_our_placeholders(messages, len(audios))
    turns = read_conversation(messages, audios)
    if not any(turn.audios for turn in turns):
        _refuse_lost_audio(record, turns)
    return turns


def _message(message: dict, ours: bool) -> dict:
    """A message with role and content, from either kind of keys."""
    if "role" in message or (ours and "from" not in message):
        return message
    if not isinstance(message.get("value"), str):
        raise ValueError(f"a message's value must be text, got {message.get('value')!r:.80}")
    return {"role": message.get("from"), "content": message["value"]}


def _given(record: dict) -> list:
    """The recordings that placeholders stand for."""
    named = [key for key in _AUDIOS if record.get(key)]
    if len(named) > 1:
        raise ValueError(f"recordings both under {named[0]!r} and under {named[1]!r}")
    if not named:
        return []
    audios = record[named[0]]
    if named[0] == "audios" and not isinstance(audios, list):
        raise ValueError(f"audios must be a list, got {audios!r:.80}")
    return audios if isinstance(audios, list) else [audios]


def _with_our_placeholders(messages: list[dict], audios: int) -> list[dict]:
    """``<audio>`` as ``<sound>``, where there are recordings that ``<sound>`` does not stand for."""
    texts = [text for message in messages for text in _texts(message.get("content"))]
    if not any("<audio" in text for text in texts):
        return messages
    if audios and sum(text.count("<sound") for text in texts):
        return messages  # "<audio>" is something that is talked about

    def ours(text: Any) -> Any:
        return _PLACEHOLDER.sub(lambda match: f"<sound{match[1] or ''}>", text) if isinstance(text, str) else text

    def converted(content: Any) -> Any:
        if not isinstance(content, list):
            return ours(content)
        return [
            part | {"text": ours(part["text"])} if isinstance(part, dict) and "text" in part else part
            for part in content
        ]

    return [message | {"content": converted(message.get("content"))} for message in messages]


def _texts(content: Any) -> list[str]:
    parts = [content] if isinstance(content, str) else content if isinstance(content, list) else []
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def _refuse_lost_audio(record: dict, turns: list[Turn]) -> None:
    """Refuses a record without audio that looks as if it had some."""
    for key, value in record.items():
        named = isinstance(key, str) and key not in _AUDIOS and _UNREAD.fullmatch(key)
        if named and value and isinstance(value, str | list | dict):
            raise ValueError(f"{key!r} is not read; recordings stand under {', '.join(_AUDIOS)}")
    for turn in turns:
        if found := _ALIEN.search(turn.text):
            raise ValueError(
                f"{found[0]} in a text without audio; a recording's place is <sound>, its path in 'audios'"
            )


def _check_audio(audio: Audio) -> None:
    if not isinstance(audio.source, str) or not audio.source:
        raise ValueError(f"an audio's path must be text, got {audio.source!r:.80}")
    for name, value in (("start", audio.start), ("end", audio.end)):
        if value is not None and not _is_seconds(value):
            raise ValueError(f"{audio.source}: {name} is {_shown(value)}, not a number of seconds")
    if audio.end is not None and not audio.end > (audio.start or 0):
        raise ValueError(f"{audio.source}: end {audio.end} s is not after start {audio.start or 0} s")
