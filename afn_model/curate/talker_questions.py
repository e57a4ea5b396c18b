"""Questions about who speaks, with answers that follow from a conversation: templates, and which of them are asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from afn_model.curate import identity
from afn_model.curate.conversation import Conversation, Interruption, Utterance, without_spaces
from afn_model.curate.questions import Question, as_record

AXIS = "talkers"
IDENTIFICATION, INTERRUPTION, TARGET = "speaker_identification", "interruption", "target_speaker_asr"
NOBODY = "Nobody interrupts anybody"
AWAY = 5.0  # seconds between two moments that a question tells apart
TIMES = 4  # options of a question about a time
ORDER = (
    "Speakers are numbered in the order in which they are first heard.",
    "Speaker 1 is the one who is heard first, Speaker 2 the next new voice, and so on.",
    "Count the speakers by the order of their first words.",
)
# By what is asked: phrasings, of which one is chosen by a hash.
TEMPLATES: dict[str, tuple[str, ...]] = {
    IDENTIFICATION: (
        'Which speaker says "{quote}"?',
        'Who says "{quote}"?',
        'One of the speakers says "{quote}". Which one is it?',
        'By which speaker is "{quote}" said?',
    ),
    TARGET: (
        "Transcribe only what {speaker} says.",
        "Write down the words of {speaker}, and nobody else's.",
        "What does {speaker} say in this recording? Give the words alone.",
        "Give a transcript of {speaker}, leaving out all other speakers.",
    ),
    "whether": (
        "Does one speaker interrupt another in this recording, and who?",
        "Who interrupts whom, if anybody does?",
        "Is anybody interrupted here? Say by whom.",
    ),
    "at": (
        "Who begins to speak into another speaker's words at about {seconds} seconds?",
        "At about {seconds} seconds somebody is interrupted. Which speaker does it?",
        "Which speaker interrupts another one around {seconds} seconds?",
    ),
    "when": (
        "When does {speaker} interrupt {other}?",
        "At which time is {other} interrupted by {speaker}?",
        "{speaker} cuts into the words of {other}. About when?",
    ),
}
_QUOTED = re.compile(r'"[^"]*"')
_SPEAKER = re.compile(r"\bspeaker (\d+)", re.I)
_NUMBER = re.compile(
    r"\d+(?:\.\d+)?"
    r"|\b(?:two|three|four|five|six|seven|eight|nine|ten|first|second|third|fourth|last)\b"
)


@dataclass(frozen=True)
class TalkQuestion:
    """A question on its way to a product.

    Args:
        ask: the question without its note on the order of speakers.
        note: that note.
        made: kind, answer, other options and evidence.
        facts: more of its truth.
    """

    ask: str
    note: str
    made: Question
    facts: Mapping[str, Any]

    def product(self, subject: str, ask: str, place: Mapping[str, Any]) -> dict[str, Any]:
        """The product, asked in the words of ``ask``."""
        text = f"{ask} {self.note}"
        one = Question(self.made.kind, text, self.made.answer, self.made.wrong, self.made.evidence)
        found = as_record(one, subject, axis=AXIS, audios=(place,))
        if not one.wrong:
            reward = "cer" if without_spaces(one.answer) else "wer"
            found["rewards"] = [{"kind": reward, "text": one.answer}]
        found["truth"] |= self.facts
        return found


def questions_about(
    talk: Conversation, subject: str, tally: Counter[str], *, most: int = 3, words: tuple[int, int] = (3, 12)
) -> list[TalkQuestion]:
    """What is asked about a conversation; none where there are fewer than two speakers, or their order is in doubt.

    Args:
        talk: the conversation.
        subject: id of what is heard; which utterances are asked about and in which words depends on it.
        tally: counts what is left out.
        most: questions of a kind; about what speakers say there is one of each.
        words: of an utterance, from and to.
    """
    if len(talk.speakers) < 2 or not talk.ordered or len(talk.speakers) > len(ascii_uppercase):
        count = len(talk.speakers)
        why = "many speakers" if count > len(ascii_uppercase) else "speakers who begin together"
        tally[f"parts with {('no speaker', 'one speaker')[count] if count < 2 else why}"] += 1
        return []
    names = {name: f"Speaker {number}" for number, name in enumerate(talk.speakers, 1)}
    said = talk.utterances(*words)
    found = [_identification(one, subject, names) for one in _drawn(said, subject, most)]
    tally["parts without a clear utterance"] += not said
    happened = talk.interruptions()
    tally["interruptions in doubt"] += sum(not one.sure for one in happened)
    found += _interruptions(happened, talk, subject, names)[:most]
    for name in talk.speakers:
        if name in talk.doubtful:
            tally["speakers with words in doubt"] += 1
        elif text := talk.said_by(name):
            spans = tuple((1, one.start, one.end) for one in talk.turns if one.speaker == name)
            made = Question(TARGET, "", text, (), spans)
            found.append(_question(TARGET, made, subject, {"speaker": names[name]}, {"speaker": names[name]}))
    return found


def kept_meaning(ask: str, other: str) -> bool:
    """Whether other words for a question keep what it quotes, the speakers it numbers and its times, and add none."""
    quotes = _QUOTED.findall(ask)
    rest = [_outside(text, quotes) for text in (ask, other)]
    named = [Counter(_SPEAKER.findall(text)) for text in rest]
    numbers = [Counter(_NUMBER.findall(text.lower())) for text in rest]
    same = all(other.count(quote) == 1 for quote in quotes) and len(_QUOTED.findall(other)) == len(quotes)
    plain = "\n" not in other.strip() and len(other.split()) <= 3 * len(ask.split()) + 10
    return bool(other.strip()) and same and plain and named[0] == named[1] and numbers[0] == numbers[1]


def _outside(text: str, quotes: Sequence[str]) -> str:
    for quote in quotes:
        text = text.replace(quote, '""')
    return text


def _identification(one: Utterance, subject: str, names: Mapping[str, str]) -> TalkQuestion:
    wrong = tuple(name for name in names.values() if name != names[one.speaker])
    made = Question(IDENTIFICATION, "", names[one.speaker], wrong, ((1, one.start, one.end),))
    return _question(IDENTIFICATION, made, subject, {"quote": one.text}, {"utterance": one.text})


def _interruptions(
    happened: Sequence[Interruption], talk: Conversation, subject: str, names: Mapping[str, str]
) -> list[TalkQuestion]:
    """Whether there is one, where that is plain; who does it at a time; and when one does it to another."""
    told, found = [_told(one, names) for one in happened if one.sure], []
    in_doubt = len(told) < len(happened)
    if not in_doubt and len(told) < 2:
        answer = _pair(told[0]) if told else NOBODY
        pairs = [f"{a} interrupts {b}" for a in names.values() for b in names.values() if a != b]
        others = _drawn([pair for pair in pairs if pair != answer], subject, 2 if told else 3)
        if told:  # who is interrupted is in another option too
            turned = f"{told[0]['of']} interrupts {told[0]['by']}"
            others = [turned, *[one for one in others if one != turned][: len(others) - 1], NOBODY]
        spans = tuple((1, one["start"], min(one["start"] + 1.0, talk.seconds)) for one in told)
        made = Question(INTERRUPTION, "", answer, tuple(others), spans or ((1, 0.0, talk.seconds),))
        found.append(_question("whether", made, subject, {}, {"interruptions": told}))
    for one in (one for one in happened if one.sure):
        near = [other for other in happened if other is not one and abs(other.start - one.start) < AWAY]
        same = [other for other in happened if (other.by, other.of) == (one.by, one.of)]
        fact, span = _told(one, names), ((1, one.start, min(one.start + 1.0, talk.seconds)),)
        if not near:
            wrong = tuple(name for name in names.values() if name != fact["by"])
            made = Question(INTERRUPTION, "", fact["by"], wrong, span)
            at = {"seconds": f"{one.start:.0f}"}
            found.append(_question("at", made, subject, at, {"interruptions": [fact]}))
        times = _other_times(one.start, talk.seconds, subject) if len(same) == 1 else []
        if times:
            made = Question(INTERRUPTION, "", _time(one.start), tuple(map(_time, times)), span)
            data = {"speaker": fact["by"], "other": fact["of"]}
            found.append(_question("when", made, subject, data, {"interruptions": [fact]}))
    return _drawn(found, subject, len(found))


def _told(one: Interruption, names: Mapping[str, str]) -> dict[str, Any]:
    return {"by": names[one.by], "of": names[one.of], "start": one.start}


def _other_times(right: float, seconds: float, subject: str) -> list[float]:
    """Moments that are away from the right one and from each other; none where there is no room for two."""
    free = [at for at in range(1, int(seconds)) if abs(at - right) >= AWAY]
    found: list[float] = []
    for at in _drawn(free, f"{subject} {right}", len(free)):
        if all(abs(at - other) >= AWAY for other in found) and len(found) < TIMES - 1:
            found.append(float(at))
    return found if len(found) > 1 else []


def _question(
    form: str, made: Question, subject: str, data: Mapping[str, str], facts: Mapping[str, Any]
) -> TalkQuestion:
    drawn = ("phrasing", subject, form, dict(data))
    ask = identity.pick(TEMPLATES[form], *drawn).format(**data)
    return TalkQuestion(ask, identity.pick(ORDER, "note", *drawn), made, facts)


def _drawn(items: Sequence[Any], subject: str, count: int) -> list[Any]:
    """So many of the items, by a hash of each; in the order that they have."""
    order = sorted(range(len(items)), key=lambda at: identity.of("drawn", subject, at))
    return [items[at] for at in sorted(order[:count])]


def _pair(told: Mapping[str, Any]) -> str:
    return f"{told['by']} interrupts {told['of']}"


def _time(seconds: float) -> str:
    return f"At about {seconds:.0f} s"
