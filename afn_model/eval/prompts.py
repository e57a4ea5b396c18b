"""What a model is asked: prompts by name, those that the released models were trained on and the official ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from afn_model.eval.items import Item
from afn_model.prompt import questions
from afn_model.prompt.questions import CAPTION, DETAILED_CAPTION, DIARIZE, LYRICS, TRANSCRIBE, options, translation

_TURN_TIMES = "Give the start and the end of each turn in seconds, such as [Speaker 1] 0.0-3.2."
_MARK = re.compile(r"<sound(?:-(\d+))?>|<audio(?:[-_ ]?(\d+))?>", re.IGNORECASE)


def choose(item: Item, language: str) -> str:
    """The form of Audio Flamingo 2, 3 and Next for multiple choice (NVIDIA/audio-flamingo, static/mmar.json)."""
    if not item.choices:
        return item.question
    return questions.choose(item.question, item.choices)


def choose_letter(item: Item, language: str) -> str:
    """Asks for a letter alone, as MMSU does."""
    return f"{item.question}\n{options(item.choices, '{}. {}')}\nAnswer with the letter of the correct option only."


def choose_in_brackets(item: Item, language: str) -> str:
    """Asks for ``[[A]]``, as RUListening does."""
    told = "Answer with the letter of the correct option in double square brackets, such as [[A]]."
    return f"{item.question}\n{options(item.choices)}\n{told}"


def choose_said(item: Item, language: str) -> str:
    """The form of MuchoMusic, without the example that its authors put before it."""
    told = " ".join(options(item.choices).split("\n"))
    return f"Question: {item.question}\nOptions: {told}\nThe correct answer is:"


def options_list(item: Item, language: str) -> str:
    """The form of Audio Flamingo 1 for labels: a question, then OPTIONS."""
    return f"{item.question}\nOPTIONS:\n" + "\n".join(f" - {choice}." for choice in item.choices)


def entail(item: Item, language: str) -> str:
    """Whether a hypothesis follows from the recording."""
    told = "Is this entailment, neutral or contradiction? Choose the correct option from the following options:"
    return f"Hypothesis: {item.question}\n{told}\n{options(item.choices)}"


def events(item: Item, language: str) -> str:
    """Asks which of the set's sounds are there, and when; ours, as no release names such a question."""
    names = ", ".join(item.choices)
    told = "Answer with a line for each: its name, a colon, and where it starts and ends in seconds, such as 0.5-1.2."
    return f"Which of these sounds do you hear, and when: {names}? {told}"


def translate(item: Item, language: str) -> str:
    source, _, target = language.partition("-")
    return translation(source, target)


# Name in the table -> the text of the question about an item; the second argument is the row's ``language``.
PROMPTS: dict[str, Callable[[Item, str], str]] = {
    "question": lambda item, language: item.question,
    "spoken": lambda item, language: "",  # the recording is the question
    "choose": choose,
    "choose-letter": choose_letter,
    "choose-in-brackets": choose_in_brackets,
    "choose-said": choose_said,
    "options-list": options_list,
    "entail": entail,
    "transcribe": lambda item, language: TRANSCRIBE,
    "diarise": lambda item, language: DIARIZE,
    "diarise-times": lambda item, language: f"{DIARIZE} {_TURN_TIMES}",
    "events": events,
    "lyrics": lambda item, language: LYRICS,
    "translate": translate,
    "caption": lambda item, language: CAPTION,
    "detailed-caption": lambda item, language: DETAILED_CAPTION,
}


def without_marks(text: str) -> str:
    """A question that names no recording."""
    return _MARK.sub("", text).strip()


def content(item: Item, text: str) -> list[dict[str, Any]]:
    """The parts of the message that asks: recordings first, then the text; a text that names its recordings,
    ``<sound-2>`` or ``<audio>``, has them where it names them.

    Raises:
        ValueError: it names one that the item does not have.
    """
    clips = [_part(clip) for clip in item.clips]
    marks = list(_MARK.finditer(text))
    if not marks:
        return [*clips, {"type": "text", "text": text.strip("\n")}] if text or not clips else clips
    parts: list[dict[str, Any]] = []
    at = 0
    named = set()
    for place, mark in enumerate(marks):
        number = int(mark[1] or mark[2] or place + 1)
        if not 1 <= number <= len(clips):
            raise ValueError(f"{item.id}: the question names recording {number} of {len(clips)}")
        if before := text[at : mark.start()].strip("\n"):
            parts.append({"type": "text", "text": before})
        parts.append(clips[number - 1])
        named.add(number)
        at = mark.end()
    unnamed = [clip for number, clip in enumerate(clips, 1) if number not in named]
    rest = text[at:].strip("\n")
    return [*unnamed, *parts, *([{"type": "text", "text": rest}] if rest else [])]


def _part(clip: Any) -> dict[str, Any]:
    given = {"type": "audio", "path": clip.path, "start": clip.start, "end": clip.end}
    return {name: value for name, value in given.items() if value is not None}
