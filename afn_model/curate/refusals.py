"""What is unsafe in a recording, the request about it that is refused, and the harmless one beside it: their checks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.curate.grounding import grounded, stems
from afn_model.curate.questions import ALIKE, SLACK, alike, misfit, tells_of_captions
from afn_model.curate.replies import NUMBER, TEXT, array_of, object_of
from afn_model.curate.texts import place_of, runs_of, words_of
from afn_model.curate.timeline import Moment, Timeline
from afn_model.scoring.text import refuses

CATEGORIES: dict[str, str] = {
    "violence": "Somebody threatens, plans or does bodily harm to others.",
    "weapons": "Weapons or explosives are sold, passed on, or got ready for use against people.",
    "self-harm": "Somebody hurts themselves, wants to, or is told to.",
    "sexual content": "Sexual acts are heard, described or demanded.",
    "hate or harassment": "People are insulted, threatened or shut out for what they are, or somebody is hounded.",
    "dangerous instructions": "It is told how to make or do what can badly hurt people.",
    "illegal acts": "A crime is planned, praised or taught, such as theft, fraud or drug dealing.",
    "private data": "Secrets of a person are given away, such as passwords, addresses or health records.",
    "child in danger": "A child is in danger, in distress, or abused.",
}
MANY = 100  # spans of a reply that are read
REPEATED = 5  # words in a row of what is unsafe that a refusal must not have
PAUSE, LONGEST = 1.0, 30  # seconds between two passages, and words of one
_BESIDE = 1.0  # seconds that words may be before or after the span that quotes them
_STRING = {"type": "string"}
_SPAN = object_of({"start": NUMBER, "end": NUMBER, "category": _STRING, "quote": _STRING})
SPANS = object_of({"spans": array_of(_SPAN)})
PAIR = object_of(dict.fromkeys(("request", "answer", "reason", "offer", "twin", "reply"), TEXT))
BENIGN = object_of(dict.fromkeys(("request", "words", "reply"), TEXT))
_REASON = re.compile(
    r"\b(because|since|due to|(it|this|that|which|they|doing so) (could|would|might|may)"
    r"|harm\w*|hurt\w*|danger\w*|illegal\w*|unsafe|crim\w*|injur\w*|threat\w*|violen\w*|abus\w*|privacy|against)\b"
)
_OFFER = re.compile(
    r"\b(i (can|could)(?! ?not|')|i'd be (glad|happy)|i'm (glad|happy)|(glad|happy) to|would you like|let me know"
    r"|if you (want|like|need|wish|prefer))\b"
)


@dataclass(frozen=True)
class UnsafeSpan:
    """Something unsafe: seconds, one of ``CATEGORIES``, and the words that show it."""

    start: float
    end: float
    category: str
    quote: str


def passages(transcript: Mapping[str, Any], seconds: float) -> Timeline:
    """What is said, cut at pauses; all of it at once where the words have no times."""
    words = transcript.get("words") or []
    if not words:
        text = " ".join(transcript.get("text", "").split())
        return Timeline((Moment(0.0, seconds, text),) if text else (), (seconds,))
    found: list[list[Mapping[str, Any]]] = []
    for one in words:
        if not found or one["start"] - found[-1][-1]["end"] > PAUSE or len(found[-1]) >= LONGEST:
            found.append([])
        found[-1].append(one)
    said = [Moment(one[0]["start"], one[-1]["end"], " ".join(word["word"] for word in one)) for one in found]
    return Timeline(tuple(said), (seconds,))


def words_between(transcript: Mapping[str, Any], start: float, end: float) -> str:
    """Words that are said between two moments; all where they have no times."""
    words = transcript.get("words") or []
    if not words:
        return " ".join(transcript.get("text", "").split())
    return " ".join(one["word"] for one in words if one["start"] < end and one["end"] > start)


def unsafe_spans(
    data: Mapping[str, Any], heard: Timeline, transcript: Mapping[str, Any], tally: Counter[str]
) -> list[UnsafeSpan]:
    """The spans of a reply that are in the recording and whose quotes are said there, or are in a caption of there.

    Args:
        data: reply, as ``SPANS`` says.
        heard: captions of the recording.
        transcript: of it.
        tally: counts what is left out.
    """
    found: list[UnsafeSpan] = []
    if beyond := len(data["spans"][MANY:]):
        tally[f"unsafe spans lost: beyond the first {MANY}"] += beyond
    for one in data["spans"][:MANY]:
        start, end = float(one["start"]), min(float(one["end"]), heard.seconds[0])
        span = UnsafeSpan(start, end, " ".join(one["category"].lower().split()), " ".join(one["quote"].split()))
        spoken = words_between(transcript, start - _BESIDE, end + _BESIDE)
        if not 0 <= start < end or one["end"] > heard.seconds[0] + SLACK:
            wrong = "outside of the recording"
        elif span.category not in CATEGORIES:
            wrong = "unknown category"
        elif not any(_quotes(text, span.quote) for text in (spoken, *heard.during([(1, start, end)]))):
            wrong = "the quote is neither said nor heard there"
        elif any(other.category == span.category and other.start < end and other.end > start for other in found):
            wrong = "twice"
        else:
            found.append(span)
            continue
        tally[f"unsafe spans lost: {wrong}"] += 1
    return sorted(found, key=lambda one: (one.start, one.end, one.category))


def pair_wrong(pair: Mapping[str, str], span: UnsafeSpan, heard: Sequence[str], seconds: float) -> str:
    """What is wrong with a refusal and its twin, in few words that are counted; "" where nothing is.

    A refusal declines by ``scoring.text.refuses``. Its reason and its offer are parts of it, word by word, apart from
    each other; a reason has a word such as "because", or names a harm; an offer says what the assistant can do, or asks
    what is wanted, and does not decline in its turn.

    Args:
        pair: reply, as ``PAIR`` says.
        span: that it is about.
        heard: captions, and what is said.
        seconds: of what is heard.
    """
    if wrong := misfit(pair.values()):
        return wrong
    answer = words_of(pair["answer"])
    if wrong := tells_of_captions(pair[name] for name in ("request", "answer", "twin", "reply")):
        return wrong
    if alike(pair["request"], pair["twin"]) > ALIKE:
        return "the twin asks for the same"
    if not refuses(pair["answer"]):
        return "the refusal does not decline"
    reason, offer = place_of(words_of(pair["reason"]), answer), place_of(words_of(pair["offer"]), answer)
    if reason is None or len(reason) < 3 or not _REASON.search(_plain(pair["reason"])):
        return "the refusal has no reason"
    if offer is None or len(offer) < 3 or not _OFFER.search(_plain(pair["offer"])) or refuses(pair["offer"]):
        return "the refusal has no offer"
    if reason.start < offer.stop and offer.start < reason.stop:
        return "reason and offer are one"
    if {*runs_of(answer, REPEATED)} & {*runs_of(words_of(span.quote), REPEATED)}:
        return "the refusal repeats what is unsafe"
    return f"the twin {wrong}" if (wrong := reply_wrong(pair["reply"], heard, seconds)) else ""


def benign_wrong(pair: Mapping[str, str], heard: Sequence[str], seconds: float) -> str:
    """What is wrong with a harmless request that sounds harmful, and its answer; arguments as of ``pair_wrong``."""
    if wrong := misfit(pair.values()):
        return wrong
    if wrong := tells_of_captions((pair["request"], pair["reply"])):
        return wrong
    if place_of(words_of(pair["words"]), words_of(pair["request"])) is None:
        return "nothing sounds harmful"
    return f"the answer {wrong}" if (wrong := reply_wrong(pair["reply"], heard, seconds)) else ""


def reply_wrong(reply: str, heard: Sequence[str], seconds: float) -> str:
    """What is wrong with an answer that should be given: it declines, or is not in what is heard."""
    if refuses(reply):
        return "declines"
    return "" if stands(reply, heard, seconds) else "is not in the captions"


def stands(text: str, heard: Sequence[str], seconds: float) -> bool:
    """Whether a text names something, and every sentence of it stands by ``grounding.grounded``."""
    return bool(stems(text)) and not grounded(text, (), heard, seconds=seconds).tally


def _quotes(text: str, quote: str) -> bool:
    wanted, there = words_of(quote), words_of(text)
    if any(letter >= "\u2e80" for letter in quote):  # written without spaces
        return bool(wanted) and "".join(wanted) in "".join(there)
    return place_of(wanted, there) is not None


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")
