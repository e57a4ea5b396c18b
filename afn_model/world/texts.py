"""Every word that records are made of, for training a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from afn_model.prompt.questions import THINK
from afn_model.world.phrases import (
    BASIC_PHRASES,
    CATEGORIES,
    NAMES,
    NUMBERS,
    ORDINALS,
    PHRASES,
    REFUSALS,
    TRANSLATIONS,
    named,
    seconds,
)
from afn_model.world.scene import BASIC, DETAILS, LABELS, LANGUAGES, VOICES
from afn_model.world.sounds import SOUNDS
from afn_model.world.words import MORE_WORDS

_OFTEN = 40  # so often that labels stay whole in a vocabulary of about a thousand tokens


def texts() -> list[str]:
    """Questions and answers in the proportions of a corpus, and each of ``LABELS`` and ``DETAILS`` many times.

    Held-out phrasings are not among them; their words are.
    """
    labels = [*LABELS, *DETAILS, "."] * _OFTEN
    return [*labels, *(f"{a} {b}" for a, b in zip(labels, labels[7:], strict=False)), *_questions(), *_answers()]


def basic_texts() -> list[str]:
    """Every question and every answer (onsets up to 9.9 s) of the basic tasks."""
    names = ["word", *SOUNDS]
    asked = [form.format(name) for forms in BASIC_PHRASES.values() for form in forms for name in names]
    return [*dict.fromkeys(asked), *BASIC.labels, *(seconds(tenths / 10) for tenths in range(100))]


def _questions() -> Iterator[str]:
    words = {word for several in MORE_WORDS.values() for word in several}
    names = cycle([named(label, "word" if label in words else "sound") for label in LABELS])
    voices, numbers = cycle(f"the {voice}" for voice in VOICES), cycle(NUMBERS)
    special = {"target": voices, "plus": numbers, "minus": numbers, "number_after": numbers, "number_before": numbers}
    special |= {"said": cycle(ORDINALS), "ast": cycle(LANGUAGES.values()), "subscene": cycle(("0", "10", "20", "30"))}
    for phrase, (known, _) in PHRASES.items():
        for form in known:
            for _ in range(12):
                fields = special.get(phrase, names)
                question = form.format(*(next(fields) for _ in range(form.count("{}"))))
                yield question
                if phrase in ("after", "before", "first", "last", "count", "between", "order"):
                    yield f"{question} {THINK}"


def _answers() -> Iterator[str]:
    for tenths in range(100):
        # No label behind ">": it would become one token with it.
        yield f"<think>{tenths / 10:.1f} s {LABELS[tenths % len(LABELS)]}, 9.9 s bell.</think><answer>"
        yield from ("<think>", "</answer>", f"{tenths / 10:.1f} s")
    for source, tables in TRANSLATIONS.items():
        for into, table in tables.items():
            for word, other in table.items():
                yield from (other, f"{other} {other}")
                yield f"Translate {word} from {LANGUAGES[source]} into {LANGUAGES[into]}."
    for label in LABELS:
        yield from (label.upper(), f"{label} {label}", f"Answer: {label}")
        yield from (f"The word is {label}.", f"The sound is {label}.")
    for instrument in CATEGORIES["instrument"]:
        for notes in CATEGORIES["notes"]:
            for tempo, direction in (("fast", "up"), ("slow", "down")):
                yield f"The {instrument} plays {notes} {tempo} notes going {direction}. Then: The {instrument} plays"
    for start in range(0, 60, 10):
        yield f"{start} to {start + 10} seconds: bell, seven. {start + 10} to {start + 20} seconds: nothing."
    for _ in range(_OFTEN // 4):
        yield from (*NAMES, *REFUSALS.values(), *(f"the {ordinal}" for ordinal in ORDINALS), *NUMBERS)
        yield from ("yes", "no", "nothing", "nobody", "a word", "a sound", "a man", "a woman", "the man", "the woman")
        yield from ("[Speaker 1] seven four [Speaker 2] stop [Speaker 3] open", "fast", "slow", "flute", "organ")
