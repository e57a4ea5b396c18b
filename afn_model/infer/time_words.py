"""What the words around a number say of it: when something is, how long it takes, or something else altogether."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LOOK = 48  # characters before and behind a time that decide what it is


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


@dataclass
class FoundTime:
    """An amount or a clock where it stands in a text.

    Args:
        form: which of the scanner's.
        start, end: its characters.
        values: seconds, and where each is written.
        ranged: whether "to" stands between a value and the next one.
        unit: of an amount, as it is written.
        pair: of a clock of two whole parts.
        kept: whether it says when something is.
        marked: "the 5-second mark".
    """

    form: str
    start: int
    end: int
    values: list[tuple[float, int, int]]
    ranged: list[bool] = field(default_factory=list)
    unit: str = ""
    pair: tuple[int, int] | None = None
    kept: bool = False
    marked: bool = False

    @property
    def length(self) -> float:
        """The last value."""
        return self.values[-1][0]


_ONES = "one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: value for value, word in enumerate(f"{_ONES} {_TEENS}".split(), 1)}
_VALUES |= {word: 10 * value for value, word in enumerate(_TENS.split(), 2)} | {"a": 1}
ONE, TEEN, TEN = ("|".join(words.split()) for words in (_ONES, _TEENS, _TENS))
TO_99 = rf"(?:(?:{TEN})(?:[ -](?:{ONE}))?|{TEEN})"  # from ten
SPELLED = rf"(?:(?:a|one|two|three)[ ]hundred(?:[ ]and)?(?:[ -](?:{TO_99}|{ONE}))?|{TO_99}|{ONE})"
UNITS = {"h": 3600, "m": 60, "s": 1}
# Words that a lead is read past: "at about the 5-second mark".
_PASSED = _set(
    "about approximately approx approx. roughly exactly precisely only just almost nearly either the ca. circa right "
    "shortly somewhere sometime time timestamp timestamps t= t ~ ≈ = marks mark"
)
WHEN = _set(
    "at @ around near by from since until till before past after between starting beginning ending ends end begins "
    "starts start onset time: timestamp: t= t ="
)
_HOW_LONG = _set(
    "for last lasts lasting lasted every each over take takes took taking span spans spanning within during of than "
    "next another additional extra in wait waits waited waiting hold holds held holding run runs running continue "
    "continues continued continuing pause pauses paused a an this per"
)
_TO_WHEN = _set("up close next prior skip seek jump go forward back")
_BY_HOW_MUCH = _set(
    "delayed shifted reduced extended longer shorter separated cut lengthened increased trimmed ahead behind off "
    "earlier later exceeds late early"
)
OPENING, CLOSING = _set("first initial opening"), _set("last final closing")
_LABELS = _set("duration length runtime total pause gap silence delay decay reverb attack release interval pauses gaps")
_CLIP = (
    r"(?:clip|recording|song|track|piece|video|audio|sample|file|excerpt|intro|outro|pause|silence|delay|decay|gap|loop"
    r"|long|countdown|segment|snippet|film|release|attack|fade|tail|interval|sound)s?\b"
)
_NOT_WHEN_BEHIND = re.compile(
    r"[ -]?(?:(?:long|later|apart|ago|earlier|each|per|more|less|longer|shorter|old|away|late|early|left|remain\w*"
    r"|of(?! the\b| this\b| that\b)|in (?:length|duration|total|all|between|advance|a row|the oven)"
    r"|pass(?:es)?|(?:is|are|were) (?:left|needed|long)|or (?:so|more|less) (?:later|long|apart)|duration|worth)\b)",
    re.IGNORECASE,
)
_IN_BEHIND = re.compile(
    r" ?(?:in(?:to)?\b|(?:from|after) the (?:start|beginning|outset)\b|onwards?\b|on[,.])", re.IGNORECASE
)
BEFORE_END = re.compile(r" (?:before|from) (?:the|its) (?:very )?end\b", re.IGNORECASE)
MARK = re.compile(r"[ -]?(?:mark|point|timestamp|position)s?\b", re.IGNORECASE)
_ENDS = re.compile(r"\s*(?:$|[.,;:!?)\]}|/–—\"'”*>-])")
_ARTICLE = re.compile(r"\b(?:the|this|that|its|his|her|their) $", re.IGNORECASE)
_CLIPS = re.compile(rf"[ -]?{_CLIP}", re.IGNORECASE)
RANGE = re.compile(
    r"(?:[ -]?(?:mark|point))?,?\s{0,2}(?:-->|-|–|—|\b(?:up to|to|until|till|through|thru)\b)\s{0,2}"
    r"(?:(?:about|around|approximately|roughly|nearly|the|~)\s?){0,2}",
    re.IGNORECASE,
)
END_KEY = re.compile(
    r"[\"']?,?\s{0,2}[\"']?(?:end|stop|offset|to)(?:[ _]?(?:time|seconds|sec|s))?[\"']?\s?[:=]\s?[\"']?", re.IGNORECASE
)
AND = re.compile(
    r"(?:[ -]?(?:mark|point))? (?:and|&) (?:(?:about|around|approximately|roughly|the|~)\s?){0,2}", re.IGNORECASE
)
_ALSO = re.compile(r"(?:,? (?:and|or|then|&) |, |/|; )(?:about |around |the |~)?", re.IGNORECASE)
JOINED = re.compile(r"(?:,? and |, | |)", re.IGNORECASE)
REST = re.compile(rf" (?:and )?(\d{{1,2}}|{TO_99})(?=[.,;:)!?]|$| to | until | and )", re.IGNORECASE)
_VERSE = _set(
    "genesis exodus leviticus numbers deuteronomy joshua judges ruth samuel kings chronicles ezra nehemiah esther job "
    "psalm psalms proverbs ecclesiastes isaiah jeremiah lamentations ezekiel daniel hosea joel amos obadiah jonah "
    "micah nahum habakkuk zephaniah haggai zechariah malachi matthew mark luke john acts romans corinthians galatians "
    "ephesians philippians colossians thessalonians timothy titus philemon hebrews james peter jude revelation surah "
    "sura quran verse verses chapter"
)
_OF_DAY_BEHIND = re.compile(
    r"\s?(?:[ap]\.?\s?m\b|o['’]?clock|hours\b|(?:local|eastern|pacific|central|standard) time|(?:gmt|utc|cet)\b"
    r"|(?-i:in the (?:morning|afternoon|evening)|at night\b|(?:today|tonight|tomorrow|yesterday)\b"
    r"|this (?:morning|evening|afternoon)\b)"
    r"|on (?:mon|tues|wednes|thurs|fri|satur|sun)day)",
    re.IGNORECASE,
)
_RATIO_BEHIND = re.compile(
    r" (?:ratio|aspect|odds|split|mix|scale|long\b|in length|train|bus|flight|express|news|bulletin|from [A-Z])"
)
_OF_DAY = re.compile(
    r"(?:\b(?:meet(?: \w+)? at|meeting (?:starts|begins|is|was|runs|ends)\b[^.;\n]{0,36}|scheduled (?:for|at)"
    r"|appointment \w*\s?(?:at|for)|departs? at|departing at|leaves (?:\w+ ){0,2}at|clock (?:says|reads|shows)"
    r"|(?:tonight|tomorrow|yesterday|dinner|lunch|breakfast)\b[^.;\n]{0,12}|(?:wake|woke) up at"
    r"|alarm (?:is|was) set (?:for|to))|[\"“](?:it['’]?s|it is))\s*$",
    re.IGNORECASE,
)
_RATIO = re.compile(r"\b(?:ratio|odds|aspect|proportion)\b[^.;\n]{0,32}$", re.IGNORECASE)
_SCORE = re.compile(
    r"\b(?:won|beat|beats|lost|score[sd]?|scoreline|defeated|leads?|result)\b[^.;\n]{0,20}$", re.IGNORECASE
)


def number_value(number: str) -> float:
    """Of digits, or of a number below 400 in words."""
    if number[0].isdigit():
        return float(number)
    total = 0.0
    for word in re.split(r"[ -]", number.lower()):
        total = 100 * (total or 1) if word == "hundred" else total + _VALUES.get(word, 0)
    return total


def words_before(text: str, at: int) -> list[str]:
    """The last words of a line before a place, without those that a lead is read past."""
    line = text[max(0, at - LOOK) : at].rpartition("\n")[2].rpartition("think>")[2].lower()
    words = line.rstrip("~≈ ").split()[-5:]
    while words and words[-1].lstrip('(*["“') in _PASSED:
        words.pop()
    if words:
        words[-1] = words[-1].lstrip('(*["“-') or words[-1]
    return words


def says_when(text: str, one: FoundTime, last: FoundTime | None) -> bool:
    """Whether an amount of time is a moment, or the length of a span that is one; ``last`` stands before it."""
    behind, before = text[one.end : one.end + LOOK], text[max(0, one.start - LOOK) : one.start].lower()
    if BEFORE_END.match(behind):
        return True
    words = words_before(text, one.start)
    lead = words[-1] if words else ""
    if lead in OPENING or lead in CLOSING or one.marked:
        return not (lead in OPENING | CLOSING and _CLIPS.match(behind))
    if _NOT_WHEN_BEHIND.match(behind):
        return False
    said = text[one.start : one.end].lower()
    spelled = one.unit not in ("s", "sec", "secs", "min", "mins", "h", "hr", "hrs")
    one_of_it = one.values[-1][0] == UNITS[one.unit[0]] or "half" in said
    if (re.search(r"[\w]-(?:hour|minute|second|min|sec|s)\b", said) and "half" not in said) or (
        spelled and not one.unit.endswith("s") and not one_of_it
    ):
        return False  # a 30-second clip
    earlier = words[-2] if len(words) > 1 else ""
    if lead == "than" and earlier in ("later", "earlier", "sooner"):
        return True
    decade = re.fullmatch(r"\d{0,2}\d0s", said) and re.search(r"(?:the|his|her|their|early|late|mid)[ -]$", before)
    if decade or lead in _HOW_LONG or (lead == "by" and earlier in _BY_HOW_MUCH):
        return False
    if _IN_BEHIND.match(behind) or lead in WHEN or (lead == "to" and earlier in _TO_WHEN):
        return True
    if last is not None and last.kept and one.start - last.end < 16:
        between = text[last.end : one.start]
        if RANGE.fullmatch(between) or AND.fullmatch(between) or (not spelled and _ALSO.fullmatch(between)):
            return True
    if lead and lead[-1] not in '.,;:|([{/–—-*>="“)]':
        return False
    if lead.rstrip(":=") in _LABELS:
        return False
    digits = said[0].isdigit() or said[-1].isdigit()
    if spelled:
        return (digits or (not lead and len(said) + 2 >= len(text.strip()))) and _ENDS.match(behind) is not None
    return digits and not _CLIPS.match(behind)


def is_no_clock(text: str, one: FoundTime) -> bool:
    """Whether two numbers and a colon are a time of day, a verse, a ratio, a score or a length."""
    behind, before = text[one.end : one.end + LOOK], text[max(0, one.start - LOOK) : one.start]
    if _OF_DAY_BEHIND.match(behind) or _RATIO_BEHIND.match(behind):
        return True
    words = words_before(text, one.start)
    lead = words[-1] if words else ""
    if MARK.match(behind):
        return False
    name = lead.strip(".,:;")
    if (name in _VERSE and lead[-1].isalpha()) or before.endswith("Mark "):
        return one.pair is not None
    if lead in _HOW_LONG and lead not in ("in", "than", "of", "last", "during", "over", "within"):
        return not before.rstrip().lower().endswith(" this") or bool(_CLIPS.match(behind))
    if _CLIPS.match(behind) and _ARTICLE.search(before):
        return True
    if lead.endswith((":", "=", "of", "is")) and {name, *(w.strip(":=") for w in words[-2:])} & _LABELS:
        return True
    if (one.pair is None or 0 < one.pair[0] < 24) and _OF_DAY.search(before):
        return True
    return lead not in WHEN and bool(_RATIO.search(before) or _SCORE.search(before))
