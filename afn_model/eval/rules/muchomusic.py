"""MuChoMusic's rules: that of RUListening (yongyizang/AreYouReallyListening@d3971de ExampleAudioEval/qwen_2_audio.py)
and the original (mulab-mir/muchomusic@d3c9a42 muchomusic_eval/scoring.py)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders.files import LETTERS
from afn_model.eval.rules.extract import chosen
from afn_model.eval.score import Mark, Part, Score, Tools, by_item, ratio

PREFIX = "The correct answer is:"
_BRACKETS = re.compile(r"\[\[([A-E])\]\]")
_PHRASE = re.compile(r"(?:answer is|chose|choose|select|guess is|I choose|I select|I guess) ([A-E])\b", re.IGNORECASE)


def rul_choice(said: str, choices: Sequence[str]) -> str:
    """The choice that RUListening's script reads, "" for none: the last ``[[A]]``; the last letter after a phrase such
    as "answer is"; the first letter of the alphabet that stands as "option A" or "(A)"; the first choice whose text is
    in the output.

    Quirks: case is ignored after a phrase, so that "the answer is a flute" reads A; "option A" is found in "option
    Any"; a choice is found inside of a word; a letter beyond the choices is none.
    """
    if found := _BRACKETS.findall(said) or _PHRASE.findall(said):
        return _at(found[-1].upper(), choices)
    for letter in "ABCDE":
        if any(mark in said for mark in (f"option {letter}", f"Option {letter}", f"({letter})")):
            return _at(letter, choices)
    return next((choice for choice in choices if choice and choice.lower() in said.lower()), "")


def rul(answered: Sequence[AnsweredItem], tools: Tools, *, read: str = "official") -> Score:
    """Percent of questions whose passes agree on the right answer most often. A question is asked in passes, each an
    item without one of the distractors, ``extra["of"]`` being its name; a question of one pass is "one-shot".

    Quirks: passes that cannot be read do not vote; of answers with equally many votes the first one counts.

    Args:
        read: "official" or "named": by RUListening's script or by our rules of extraction.
    """
    votes: dict[str, list[str]] = {}
    said, first = [], dict[str, int]()
    for place, one in enumerate(answered):
        choices, text = one.item.choices, one.text or ""
        if read == "official":
            choice = rul_choice(text, choices)
        else:
            found = chosen(text, choices).choice
            choice = "" if found is None else choices[found]
        said.append(choice or "none")
        name = str(one.item.extra.get("of", one.item.id))
        first.setdefault(name, place)
        votes.setdefault(name, []).extend([choice] if choice else [])
    parts: list[Part | None] = [None] * len(answered)
    for name, place in first.items():
        answer = answered[place].item.answer
        agreed = Counter(votes[name]).most_common(1)
        if answer is not None:
            parts[place] = (float(bool(agreed) and agreed[0][0] == answer), 1.0)
    passes = [choice == one.item.answer for choice, one in zip(said, answered, strict=True)]
    notes = [f"majority of the passes of {len(first)} questions"]
    if passes:
        notes.append(f"of {len(passes)} passes by themselves {100 * sum(passes) / len(passes):.1f} % are right")
    reader = "RUListening" if read == "official" else "named extraction rules"
    none = sum(one.text is not None and choice == "none" for one, choice in zip(answered, said, strict=True))
    told = {"unparsed": none, "extracted": said, "signature": f"{reader}, majority", "notes": notes}
    return ratio(answered, parts, scale=100, **told)


def original_choice(said: str, choices: Sequence[str]) -> int:
    """The place that MuChoMusic's script reads in what follows the last "The correct answer is:", -1 for none: that of
    the one letter of A to D in it, else the first choice whose text is in it.

    Quirks: a capital anywhere counts as a letter, so that "Drums" is D; a choice is found inside of a word.
    """
    said = said.split(PREFIX)[-1].strip()
    if len(letters := set("ABCD") & set(said)) == 1:
        return "ABCD".index(letters.pop())
    plain = [choice.lower().strip() for choice in choices]
    return next((place for place, choice in enumerate(plain) if choice in said.lower()), -1)


def original(answered: Sequence[AnsweredItem], tools: Tools) -> Score:
    """Percent of all items whose place is the right one's; quirks as ``original_choice`` names them."""

    def mark(one: AnsweredItem) -> Mark:
        choices = one.item.choices
        place = original_choice(one.text or "", choices)
        read = "none" if place < 0 else "ABCD"[place] if place < 4 else choices[place]
        right = 0 <= place < len(choices) and choices[place] == one.item.answer
        return None if one.item.answer is None else right, read

    score = by_item(answered, mark, signature="MuChoMusic scoring")
    followed = 100 * (1 - score.extracted.count("none") / len(answered)) if answered else float("nan")
    score.notes = [f"instruction following rate {followed:.1f} %"]
    return score


def _at(letter: str, choices: Sequence[str]) -> str:
    place = LETTERS.index(letter)
    return choices[place] if place < len(choices) else ""
