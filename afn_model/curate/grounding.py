"""Whether a caption stands on annotations: what it names occurs in one of them, and is heard, not only seen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from afn_model.curate.texts import units_of
from afn_model.infer.stated_times import stated_times

SHARE = 0.5  # of what a sentence or an event names, that must occur in annotations
_SLACK = 0.5  # seconds that a stated time may be after the end
_SENTENCE = re.compile(r"(?<=[.!?。！？])[\"”’')\]]*\s+|(?<=[。！？])")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_DIGITS = re.compile(r"[\d_]+")
_SUFFIXES = ("ings", "ing", "ers", "er", "ies", "ied", "es", "ed", "ly", "s")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words that say the same, by one of them.
_SAME = {
    one: words[0]
    for words in map(
        str.split,
        (
            "speak speaks speaking spoken speech say says said saying talk talks talking talked tell tells telling"
            " voice voices speaker speakers person people someone somebody utter utters word words conversation",
            "man men male gentleman",
            "woman women female lady",
            "music musical melody melodies song songs tune tunes",
            "child children kid kids",
            "vehicle vehicles car cars automobile truck",
        ),
    )
    for one in words
}
# Words that tell no event: they neither stand for a sentence nor against it.
_NEUTRAL = _set(
    "a an the and or but nor so yet of in on at to for from by with without into onto over under up down off out"
    " about as than then while when before after during until since between through across along around near is are"
    " was were be been being am has have had do does did can could may might will would shall should must that this"
    " these those it its it's they them their he him his she her hers we our us you your i my who whom whose which"
    " what where how there here not no all any both each few more most other some such only own same too very just"
    " also again once several one two three four five six seven eight nine ten first second third last lasts lasting"
    " next finally followed follow follows begin begins start starts end ends continue continues heard hear hears"
    " audible sound sounds noise noises audio recording clip segment background foreground throughout briefly moment"
    " moments short long brief time times seconds minutes part whole overall together later still clearly quietly"
    " loudly soft softly loud quiet low high faint faintly like seems appears come comes goes go occur occurs make"
    " makes another different many much often parts"
)
# Words of what nobody hears.
_SEEN = _set(
    "red orange yellow green blue purple pink brown black white grey gray colourful colorful coloured colored"
    " visible visibly seen sees see watch watches watching look looks looking wears wearing dressed shirt dress hat"
    " jacket screen camera shown shows showing picture image frame footage video caption subtitle gesture gestures"
    " smiles smiling nods points stares holding bright dark"
)


@dataclass(frozen=True)
class Grounded:
    """What is left of a caption.

    Args:
        text: the sentences that stand; "" where none does.
        events: those that occur in annotations and in what is left.
        tally: what was taken out, and why.
    """

    text: str
    events: tuple[str, ...]
    tally: Counter[str]


def grounded(
    caption: str, events: Sequence[str], heard: Iterable[str], seen: Iterable[str] = (), *, seconds: float
) -> Grounded:
    """Takes out of a caption the sentences that state a time outside of the recording, that tell what can only be seen,
    or that name what no annotation has.

    Args:
        caption: the text.
        events: that it is said to tell of.
        heard: annotations by ear.
        seen: annotations by eye.
        seconds: of the recording.
    """
    by_ear = named_in(heard)
    by_eye = named_in(seen) - by_ear
    sight = {stem(one) for one in _SEEN} - by_ear
    wrong = [one for one in events if not stands(stems(one), by_ear)]
    missing = [set(stems(one)) - by_ear for one in wrong]
    kept, tally = [], Counter[str]()
    for sentence in sentences(caption):
        named = stems(sentence)
        if any(not 0 <= moment <= seconds + _SLACK for moment in _moments(sentence, seconds)):
            tally["sentences with times outside of the recording"] += 1
        elif set(named) & sight or set(named) & by_eye:
            tally["sentences of what is only seen"] += 1
        elif not stands(named, by_ear) or any(one and one <= set(named) for one in missing):
            tally["sentences that no annotation has"] += 1
        else:
            kept.append(sentence)
    if wrong:
        tally["events that no annotation has"] = len(wrong)
    left = set(stems(" ".join(kept)))
    return Grounded(
        " ".join(kept), tuple(one for one in events if one not in wrong and stands(stems(one), left)), tally
    )


def sentences(text: str) -> list[str]:
    return [one.strip() for one in _SENTENCE.split(text) if one.strip()]


def stems(text: str) -> list[str]:
    """What a text names: its words but for those that tell no event, each reduced to what its forms have in common."""
    found = [text.lower()] if text.isascii() else units_of(text)
    words = [word for one in found for word in (_WORD.findall(one) if one.isascii() else _DIGITS.split(one))]
    return [stem(word) for word in words if word not in _NEUTRAL and (len(word) > 1 or not word.isascii())]


def named_in(texts: Iterable[str]) -> set[str]:
    """What texts name together."""
    return {one for text in texts for one in stems(text)}


def stem(word: str) -> str:
    """A word without endings: barking, barks, barked -> bark."""
    word = word.removesuffix("'s")
    if word in _SAME:
        return _SAME[word]
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 - (suffix in ("ies", "ied")):
            word = word.removesuffix(suffix) + "y" * (suffix in ("ies", "ied"))
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word.rstrip("ey") if len(word) > 3 else word


def stands(named: Collection[str], annotated: Collection[str]) -> bool:
    """Whether half of what is named at least is in annotations; nothing stands."""
    return sum(one in annotated for one in named) >= SHARE * len(named)


def _moments(sentence: str, seconds: float) -> Iterable[float]:
    for one in stated_times(sentence, seconds):
        yield one.start
        if one.end is not None:
            yield one.end
