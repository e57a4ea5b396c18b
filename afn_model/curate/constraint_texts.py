"""Forms that answers are asked to have, in words: which go together, in which languages, and what is left without them.

A demand is a specification that ``scoring.constraints.obeys`` checks, with the sentence that asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.curate import identity
from afn_model.curate.grounding import stems
from afn_model.curate.texts import words_of
from afn_model.scoring.text import normalise

LEAST, MOST = 12, 20  # words that are asked for: room for any second demand
TIMES = (2, 3)
STARTS = ("Answer:", "In short,", "Here is what I hear:", "To begin with,")
ENDS = ("That is all.", "Is there anything else you would like to know?", "Thanks for listening!", "End of answer.")
KEYS = (("answer",), ("answer", "reason"), ("summary", "details"), ("description",))
QUESTIONS = (
    "What is heard in this recording?",
    "Describe this recording.",
    "What happens here?",
    "Tell me what you hear.",
    "What goes on in this audio?",
    "Sum up what is to be heard.",
    "Who or what is heard here, and in which order?",
    "What should somebody who can't listen to this recording know about it?",
)
_WORD_LETTERS = 4  # of a word that an answer is to have
# ISO 639-1 codes of languages that put no spaces between words, and of those whose letters have no case.
_NO_SPACES = "bo dz ja km lo my th yue zh"
_NO_CASE = f"{_NO_SPACES} am ar bn ckb dv fa gu he hi iw ka kn ko ml mr ne or pa ps sa sd si ta te ti ug ur yi"


@dataclass(frozen=True)
class Form:
    """A way to ask for a constraint.

    Args:
        name: of ``scoring.constraints.CONSTRAINTS``.
        phrasings: sentences with places for what its specification has.
        needs: of the language: letters with "case", "spaces" between words, to be "english"; nothing if "".
    """

    name: str
    phrasings: tuple[str, ...]
    needs: str = ""


# By a name of its own, as one constraint may be asked for in several ways.
FORMS: dict[str, Form] = {
    "upper": Form(
        "upper",
        ("Answer in capital letters only.", "Write everything in upper case.", "Use no lower-case letters."),
        "case",
    ),
    "lower": Form(
        "lower",
        ("Answer in lower case only.", "Write without any capital letters.", "Use no upper-case letters at all."),
        "case",
    ),
    "starts": Form(
        "starts",
        (
            'Start your answer with "{text}"',
            'The first words of the answer must be "{text}"',
            'Begin with exactly "{text}"',
        ),
        "english",
    ),
    "ends": Form(
        "ends",
        (
            'End your answer with "{text}"',
            'The last words of the answer must be "{text}"',
            'Finish with exactly "{text}" and nothing after it.',
        ),
        "english",
    ),
    "contains": Form(
        "contains",
        (
            'Use the word "{text}" in your answer.',
            'The answer must contain "{text}".',
            'Be sure to mention "{text}".',
        ),
        "spaces",
    ),
    "repeat": Form(
        "repeat",
        (
            'Use the word "{text}" exactly {times} times.',
            'The word "{text}" must occur {times} times in the answer, no more and no less.',
            'Say "{text}" {times} times in all.',
        ),
        "spaces",
    ),
    "exact": Form(
        "words",
        ("Answer in exactly {exact} words.", "Your answer must have {exact} words, no more and no less."),
        "spaces",
    ),
    "most": Form(
        "words",
        ("Use at most {max} words.", "Answer in no more than {max} words.", "Keep the answer to {max} words or fewer."),
        "spaces",
    ),
    "least": Form("words", ("Use at least {min} words.", "Answer in {min} words or more."), "spaces"),
    "json": Form("json", ("Answer in valid JSON.", "Reply with a JSON object and nothing else.")),
    "keys": Form(
        "json",
        (
            "Answer as a JSON object with the keys {keys}.",
            "Reply with nothing but JSON; its keys are {keys}.",
        ),
    ),
}
# Constraints that no answer keeps together, or that mean nothing together.
_APART = {
    frozenset(pair)
    for pair in (("upper", "lower"), ("json", "upper"), ("json", "starts"), ("json", "ends"), ("json", "words"))
}


@dataclass(frozen=True)
class Demand:
    """A constraint of an answer.

    Args:
        form: of ``FORMS``.
        spec: as ``obeys`` reads it: "name" and its fields.
        text: the sentence that asks for it.
    """

    form: str
    spec: Mapping[str, Any]
    text: str


def together(one: str, other: str) -> bool:
    """Whether an answer can have two forms of ``FORMS`` at once."""
    names = frozenset((FORMS[one].name, FORMS[other].name))
    return len(names) == 2 and names not in _APART


def code_of(language: str) -> str:
    """The code of a language without its region, "en" of "en-GB"; "" where it is not known."""
    code = re.split("[-_]", language.lower())[0]
    return "" if code == "unsure" else code


def allowed(form: str, language: str) -> bool:
    """Whether a form can be asked for in a language, by its code; of an unknown one only what needs nothing of it."""
    code, needs = code_of(language), FORMS[form].needs
    return {
        "": True,
        "case": bool(code) and code not in _NO_CASE.split(),
        "spaces": bool(code) and code not in _NO_SPACES.split(),
        "english": code == "en",
    }[needs]


def words_to_use(texts: Sequence[str]) -> list[str]:
    """Words of captions that an answer can be asked to have: they name something, and no other demand has them."""
    taken = {word for text in (*STARTS, *ENDS, *(key for keys in KEYS for key in keys)) for word in words_of(text)}
    words = dict.fromkeys(word for text in texts for word in words_of(text))
    return [
        word for word in words if word.isalpha() and len(word) >= _WORD_LETTERS and stems(word) and word not in taken
    ]


def demands(subject: str, texts: Sequence[str], language: str, pairs: float) -> list[Demand]:
    """One demand, or two that go together, chosen by the hash of the subject.

    Args:
        subject: id of what the answer is about.
        texts: its captions.
        language: of the answer, a code.
        pairs: share of the subjects with two.
    """
    words = words_to_use(texts)
    able = [
        form for form, told in FORMS.items() if allowed(form, language) and (words or told.name not in _WITH_A_WORD)
    ]
    forms = [identity.pick(able, "first", subject)]
    if identity.fraction("second", subject) < pairs:
        others = [form for form in able if together(forms[0], form)]
        both = [
            form for form in others if len(words) > 1 or not {FORMS[form].name, FORMS[forms[0]].name} <= _WITH_A_WORD
        ]
        forms += [identity.pick(both, "other", subject)] if both else []
    found: list[Demand] = []
    for form in forms:
        left = [word for word in words if all(word != one.spec.get("text") for one in found)]
        found.append(_demand(form, subject, left))
    return found


_WITH_A_WORD = {"contains", "repeat"}


def _demand(form: str, subject: str, words: Sequence[str]) -> Demand:
    def choose(options: Sequence[Any], what: str) -> Any:
        return identity.pick(options, what, form, subject)

    numbers = range(LEAST, MOST + 1)
    fields: dict[str, Any] = {
        "starts": lambda: {"text": choose(STARTS, "text")},
        "ends": lambda: {"text": choose(ENDS, "text")},
        "contains": lambda: {"text": choose(words, "text")},
        "repeat": lambda: {"text": choose(words, "text"), "times": choose(TIMES, "times")},
        "exact": lambda: {"exact": choose(numbers, "count")},
        "most": lambda: {"max": choose(numbers, "count")},
        "least": lambda: {"min": choose(numbers, "count")},
        "keys": lambda: {"keys": list(choose(KEYS, "keys"))},
    }.get(form, dict)()
    return Demand(
        form, {"name": FORMS[form].name, **fields}, phrased(choose(FORMS[form].phrasings, "phrasing"), fields)
    )


def phrased(phrasing: str, fields: Mapping[str, Any]) -> str:
    """A phrasing with what a specification has; of keys a list: "answer" and "reason"."""
    told = {
        name: " and ".join(f'"{one}"' for one in value) if name == "keys" else value for name, value in fields.items()
    }
    return phrasing.format(**told)


def content(answer: str, specs: Sequence[Mapping[str, Any]]) -> str:
    """What an answer that keeps its constraints says, in sentences: without the words and signs that they ask for, and
    with a word that is to be repeated once, as more of it tells nothing more."""
    for spec in specs:
        if spec["name"] == "starts":
            answer = answer[len(spec["text"]) :]
        elif spec["name"] == "ends":
            answer = normalise(answer).removesuffix(normalise(spec["text"]))
        elif spec["name"] == "json":
            answer = " ".join(f"{text.rstrip('.')}." for text in _texts(json.loads(_FENCE.sub(r"\1", answer))))
    for spec in specs:
        if spec["name"] == "repeat":
            first, *rest = re.split(rf"(?<!\w)({re.escape(spec['text'])})(?!\w)", answer, flags=re.I)
            answer = "".join([first, *rest[:2], *rest[3::2]])
    return answer.strip()


_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.S)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.strip() else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]
