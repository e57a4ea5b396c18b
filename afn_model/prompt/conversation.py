"""Conversations: the forms they may be written in, and the prompt they become.

Every form is read into turns of text and audio; a Jinja template renders the turns with one ``<sound>`` per audio.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.recording import Audio
from afn_model.checks import is_listed, is_number, shown

SOUND = "<sound>"
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|sound_bos|>", "<|sound_eos|>")
_PLACEHOLDER = re.compile(r"<sound(?:-(\d+))?>")
_BYTES = (bytes, bytearray, memoryview)
_ALONE = re.compile(r"<sound(?:-1)?>\n|\n<sound(?:-1)?>|<sound(?:-1)?>")


@dataclass(frozen=True)
class Turn:
    """One message. ``role`` is system, user or assistant; ``parts`` are text and audio in the order they are read."""

    role: str
    parts: tuple[str | Audio, ...]

    @property
    def audios(self) -> list[Audio]:
        return [part for part in self.parts if isinstance(part, Audio)]

    @property
    def text(self) -> str:
        """The turn with ``<sound>`` for each audio."""
        return "".join(SOUND if isinstance(part, Audio) else part for part in self.parts)


# A second of silence: a prompt of no weight for a rank that must run every part of the model and has no audio.
SILENCE = [Turn("user", (Audio(torch.zeros(SAMPLE_RATE, dtype=torch.float32, device="cpu")), "-"))]


def is_conversation(value) -> bool:
    """Whether ``value`` is one conversation, rather than a list of them; ValueError if it is neither."""
    if not isinstance(value, dict) and not is_listed(value):
        raise ValueError(f"a conversation or a list of them is expected, got {shown(value)}")
    return isinstance(value, dict) or (len(value) > 0 and isinstance(value[0], dict) and "role" in value[0])


def read_conversation(conversation: dict | Sequence[dict], audios=None) -> list[Turn]:
    """Reads any of the accepted forms of a conversation.

    - messages: ``{"role": system|user|assistant, "content": text or parts}``, parts being
      ``{"type": "text", "text": ...}`` and ``{"type": "audio", "audio"|"path"|"url": source}`` with optional
      ``sampling_rate``, ``start`` and ``end``; an ``Audio`` as source says them itself;
    - messages whose text has ``<sound>``, or ``<sound-1>``, ``<sound-2>``, ... (which may repeat), and ``audios``, each
      a path, bytes, an open file, an array, the ``{"array", "sampling_rate"}`` or ``{"bytes", "path"}`` of an audio
      column of ``datasets``, a pair (array, rate), or a list of samples;
    - the public record ``{"id", "sound": path or paths, "conversations": [{"from": human|gpt, "value": text}]}``.

    A conversation's only audio is put before the text of its turn, as the released models were trained; the line
    break that set its placeholder apart goes. Several audios stay where they are written.

    Args:
        conversation: messages or a record.
        audios: the recordings that placeholders stand for, in order; a record brings its own.

    Returns:
        turns.

    Raises:
        ValueError: another shape of conversation, placeholders and audios that do not match, a control token of the
            prompt inside a text, or a text with half a character in it (a lone surrogate).
    """
    if isinstance(conversation, dict):
        if audios is not None or "conversations" not in conversation:
            raise ValueError("a record needs a 'conversations' list and brings its own audio under 'sound'")
        messages = [(m.get("from"), m.get("value")) for m in _messages(conversation["conversations"])]
        audios = conversation.get("sound")
    else:
        messages = [(m.get("role"), m.get("content")) for m in _messages(conversation)]
    if not messages:
        raise ValueError("the conversation has no messages")
    given = [_as_audio(audio) for audio in _as_list(audios)]
    places = [_PLACEHOLDER.findall(text) for _, content in messages for text in _texts(content)]
    written = sum(_count_parts(content) for _, content in messages)
    order = _resolve([number for found in places for number in found], given)
    alone = len(order) + written == 1
    rest = iter(order)
    turns = []
    for number, (role, content) in enumerate(messages):
        turns.append(Turn(_role(role), tuple(_parts(content, rest, alone, f"message {number}"))))
    return turns


def _messages(value) -> Sequence[dict]:
    if not is_listed(value) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"a conversation must be a record or a list of messages, got {shown(value)}")
    return value


def _as_list(audios) -> list:
    if audios is None or (isinstance(audios, str) and not audios):
        return []
    if not isinstance(audios, (list, tuple)):
        return [audios]
    # One recording: its samples, or (samples, rate).
    alone = (len(audios) > 0 and isinstance(audios[0], float)) or (len(audios) == 2 and is_number(audios[1]))
    return [audios] if alone else list(audios)


def _as_audio(audio) -> Audio:
    if isinstance(audio, Audio):
        return audio
    return _part_audio(audio) if isinstance(audio, dict) else _source_audio(audio)


def _part_audio(part: dict) -> Audio:
    if part.get("array") is not None or isinstance(part.get("bytes"), _BYTES):  # datasets' audio column
        return _source_audio(part)
    source = next((part[key] for key in ("audio", "path", "url") if part.get(key) is not None), None)
    if source is None:
        raise ValueError(f"an audio part needs 'audio', 'path' or 'url', got {shown(sorted(map(str, part)))}")
    if isinstance(source, Audio):
        return source
    return _source_audio(source, part.get("sampling_rate"), part.get("start"), part.get("end"))


def _source_audio(source: Any, rate: Any = None, start: Any = None, end: Any = None) -> Audio:
    """A recording from any of its forms; one that brings its rate or its part wins over what is beside it."""
    if isinstance(source, dict):
        samples, data = source.get("array"), source.get("bytes")
        if isinstance(samples, str) or (data is not None and not isinstance(data, _BYTES)):  # no path, nor base64
            raise ValueError(f"an audio part needs 'array', 'bytes' or 'path', got {shown(source)}")
        rate, start, end = (
            beside if source.get(key) is None else source[key]
            for key, beside in (("sampling_rate", rate), ("start", start), ("end", end))
        )
        source = samples if samples is not None else data if data is not None else source.get("path")
    elif isinstance(source, (list, tuple)) and len(source) == 2 and not is_number(source[0]):
        source, rate = source
    if isinstance(source, (list, tuple)):
        try:
            samples = np.asarray(source)
        except (TypeError, ValueError, OverflowError):
            samples = np.asarray(None)
        if samples.dtype.kind not in "fiu":
            raise ValueError(f"a recording's samples must be numbers, got {shown(source)}")
        source = samples.astype(np.float64)
    if isinstance(source, str):
        source = source.removeprefix("file://")
    hertz: Any = int(rate) if isinstance(rate, float) and rate.is_integer() else rate
    return Audio(source, hertz, start, end)


def _texts(content) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"a message's content must be text or a list of parts, got {shown(content)}")
    return [_part_text(part) for part in content if part.get("type") == "text"]


def _part_text(part: dict) -> str:
    if not isinstance(part.get("text"), str):
        raise ValueError(f"a text part needs 'text', got {shown(part)}")
    return part["text"]


def _count_parts(content) -> int:
    return 0 if isinstance(content, str) else sum(part.get("type") == "audio" for part in content)


def _resolve(numbers: list[str], given: list[Audio]) -> list[Audio]:
    """The audio of each placeholder, from their numbers ('' for a plain ``<sound>``)."""
    numbered = [int(number) for number in numbers if number]
    if not numbered and len(numbers) == len(given):
        return given
    if numbered and len(numbered) == len(numbers) and set(numbered) == set(range(1, len(given) + 1)):
        return [given[number - 1] for number in numbered]
    if numbered:
        found = ", ".join(dict.fromkeys(f"<sound-{number}>" if number else SOUND for number in numbers))
        raise ValueError(f"{len(set(numbers))} different placeholders ({found}), but {len(given)} audios")
    raise ValueError(f"{len(numbers)} {SOUND} placeholders, but {len(given)} audios")


def _role(role) -> str:
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"role {shown(role)} is none of {', '.join(_ROLES)}")
    return _ROLES[role]


def _parts(content, audios, alone: bool, where: str) -> list[str | Audio]:
    """A message's parts, taking one of ``audios`` for every placeholder."""
    pieces: list[str | Audio] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part.get("type") == "audio":
            pieces.append(_part_audio(part))
        elif part.get("type") == "text":
            pieces += _split(part["text"], audios, alone, where)
        else:
            raise ValueError(f"a part's type must be 'text' or 'audio', got {shown(part.get('type'))}")
    if alone:
        pieces.sort(key=lambda piece: isinstance(piece, str))
    return pieces


def check_text(text: str, what: str) -> None:
    """ValueError naming the place where a text holds half a character, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise ValueError(f"{what} is not Unicode text: {around!r} has half a character, at {error.start}") from None


def _split(text: str, audios, alone: bool, where: str) -> list[str | Audio]:
    for token in _CONTROL:
        if token in text:
            raise ValueError(f"a message contains {token}, which only the prompt itself may")
    check_text(text, where)
    if alone and _PLACEHOLDER.search(text):
        return [next(audios), _ALONE.sub("", text, count=1)]
    pieces: list[str | Audio] = []
    for index, piece in enumerate(re.split(r"<sound(?:-\d+)?>", text)):
        pieces += [next(audios), piece] if index else [piece]
    return pieces
