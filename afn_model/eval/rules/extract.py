"""Reads which option an answer chooses, by named rules in order: the first that fires decides.

A rule that finds more than one option ends the reading: nothing is guessed. An option is named by its letter or by its
text. Its text counts as whole words, whatever their case, punctuation and articles; where one option's words contain
another's, the longer one is meant; an option that is denied ("not a dog") is not named. A bare letter that is itself
the text of an option, such as a note, is read as that text, as the released models answer with texts; "(C)",
"[[C]]" and "option C" are letters always.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from afn_model.eval.loaders.files import LETTERS
from afn_model.scoring.text import final_answer

_TIDY = [  # pattern, replacement: Markdown, LaTeX and typographic signs
    (re.compile("[‘’`´]"), "'"),
    (re.compile("[“”«»„「」『』]"), '"'),
    (re.compile("[−–—]"), "-"),
    (re.compile(r"\\(?:text|textbf|mathbf|mathrm|textit)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\*\*|(?<!\w)[_*]+|[_*]+(?!\w)|^#+\s+|\\[()\[\]]|\$", re.MULTILINE), ""),
]
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without spaces: each character is a word
_END = rf"(?![^\W{_CJK}]|[#♯♭]|[.,:/]\d)"  # of a word, a note or a number
_WORD = re.compile(rf"((?:(?<![\w)])-)?\d+(?:[.,:/]\d+)*|[{_CJK}]|[^\W\d_{_CJK}]+[#♯♭]?)|([.,;:!?。、\n])")
_ARTICLE = re.compile(r"(?<!\w)(?:a|an|the)\s+(?=\w)", re.IGNORECASE)
_NOT = re.compile(r"n't\b|(?<=can)not\b", re.IGNORECASE)
_DENIAL = {"no", "not", "never", "neither", "nor", "without", "不", "没", "沒"}
_TURN = {"but", "rather", "instead", "only", "however"}
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}|\[\[([^\[\]]*)\]\]")
_HEDGE = r"(?:\s|[:='\"]|-\s|(?:most|likely|probably|definitely|clearly|therefore|thus|the)\b|选项)*"
_PHRASES = [
    re.compile(phrase + _HEDGE, re.IGNORECASE)
    for phrase in (
        r"\bfinal (?:answer|choice)\s*(?:is|:|=|\n)",
        r"(?<!wrong )(?<!incorrect )\b(?:answer|option|choice|guess)\s*(?:is|would be|should be|must be|:|=|- |\n)",
        r"\b(?:I|would|will|I'd|I'll)\s+(?:choose|select|pick|guess|go with|opt for)\b",
        r"\b(?:it|this|that) (?:must|has to|should) be\b|\b(?:it|that)(?:'s| is) (?=(?-i:[^a-z]*[A-Z])\b)",
        r"(?:正确答案|答案|正解|答え|正确选项)\s*(?:应该是|是|为|は|:)?",
        r"(?:选择|選擇|选|選)(?!项|項)",
    )
]
_BEHIND = re.compile(r"\s*(?:$|[.,;:!)\"'\n-]|because|since|as\b|for\b|or\b|and\b|/|&|[です])")  # a bare letter
_WRONG = re.compile(r"\s*(?:is|are|was|can|could|does)?\s*(?:not|n't|incorrect|wrong|false|be (?:ruled|excluded))\b")
SEVERAL = -1
REACH = 500  # characters behind a phrase that are looked at, beside those of choices


@dataclass(frozen=True)
class Extracted:
    """The place of a choice, None where none was read, and the rule's name: "none" where no rule fired, "several" where
    one found more than one option."""

    choice: int | None
    rule: str


def chosen(text: str, choices: Sequence[str], *, lettered: bool = True) -> Extracted:
    """The choice that an answer names.

    Args:
        text: the whole output.
        choices: of the item, without letters.
        lettered: the question showed the choices with letters: an answer may name them so.
    """
    reader = _Reader(choices, lettered)
    said = reader.without_echo(_tidy(final_answer(text)))
    for name, rule in _RULES.items():
        found = rule(reader, said) if said else None
        if found is not None:
            return Extracted(None, "several") if found == SEVERAL else Extracted(found, name)
    return Extracted(None, "none")


def same(answer: str, choices: Sequence[str]) -> int | None:
    """The place of the choice that a text is, whatever its case, punctuation and articles; the first of equal ones."""
    if answer in choices:
        return list(choices).index(answer)
    found = _Reader(choices, False).equal(_tidy(answer))
    return None if found == SEVERAL else found


@dataclass(frozen=True)
class _Word:
    text: str  # in lower case
    given: str
    clause: int
    ends: bool  # nothing or a punctuation mark follows
    end: int  # in the text without articles


def _tidy(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text.strip()


def _bare(text: str) -> str:
    return text.strip(" '\"\n").rstrip(".!?。").strip()


def _plain(text: str) -> str:
    return _NOT.sub(" not", _ARTICLE.sub("", text))


def _words(text: str) -> list[_Word]:
    text = _plain(text)
    found: list[_Word] = []
    clause = 0
    for match in _WORD.finditer(text):
        if match[1]:
            rest = text[match.end() :].lstrip(" '\"")
            found.append(_Word(match[1].lower(), match[1], clause, not rest or rest[0] in ".,;:!?。、\n)", match.end()))
        else:
            clause += 1
    return found


class _Reader:
    def __init__(self, choices: Sequence[str], lettered: bool):
        self.choices = [_tidy(choice) for choice in choices]
        self.bare_choices = [_bare(choice) for choice in self.choices]
        self.reach = REACH + 3 * max(map(len, self.choices), default=0)
        self.words = [tuple(word.text for word in _words(choice)) for choice in self.choices]
        last = LETTERS[min(len(choices), 26) - 1] if choices and lettered else ""
        letter = f"[A-{last}a-{last.lower()}]" if last else "(?!)"
        self.bracketed = re.compile(rf"\s*[(\[{{<]\s*({letter})\s*[)\]}}>]")
        self.lettered = re.compile(
            rf"{self.bracketed.pattern}|(?:option|choice|letter)\s*['\"(]*({letter}){_END}['\")]*", re.IGNORECASE
        )
        self.bare = re.compile(rf"['\"]?({letter}){_END}['\"]?")
        self.listed = re.compile(rf"['\"]?({letter})\s*(?:\.(?!\w\.)|[):、,]|-\s|\n)['\"]?")
        self.told = re.compile(rf"\b(?:option|choice|letter)\s+['\"(]*({letter}){_END}(?!')", re.IGNORECASE)
        self.right = re.compile(
            rf"(?<![\w'])[(\[]?({letter})[)\]]?\s+(?:is|seems|would be)\s+(?:the\s+)?"
            r"(?:correct|right|best|most likely)\b"
        )

    def without_echo(self, text: str) -> str:
        """The text without a list of all options."""
        if len(self.choices) < 2 or any(choice.lower() not in text.lower() for choice in self.choices):
            return text
        lines = (
            rf"[(\[]?{LETTERS[place]}\s*[)\].:、]+\s*{re.escape(choice)}"
            for place, choice in enumerate(self.choices[:26])
        )
        return re.sub(r"[\s,;.|/]*".join(lines) + r"[.;]?", "\n", text, flags=re.IGNORECASE).strip()

    def place(self, letter: str) -> int:
        return LETTERS.index(letter.upper())

    def equal(self, text: str) -> int | None:
        """The choice that a text is."""
        plain = _bare(text)
        if plain in self.bare_choices:
            return self.bare_choices.index(plain)
        words = tuple(word.text for word in _words(plain))
        return _one({place for place, some in enumerate(self.words) if words and some == words})

    def starting(self, text: str) -> tuple[int, str] | None:
        """The longest choice that a text begins with, and what follows it."""
        said = _words(text)
        fits = [place for place, some in enumerate(self.words) if self.at(said, 0, some)]
        if not fits:
            return None
        longest = max(fits, key=lambda place: len(self.words[place]))
        return longest, _plain(text)[said[len(self.words[longest]) - 1].end :]

    def goes_on(self, rest: str, labelled: bool = False) -> bool:
        """Whether another option follows: "or B", ", cat"; behind an option with its letter a new sentence or line that
        begins with the text of another is none."""
        link = re.match(r"['\")\].]*\s*(?:[,/&;]\s*(?:(?:or|and)\b)?|or\b|and\b|\n|\.)\s*", rest)
        if link is None:
            return False
        rest = rest[link.end() :]
        labelled = labelled and re.search(r"[,/&;]|or|and", link[0]) is None
        letter = self.bracketed.match(rest) or self.listed.match(rest) or self.bare.fullmatch(rest.rstrip(". "))
        return letter is not None or (not labelled and self.starting(rest) is not None)

    def after(self, rest: str) -> int | None:
        """The option that comes first in a text that follows a phrase."""
        told, text, bare = self.lettered.match(rest), self.starting(rest), self.bare.match(rest)
        whole = self.equal(rest)
        if not told and whole is not None:
            return whole
        if told:
            place, rest = self.place(told[1] or told[2]), rest[told.end() :]
        elif text:
            place, rest = text
        elif bare and _BEHIND.match(rest[bare.end() :]):
            place, rest = self.place(bare[1]), rest[bare.end() :]
        else:
            return None
        own = self.starting(re.sub(r"^[\s.):,-]+", "", rest))
        rest = own[1] if own and self.words[own[0]] == self.words[place] else rest
        return SEVERAL if self.goes_on(rest, labelled=bool(told)) else place

    def named(self, text: str) -> set[int]:
        """The choices whose words are said and not denied."""
        words = _words(text)
        spans: list[tuple[int, int, int]] = []
        for place, some in enumerate(self.words):
            starts = (start for start in range(len(words)) if self.at(words, start, some))
            spans += [(start, start + len(some), place) for start in starts]
        found, denied, ends = set(), _denied(words), dict[int, int]()
        for start, end, _ in spans:
            ends[start] = max(end, ends.get(start, 0))  # of the longest choice there
        longest = max(map(len, self.words), default=0)
        for start, end, place in spans:
            before = range(end - longest, start + 1)
            within = any(ends.get(a, 0) >= end and ends[a] - a > end - start for a in before)
            if not within and not denied[start]:
                found.add(self.bare_choices.index(self.bare_choices[place]))
        return found

    @staticmethod
    def at(words: Sequence[_Word], start: int, some: tuple[str, ...]) -> bool:
        """Whether a choice's words stand at a place; a choice that is a single letter only as a capital that is no
        article or pronoun."""
        if not some or tuple(word.text for word in words[start : start + len(some)]) != some:
            return False
        word = words[start]
        letter = len(some) == 1 and re.fullmatch("[a-z]", word.text)
        return not letter or (word.given.isupper() and (word.given not in "AI" or word.ends))


def _denied(words: Sequence[_Word]) -> list[bool]:
    """Whether each word stands behind a denial in its clause."""
    found, clause, denied = [], -1, False
    for word in words:
        denied = denied and word.clause == clause
        found.append(denied)
        clause = word.clause
        denied = word.text not in _TURN and (denied or word.text in _DENIAL)
    return found


def _one(places: Iterator[int | None] | set[int]) -> int | None:
    found = {place for place in places if place is not None}
    return None if not found else found.pop() if len(found) == 1 else SEVERAL


def _exact(reader: _Reader, text: str) -> int | None:
    plain = text.rstrip(".: ")
    return None if reader.bracketed.fullmatch(plain) or _BOXED.fullmatch(plain) else reader.equal(text)


def _boxed(reader: _Reader, text: str) -> int | None:
    def read(inside: str) -> int | None:
        for rule in (_letter, _exact, _leading, _text):
            if (found := rule(reader, inside.strip())) is not None:
                return found
        return None

    return _one(read(match[1] or match[2] or "") for match in _BOXED.finditer(text))


def _phrase(reader: _Reader, text: str) -> int | None:
    for phrase in _PHRASES:
        # What follows is looked at as far as an option and the next one reach, and once where it is repeated.
        rests = {text[match.end() : match.end() + reader.reach] for match in phrase.finditer(text)}
        if (found := _one(map(reader.after, rests))) is not None:
            return found
    return _one(reader.place(match[1]) for match in reader.right.finditer(text))


def _option(reader: _Reader, text: str) -> int | None:
    return _one(reader.place(match[1]) for match in reader.told.finditer(text))


def _letter(reader: _Reader, text: str) -> int | None:
    plain = text.strip().rstrip(".:,!。)").strip()
    found = reader.bracketed.fullmatch(text.rstrip(".: ")) or reader.bare.fullmatch(plain.lstrip("("))
    return reader.place(found[1]) if found else None


def _leading(reader: _Reader, text: str) -> int | None:
    found = reader.bracketed.match(text) or reader.listed.match(text)
    if found is None:
        return None
    place, rest = reader.place(found[1]), text[found.end() :]
    if _WRONG.match(rest):
        return None
    if reader.equal(rest) == place:
        return place
    if text_after := reader.starting(rest):
        other, rest = text_after
        if other != place and reader.words[place] != reader.words[other]:
            return SEVERAL
    some = (rest, found[0][-1] + rest)
    return SEVERAL if any(reader.goes_on(one, labelled=True) for one in some) else place


def _first(reader: _Reader, text: str) -> int | None:
    found = reader.starting(text)
    if found is None:
        return None
    place, rest = found
    polar = len(reader.words) == 2 and reader.words[place] in (("yes",), ("no",))
    if not re.match(r"[.;:!\n]|, (?:because|since|as|not)\b" + ("|," if polar else ""), rest):
        return None
    return SEVERAL if reader.goes_on(rest) else place


def _text(reader: _Reader, text: str) -> int | None:
    return _one(reader.named(text))


_RULES = {
    "exact": _exact,
    "boxed": _boxed,
    "phrase": _phrase,
    "option": _option,
    "letter": _letter,
    "leading": _leading,
    "first": _first,
    "text": _text,
}
