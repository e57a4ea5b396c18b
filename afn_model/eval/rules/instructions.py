"""MMAU-Pro's checks of instructions by ``task_identifier`` (sonalkum/MMAUPro@960e93a
evaluate_mmau_pro_comprehensive.py).

The authors split sentences with nltk's punkt model, whose data is a download; here a sentence ends at ".", "!" or "?"
before white space, but not behind a known abbreviation or an initial.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_ABBREVIATIONS = re.compile(
    "mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|e[.]g|i[.]e|cf|vol|fig|al|inc|ltd|co|corp|gen|col|sgt|capt|rev|hon|jan|feb|mar|apr"
    "|jun|jul|aug|sep|sept|oct|nov|dec|mt|ave|approx|dept|est|u[.]s|u[.]k|a[.]m|p[.]m|[a-hj-z]"
)
_SENTENCE = re.compile(r"""(\S*?)[.!?]+["'”’)\]]*(?=\s|$)""")


def sentences(text: str) -> int:
    """How many sentences a text has; one without a final mark counts."""
    count, at = 0, 0
    for found in _SENTENCE.finditer(text):
        word = found[1].lower().lstrip("\"'([“‘")
        short = found[0].rstrip("\"'”’)]").endswith(".") and _ABBREVIATIONS.fullmatch(word)
        if short and text[found.end() :].strip():
            continue
        count += bool(text[at : found.end()].strip())
        at = found.end()
    return count + bool(text[at:].strip())


Given = Mapping[str, Any]
Check = Callable[[str, Given, str], bool]  # (output, arguments, question)


def _listed(given: Given, name: str) -> list[str]:
    value = given.get(name) or ""
    return [word.lower() for word in (value.split(", ") if isinstance(value, str) else map(str, value))]


def _letters(text: str, keep: str = "") -> str:
    return re.sub(rf"[^a-zA-Z{keep}]", "", text).lower()


def _capitals(text: str) -> int:
    return sum(word.isupper() for word in text.split())


def _keyword(text: str, keyword: str) -> int:
    return len(re.findall(rf"\b{re.escape(keyword.lower())}\b", text.lower()))


def _sections(text: str, splitter: str) -> int:
    return sum(bool(part.strip()) for part in re.split(rf"\s*{re.escape(splitter)}\s*", text.strip()))


def _two(text: str) -> bool:
    parts = text.split("******")
    return len(parts) == 2 and parts[0].lower().strip() != parts[1].lower().strip()


def _quoted(text: str) -> bool:
    return text.strip().startswith('"') and text.strip().endswith('"')


def _counted(count: Callable[[str], int]) -> dict[str, Check]:
    return {
        "at least": lambda text, given, question: count(text) >= _number(given, "N"),
        "at most": lambda text, given, question: count(text) <= _number(given, "N"),
        "range": lambda text, given, question: _number(given, "N1") <= count(text) <= _number(given, "N2", 999),
    }


def _number(given: Given, name: str, default: float = 0) -> float:
    return float(given.get(name, default))


_COUNTED: dict[str, Callable[[str], int]] = {
    "Number Words": lambda text: len(text.split()),
    "Number Sentences": sentences,
    "All-capital Words": _capitals,
}
CHECKS: dict[str, Check] = {
    **{f"{name} ({how})": check for name, count in _COUNTED.items() for how, check in _counted(count).items()},
    "Include Keywords": lambda text, given, question: all(word in text.lower() for word in _listed(given, "keywords")),
    "Forbidden Words": lambda text, given, question: (
        not any(word in text.lower() for word in _listed(given, "forbidden_words"))
    ),
    "Keyword Frequency": lambda text, given, question: (
        _keyword(text, str(given.get("keyword", ""))) == _number(given, "N")
    ),
    "Number Paragraphs": lambda text, given, question: (
        sum(bool(part.strip()) for part in text.split("***")) == _number(given, "N")
    ),
    "Number Bullets": lambda text, given, question: len(re.findall(r"(?:^|\n)\s*\*\s+", text)) == _number(given, "N"),
    "Number Placeholder": lambda text, given, question: len(re.findall(r"\[[^\]]+\]", text)) >= _number(given, "N"),
    "Minimum Number Highlighted Section": lambda text, given, question: (
        len(re.findall(r"\*([^*]+)\*", text)) >= _number(given, "N")
    ),
    "Multiple Sections": lambda text, given, question: (
        _sections(text, str(given.get("section_splitter", ""))) == _number(given, "N")
    ),
    "Title": lambda text, given, question: re.search(r"<<[^>]+>>", text) is not None,
    "Postscript": lambda text, given, question: _letters(str(given.get("postscript_marker", ""))) in _letters(text),
    "Repeat Prompt": lambda text, given, question: text.strip().lower().startswith(question.strip().lower()),
    "Two Responses": lambda text, given, question: _two(text),
    "All Uppercase": lambda text, given, question: text.isupper(),
    "All Lowercase": lambda text, given, question: text.islower(),
    "Start Checker": lambda text, given, question: _letters(text, " ").startswith(
        _letters(str(given.get("start_phrase", "")), " ")
    ),
    "End Checker": lambda text, given, question: _letters(text, " ").endswith(
        _letters(str(given.get("end_phrase", "")), " ")
    ),
    "Quotation": lambda text, given, question: _quoted(text),
    "No Commas": lambda text, given, question: "," not in text,
}


def follows(text: str, identifier: str, given: Given, question: str) -> bool:
    """Whether an output does what an instruction asks; an identifier that is not known is not followed.

    Quirks: keywords are found inside of words; only "*" begins a bullet; paragraphs are parted by "***"; a space
    before the first word counts ("- Well" does not start with "well"); an empty output follows "at most" and "No
    Commas".

    Args:
        text: the output without its reasoning.
        identifier: a key of ``CHECKS``.
        given: arguments of the instruction.
        question: what an answer that repeats its prompt begins with.
    """
    check = CHECKS.get(identifier)
    return check is not None and check(text, given, question)
