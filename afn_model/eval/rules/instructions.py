"""MMAU-Pro's checks of instructions by ``task_identifier`` (sonalkum/MMAUPro@960e93a
evaluate_mmau_pro_comprehensive.py).

The authors split sentences with nltk's punkt model, whose data is a download; here a sentence ends at ".", "!" or "?"
before white space, but not behind a known abbreviation or an initial.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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
Check = Callable[[str, Given], bool]  # (output, arguments of the instruction and its "question")


def _number(given: Given, name: str = "N", default: float = 0) -> float:
    return float(given.get(name, default))


def _words(given: Given, name: str) -> list[str]:
    value = given.get(name) or ""
    return [word.lower() for word in (value.split(", ") if isinstance(value, str) else map(str, value))]


def _letters(text: Any, keep: str = "") -> str:
    return re.sub(rf"[^a-zA-Z{keep}]", "", str(text)).lower()


def _filled(parts: Sequence[str]) -> int:
    return sum(bool(part.strip()) for part in parts)


def _keyword_frequency(text: str, given: Given) -> bool:
    keyword = re.escape(str(given.get("keyword", "")).lower())
    return len(re.findall(rf"\b{keyword}\b", text.lower())) == _number(given)


def _multiple_sections(text: str, given: Given) -> bool:
    splitter = re.escape(str(given.get("section_splitter", "")))
    return _filled(re.split(rf"\s*{splitter}\s*", text.strip())) == _number(given)


def _two_responses(text: str, given: Given) -> bool:
    parts = [part.lower().strip() for part in text.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


def _counted(name: str, count: Callable[[str], int]) -> dict[str, Check]:
    return {
        f"{name} (at least)": lambda text, given: count(text) >= _number(given),
        f"{name} (at most)": lambda text, given: count(text) <= _number(given),
        f"{name} (range)": lambda text, given: _number(given, "N1") <= count(text) <= _number(given, "N2", 999),
    }


CHECKS: dict[str, Check] = {
    **_counted("Number Words", lambda text: len(text.split())),
    **_counted("Number Sentences", sentences),
    **_counted("All-capital Words", lambda text: sum(word.isupper() for word in text.split())),
    "Include Keywords": lambda text, given: all(word in text.lower() for word in _words(given, "keywords")),
    "Forbidden Words": lambda text, given: not any(word in text.lower() for word in _words(given, "forbidden_words")),
    "Keyword Frequency": _keyword_frequency,
    "Number Paragraphs": lambda text, given: _filled(text.split("***")) == _number(given),
    "Number Bullets": lambda text, given: len(re.findall(r"(?:^|\n)\s*\*\s+", text)) == _number(given),
    "Number Placeholder": lambda text, given: len(re.findall(r"\[[^\]]+\]", text)) >= _number(given),
    "Minimum Number Highlighted Section": lambda text, given: len(re.findall(r"\*([^*]+)\*", text)) >= _number(given),
    "Multiple Sections": _multiple_sections,
    "Title": lambda text, given: re.search(r"<<[^>]+>>", text) is not None,
    "Postscript": lambda text, given: _letters(given.get("postscript_marker", "")) in _letters(text),
    "Repeat Prompt": lambda text, given: text.strip().lower().startswith(given["question"].strip().lower()),
    "Two Responses": _two_responses,
    "All Uppercase": lambda text, given: text.isupper(),
    "All Lowercase": lambda text, given: text.islower(),
    "Start Checker": lambda text, given: _letters(text, " ").startswith(_letters(given.get("start_phrase", ""), " ")),
    "End Checker": lambda text, given: _letters(text, " ").endswith(_letters(given.get("end_phrase", ""), " ")),
    "Quotation": lambda text, given: text.strip().startswith('"') and text.strip().endswith('"'),
    "No Commas": lambda text, given: "," not in text,
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
    return check is not None and check(text, {**given, "question": question})
