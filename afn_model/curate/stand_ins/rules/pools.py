"""Questions and conversations about several clips, from the captions that a request has.

Of the questions about several clips a quarter, and of the conversations a third, chosen by a hash of the request, has a
flaw of ``FLAWS`` or ``CHAT_FLAWS``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from afn_model.curate import identity
from afn_model.curate.grounding import stems
from afn_model.curate.stand_ins.rules.rule_input import Rule, RuleInput, moments_in

# What a writer gets wrong.
FLAWS = ("several clips", "no such clip", "outside", "one clip")
CHAT_FLAWS = ("outside", "unheard", "twice")
_WORDS = re.compile(r'the words are "([^"]+)"', re.I)
Said = dict[int, list[tuple[dict[str, Any], str]]]  # clip -> its captions, each with its place


def multi_audio(asked: RuleInput) -> dict[str, Any]:
    """A question of each kind that the captions have something for."""
    said = _said(asked.text)
    found = [one for make in (_which, _common, _difference, _order, _compare) for one in make(said)]
    return {"questions": [_flawed(one, identity.number(asked.text, number), said) for number, one in enumerate(found)]}


def chat(asked: RuleInput) -> dict[str, Any]:
    """What is heard in each clip, the words of the first that has any, and something that is known of a sound."""
    said = _said(asked.text)
    several, turns = len(said) > 1, []
    for clip, captions in said.items():
        place, text = captions[0]
        where = f"in clip {clip}" if several else "at the beginning"
        turns.append(_turn(f"What is to be heard {where}?", _phrases(text)[0].capitalize() + ".", "audio", [place]))
    place, text = next(iter(said.values()))[-1]
    turns.append(_turn(f"And how does {_at(place, several)} end?", f"{_phrases(text)[-1]}.", "audio", [place]))
    for place, text in [one for captions in said.values() for one in captions]:
        if words := _WORDS.search(text):
            asked_for = f"Which words are said after {place['start']:.0f} seconds of {_at(place, several)}?"
            turns.append(_turn(asked_for, f"The words are {words[1]}.", "extraction", [place]))
            break
    known = "Where would one usually come across what was heard last?"
    turns.append(_turn(known, "Such things are common in homes, streets and broadcasts.", "knowledge", []))
    drawn = identity.number(asked.text)
    flaw = CHAT_FLAWS[drawn // 3 % len(CHAT_FLAWS)] if drawn % 3 == 0 else ""
    last = turns[len(said)]
    if flaw == "outside":
        last["evidence"] = [{**place, "end": place["end"] + 60}]
    elif flaw == "unheard":
        last["answer"] = "A helicopter lands beside waterfalls."
    elif flaw == "twice":
        last |= {"question": turns[0]["question"], "answer": turns[0]["answer"], "evidence": turns[0]["evidence"]}
    return {"turns": turns[:10]}


def _said(text: str) -> Said:
    found: Said = {}
    for one in moments_in(text):
        place = {"clip": one.clip, "start": one.start, "end": one.end}
        found.setdefault(one.clip, []).append((place, one.text))
    return found


def _phrases(text: str) -> list[str]:
    """What a caption tells, one thing after the other."""
    found = (part.strip(" .\"'").lower() for part in re.split(r"[.,;:]| then ", text))
    return [part.removeprefix("then ").removesuffix(" is heard") for part in found if stems(part)] or [text]


def _things(said: Said) -> list[tuple[int, dict[str, Any], str]]:
    return [(clip, *one) for clip, captions in said.items() for one in _of(captions)]


def _of(captions: Sequence[tuple[dict[str, Any], str]]) -> list[tuple[dict[str, Any], str]]:
    return [(place, phrase) for place, text in captions for phrase in _phrases(text)]


def _named(said: Said, clip: int) -> set[str]:
    return {stem for _, text in said[clip] for stem in stems(text)}


def _own(said: Said) -> list[tuple[int, dict[str, Any], str]]:
    """Things that one clip alone has, in order."""
    return [
        (clip, place, phrase)
        for clip, place, phrase in _things(said)
        if not any(set(stems(phrase)) <= _named(said, other) for other in said if other != clip)
    ]


def _shared(said: Said) -> list[tuple[int, dict[str, Any], str]]:
    """Things that every clip has."""
    return [one for one in _things(said) if all(set(stems(one[2])) <= _named(said, clip) for clip in said)]


def _which(said: Said) -> list[dict[str, Any]]:
    return [_one_of(clip, place, phrase, said) for clip, place, phrase in _own(said)[:1]]


def _one_of(clip: int, place: dict[str, Any], phrase: str, said: Said) -> dict[str, Any]:
    wrong = [f"clip {other}" for other in said if other != clip]
    return _question("which_clip", f"In which clip is this to be heard: {phrase}?", f"clip {clip}", [place], wrong)


def _common(said: Said) -> list[dict[str, Any]]:
    every = [captions[0][0] for captions in said.values()]
    shared = _shared(said)[:1]
    return [_question("common", "What do all these clips have in common?", phrase, every) for _, _, phrase in shared]


def _difference(said: Said) -> list[dict[str, Any]]:
    for clip, place, phrase in _own(said):
        other = next(number for number in said if number != clip)
        question = f"What is to be heard in clip {clip} but not in clip {other}?"
        return [_question("difference", question, phrase, [place, said[other][0][0]])]
    return []


def _order(said: Said) -> list[dict[str, Any]]:
    first: dict[int, tuple[int, dict[str, Any], str]] = {}
    for one in _own(said):
        first.setdefault(one[0], one)
    found = sorted(first.values(), key=lambda one: one[0])
    if len(found) < 2:
        return []
    answer = ", ".join(phrase for _, _, phrase in found)
    listed = " / ".join(phrase for _, _, phrase in reversed(found))
    question = f"In which order do these come if the clips are heard one after the other: {listed}?"
    return [_question("order", question, answer, [place for _, place, _ in found])]


def _compare(said: Said) -> list[dict[str, Any]]:
    (one, first), (other, second) = ((clip, said[clip][0]) for clip in list(said)[:2])
    answer = f"clip {one} has {_phrases(first[1])[0]}, clip {other} has {_phrases(second[1])[0]}"
    question = f"How do the beginnings of clip {one} and clip {other} compare?"
    return [_question("compare", question, answer, [first[0], second[0]])]


def _flawed(one: dict[str, Any], drawn: int, said: Said) -> dict[str, Any]:
    if drawn % 4:
        return one
    flaw, shared = FLAWS[drawn // 4 % len(FLAWS)], _shared(said)
    if flaw == "several clips" and shared:
        return _one_of(*shared[0], said)
    if flaw == "no such clip":
        return {**one, "question": f"{one['question'].rstrip('?')}, and in clip {len(said) + 3}?"}
    if flaw == "outside":
        return {**one, "evidence": [{**place, "end": place["end"] + 60} for place in one["evidence"]]}
    return {**one, "kind": "compare", "wrong": [], "evidence": one["evidence"][:1]}


def _question(
    kind: str, question: str, answer: str, evidence: Sequence[dict[str, Any]], wrong: Sequence[str] = ()
) -> dict[str, Any]:
    told = {"kind": kind, "question": question, "answer": answer, "evidence": list(evidence)}
    return told | {"wrong": list(wrong)}


def _turn(question: str, answer: str, needs: str, evidence: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"question": question, "answer": answer, "needs": needs, "evidence": list(evidence)}


def _at(place: dict[str, Any], several: bool) -> str:
    return f"clip {place['clip']}" if several else "it"


RULES: dict[str, Rule] = {"multi_audio": multi_audio, "chat": chat}
