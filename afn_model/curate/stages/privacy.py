"""Personal data in transcripts and captions: phone numbers, e-mail, cards, addresses, found by their form."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from afn_model.checks import is_number, shown
from afn_model.curate.stage import Context, Dropped, Kept, Outcome, Resources, Row, Stage

FLAGS = ("minors", "voice_cloning")
_NOT_TEXT = ("id", "ids", "kind", "language", "speaker", "segment", "source_id", "youtube_id")
_NOT_TEXT += ("annotator", "prompt", "model", "annotation", "annotations")  # in ids there are numbers of cards
_DIGIT = r"(?:zero|one|two|three|four|five|six|seven|eight|nine|oh)"
_DIGITS = {word: place for place, word in enumerate(_DIGIT[3:-1].split("|"))} | {"oh": 0}
_ENDS = "(?:com|org|net|edu|gov|io|co|info|de|uk|fr)"
_EMAIL = re.compile(
    rf"(?<![\w.+-])[\w.+-]+(?:@(?:[\w-]+\.)+[a-z]{{2,}}\b| at [\w-]+(?: dot [\w-]+){{0,3}} dot {_ENDS}\b)", re.I
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\d.,-])(?<![A-Z]{2}\d\d )[2-6]\d{3}(?:[ -]?\d){8,15}(?![\d-]|[.,]\d)")
_PHONE = re.compile(
    r"(?<![\w.,+/-])(?:"
    r"\+\d{1,3}(?:[ .()-]{0,2}\d{1,4}){2,5}"  # international
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # North America
    r"|(?<!\d )0\d{2,4}[ /-]\d{3,4}[ -]?\d{2,5}"  # with an area code
    r")(?![\w-]|[.,]\d| \d{3})"
)
_BARE = re.compile(r"(?<![\w.,+/-])\d(?:[ .-]?\d){6,12}(?![\w-]|[.,]\d)")
_SPOKEN = re.compile(rf"\b{_DIGIT}(?:[ ,-]+{_DIGIT}){{6,}}\b", re.I)
_CALLED = re.compile(
    r"(?:\b(?:call|phone|telephone|tel|mobile|cell|whatsapp|dial|ring|fax|text)\b|☎)"
    r"(?:\W+(?:number|numbers|no|is|me|us|at|on|him|her|it|my|the|back|now|to)\b){0,4}\W*$",
    re.I,
)
_IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)")
_IP6 = re.compile(r"(?<![\w:])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.I)
_VERSION = re.compile(r"\b(?:v|ver|version|release|build|section|chapter|firmware)\.? ?$", re.I)
_NAME = r"[A-ZÄÖÜ][\w'’.-]+"
_STREET = (
    r"(?:Street|St\.?|Avenue|Ave\.?|Road|Rd\.?|Lane|Ln\.?|Drive|Dr\.?|Boulevard|Blvd\.?"
    r"|Court|Square|Terrace|Close|Crescent)"
)
_PLACE = rf"(?:,? {_NAME}(?: {_NAME})?)?"
_POST = rf"{_PLACE},? (?:[A-Z]{{2}},? )?(?:\d{{5}}(?:-\d{{4}})?|[A-Z]{{1,2}}\d[A-Z\d]? ?\d[A-Z]{{2}})\b"
_LIVES = r"\b(?:lives?|living|reside[sd]?|home|house|address)\b(?: is)?(?: at| in)?:? "
_HOUSE = rf"\d{{1,5}}[A-Za-z]?,? (?:{_NAME} ){{1,3}}{_STREET}"
_GERMAN = rf"(?:{_NAME}(?:straße|strasse|str\.|weg|gasse|allee)|{_NAME} (?:Straße|Weg|Allee|Platz)) \d{{1,4}} ?[a-z]?"
_ADDRESS = re.compile(rf"\b{_HOUSE}{_POST}|\b{_GERMAN},? \d{{5}} {_NAME}|(?<!\w){_LIVES}(?P<at>{_HOUSE}|{_GERMAN})")

Found = tuple[int, int, str]  # first character, character after the last, kind


def _email(text: str) -> Iterator[tuple[int, int]]:
    yield from (match.span() for match in _EMAIL.finditer(text))


def _iban(text: str) -> Iterator[tuple[int, int]]:
    """ISO 13616: moved four to the end and letters written as numbers, the rest by 97 is 1."""
    for match in _IBAN.finditer(text):
        plain = match[0].replace(" ", "")
        while len(plain) >= 15:  # a word of capitals may follow
            if len(plain) <= 34 and int("".join(str(int(one, 36)) for one in plain[4:] + plain[:4])) % 97 == 1:
                yield match.start(), _end(match, len(plain))
                break
            plain = plain[:-1]


def _end(match: re.Match[str], characters: int) -> int:
    """Where so many characters of a match that are no space end."""
    places = [place for place, one in enumerate(match[0]) if one != " "]
    return match.start() + places[characters - 1] + 1


def _card(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        digits = [int(one) for one in match[0] if one.isdigit()]
        if 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits):
            yield match.span()


def luhn(digits: Sequence[int]) -> bool:
    """ISO/IEC 7812-1: every second digit from the right is doubled, its digits added; the sum ends in 0."""
    doubled = [2 * one - 9 * (one > 4) if place % 2 else one for place, one in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _phone(text: str) -> Iterator[tuple[int, int]]:
    for match in _PHONE.finditer(text):
        if 7 <= sum(one.isdigit() for one in match[0]) <= 15:
            yield match.span()
    for match in _BARE.finditer(text):
        if _CALLED.search(text[max(0, match.start() - 60) : match.start()]):
            yield match.span()
    for match in _SPOKEN.finditer(text):
        digits = [_DIGITS[word] for word in re.findall(r"[a-z]+", match[0].lower())]
        steps = {after - before for before, after in pairwise(digits)}
        if len(digits) <= 15 and len(steps) > 1:  # somebody who counts does not say a number
            yield match.span()


def _ip(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (_IP4, _IP6):
        for match in pattern.finditer(text):
            try:
                ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if (
                len(match[0]) > 6
                and re.search(r"\d", match[0])
                and not _VERSION.search(text[max(0, match.start() - 20) : match.start()])
            ):
                yield match.span()


def _address(text: str) -> Iterator[tuple[int, int]]:
    yield from (match.span("at" if match["at"] else 0) for match in _ADDRESS.finditer(text))


RECOGNISERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _email,
    "iban": _iban,
    "card": _card,
    "ip": _ip,
    "phone": _phone,
    "address": _address,
}


def find(text: str, kinds: Sequence[str] = tuple(RECOGNISERS)) -> list[Found]:
    """Personal data in a text, in order; where two kinds meet, the one that is earlier in ``RECOGNISERS``."""
    found: list[Found] = []
    for kind in (kind for kind in RECOGNISERS if kind in kinds):
        for begin, end in RECOGNISERS[kind](text):
            if all(end <= other[0] or begin >= other[1] for other in found):
                found.append((begin, end, kind))
    return sorted(found)


def mask_text(text: str, kinds: Sequence[str] = tuple(RECOGNISERS)) -> tuple[str, int]:
    """(the text with ``[phone]`` and so on in the place of personal data, how often)."""
    found = find(text, kinds)
    for begin, end, kind in reversed(found):
        text = f"{text[:begin]}[{kind}]{text[end:]}"
    return text, len(found)


def masked(value: Any, kinds: Sequence[str] = tuple(RECOGNISERS)) -> tuple[Any, int]:
    """A value with every text in it masked, whatever it is nested in, and how often."""
    if isinstance(value, str):
        return mask_text(value, kinds)
    if isinstance(value, dict):
        made = {key: masked(one, kinds) for key, one in value.items()}
        return {key: one for key, (one, _) in made.items()}, sum(count for _, count in made.values())
    if isinstance(value, (list, tuple)):
        listed = [masked(one, kinds) for one in value]
        return [one for one, _ in listed], sum(count for _, count in listed)
    return value, 0


@dataclass(frozen=True)
class Passage:
    """A text with where it is said, in seconds, and the times of its characters where words have theirs."""

    text: str
    start: float | None
    end: float | None
    words: tuple[tuple[int, int, float, float], ...] = ()

    def span(self, begin: int, end: int) -> list[float] | None:
        """[start, end] in seconds of some characters: of their words, or of the whole passage."""
        times = [(start, stop) for first, last, start, stop in self.words if first < end and begin < last]
        if times:
            return [min(start for start, _ in times), max(stop for _, stop in times)]
        return None if self.start is None or self.end is None else [self.start, self.end]


def passages(value: Any, segments: Mapping[str, Sequence[float]], within: Sequence[float] = ()) -> Iterator[Passage]:
    """The texts in a field, however nested, with the times that the objects around them say.

    Args:
        value: the field.
        segments: id -> (start, end) in seconds, for objects that name a segment.
        within: (start, end) of what is around it, where that is known.
    """
    if isinstance(value, str):
        start, end = within or (None, None)
        yield Passage(value, start, end)
    elif isinstance(value, dict):
        if is_number(value.get("start")) and is_number(value.get("end")):
            within = float(value["start"]), float(value["end"])
        elif isinstance(value.get("segment"), str):
            within = segments.get(value["segment"], within)
        said = _words(value.get("words"))
        if said is not None:
            yield said
        for key, one in value.items():
            again = said is not None and (key == "words" or (isinstance(one, str) and one.split() == said.text.split()))
            if key not in _NOT_TEXT and not again:
                yield from passages(one, segments, within)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from passages(one, segments, within)


def _words(value: Any) -> Passage | None:
    """Words with times, [{"word" or "text", "start", "end"}], as one passage."""
    if not isinstance(value, list) or not value:
        return None
    text, times = "", []
    for one in value:
        word = (one.get("word") or one.get("text")) if isinstance(one, dict) else None
        if not isinstance(word, str) or not is_number(one.get("start")) or not is_number(one.get("end")):
            return None
        text += " " * bool(text)
        times.append((len(text), len(text) + len(word.strip()), float(one["start"]), float(one["end"])))
        text += word.strip()
    return Passage(text, times[0][2], times[-1][3], tuple(times))


@dataclass(frozen=True)
class Privacy(Stage):
    """Looks for personal data in texts; a recording with some is dropped, or what is said is to be silenced.

    ``privacy`` = {"found": {kind: count}, "silences": [[start, end] in seconds], "flags": those of ``FLAGS`` that are
    told of the recording}. Stages do not write each other's fields: texts are masked, and the silences made, where
    records are written ("export"), which looks through every text once more. Where it is not known when something is
    said, all of the recording is silenced.

    Args:
        texts: fields that are looked through.
        action: "drop" or "mask".
        kinds: of personal data, all of ``RECOGNISERS`` if empty.
        flags: of ``FLAGS``; a recording with one is dropped.
        segments: whether texts name segments.
    """

    name: ClassVar[str] = "privacy"
    version: ClassVar[int] = 2
    writes: ClassVar[tuple[str, ...]] = ("privacy",)
    drops: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(batch=16, seconds=0.5)

    texts: tuple[str, ...] = ("transcripts", "captions")
    action: str = "drop"
    kinds: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    segments: bool = True

    def __post_init__(self):
        if self.action not in ("drop", "mask"):
            raise ValueError(f"action is drop or mask, got {shown(self.action)}")
        for given, known in ((self.kinds, RECOGNISERS), (self.flags, FLAGS)):
            if unknown := [one for one in given if one not in known]:
                raise ValueError(f"{shown(unknown[0])} is none of {', '.join(known)}")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(dict.fromkeys(["about", "seconds", *["segments"] * self.segments, *self.texts]))

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        return [self._one(row) for row in rows]

    def _one(self, row: Row) -> Outcome:
        flags = [flag for flag in FLAGS if (row.get("about") or {}).get(flag)]
        if wrong := [flag for flag in flags if flag in self.flags]:
            return Dropped(f"flagged: {wrong[0]}")
        kinds, counts, silences = self.kinds or tuple(RECOGNISERS), Counter[str](), list[list[float]]()
        places = {one["id"]: (one["start"], one["end"]) for one in row.get("segments") or []} if self.segments else {}
        for passage in (one for name in self.texts for one in passages(row.get(name), places)):
            for begin, end, kind in find(passage.text, kinds):
                counts[kind] += 1
                silences.append(passage.span(begin, end) or [0.0, row["seconds"]])
        found = dict(sorted(counts.items()))
        if found and self.action == "drop":
            return Dropped("personal data", ", ".join(f"{count} {kind}" for kind, count in found.items()))
        told = {"found": found, "silences": joined(silences), "flags": flags}
        return Kept({"privacy": told}, {f"masked: {kind}": count for kind, count in found.items()})


def joined(spans: Sequence[Sequence[float]]) -> list[list[float]]:
    """Spans [start, end] in order, those that touch as one."""
    found: list[list[float]] = []
    for start, end in sorted((one[0], one[1]) for one in spans):
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return found
