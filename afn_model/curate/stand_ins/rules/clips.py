"""How much is heard in parts of a recording, and questions about clips, both from captions.

One in ``FLAWED`` of the scores and of the questions, by a hash of what is asked, is as no writer should reply: each of
the filters has something to catch.
"""

from __future__ import annotations

import re
from typing import Any

from afn_model.curate import identity
from afn_model.curate.grounding import stem, stems
from afn_model.curate.stand_ins.rules.rule_input import Rule, RuleInput, moments_in

FLAWED = 8
_PART = re.compile(r"^(\d+)\. [\d.]+ to [\d.]+ s, speech ([\d.]+) s, music ([\d.]+) s: (.*)$", re.M)
_CLAUSE = re.compile(r"(, while |, then |(?<=[.!?]) +)")
_QUOTED = re.compile(r"the words are \"[^\"]*\"\.?|\"[^\"]*\"", re.I)
_MANNER = frozenset(map(stem, ("fast", "slowly", "calmly", "silence", "nothing", "else")))
_SPOKEN = {stem("speaks")}
_PLAYED = set(map(stem, ("music", "piano", "guitar", "violin", "flute", "organ", "bass")))
_OTHERS = ("a tractor", "a kettle", "a cuckoo", "an avalanche", "a typewriter", "a fountain")
_COUNTS = ("one", "two", "three", "four", "five", "six")


def events_of(caption: str) -> tuple[list[str], set[str]]:
    """(different events of a caption in order, those that are heard while another one is); an event is what its clause
    names, without how."""
    named, during, joiner = list[str](), set[str](), ""
    before = ""
    for piece in _CLAUSE.split(_QUOTED.sub("", caption)):
        if _CLAUSE.fullmatch(piece) or not piece.strip():
            joiner = piece
            continue
        event = " ".join(one for one in stems(piece) if one not in _MANNER)
        if event and "while" in joiner and before and event != before:
            during |= {before, event}
        named += [event] if event and event not in named else []
        before = event or before
    return named, during


def informative(asked: RuleInput) -> dict[str, Any]:
    """Two points for each event of a caption and one more for each that overlaps, at most 10.

    One in ``FLAWED`` parts is flawed: it is missing, given twice, scored above 10, or has more overlapping events than
    events.
    """
    parts = []
    for number, speech, music, caption in _PART.findall(asked.text):
        events, during = events_of(caption)
        named = [set(one.split()) for one in events]
        mix = ["speech"] * (float(speech) > 0.5 or any(one & _SPOKEN for one in named))
        mix += ["music"] * (float(music) > 0.5 or any(one & _PLAYED for one in named))
        mix += ["sound"] * any(not one & (_SPOKEN | _PLAYED) for one in named)
        score = min(10, 2 * len(events) + len(during))
        part = {"part": int(number), "events": len(events), "overlapping": len(during), "mix": mix, "score": score}
        flaw = _flaw(asked.text, number)
        if flaw == 1:
            part["score"] = 11 + score
        elif flaw == 2:
            part["overlapping"] = len(events) + 1
        parts += [part] * {3: 0, 4: 2}.get(flaw, 1)
    return {"parts": parts or [{"part": 0, "events": 0, "overlapping": 0, "mix": [], "score": 0}]}


def skill_questions(asked: RuleInput) -> dict[str, Any]:
    """A question from the first clauses of captions; none where the captions have too little for the skill.

    One in ``FLAWED`` questions is flawed: its evidence is outside of the clip or does not agree with the answer, the
    answer is in no caption, or the longest option is the answer.
    """
    skill = asked.text.split("\nSkill: ")[1].split("\n")[0]
    lines = [(one.start, one.end, things) for one in moments_in(asked.text) if (things := _things(one.text))]
    if not lines or (skill == "temporal_order" and len({one[2][0] for one in lines}) < 2):
        return {"questions": []}
    start, end, (thing, *_) = identity.pick(lines, "line", asked.text)
    evidence = [(start, end)]
    if skill == "counting":
        evidence = [(one[0], one[1]) for one in lines if thing in one[2]][: len(_COUNTS)]
        question, answer = f"In how many parts of ten seconds is {thing} heard?", _COUNTS[len(evidence) - 1]
        wrong = [one for one in _COUNTS if one != answer][:3]
    elif skill == "temporal_order":
        first, second = lines[0], next(one for one in lines if one[2][0] != lines[0][2][0])
        evidence = [(first[0], first[1]), (second[0], second[1])]
        question = "Which of these is heard in this order?"
        answer = f"{first[2][0]}, then {second[2][0]}"
        wrong = [f"{second[2][0]}, then {first[2][0]}", *[f"{first[2][0]}, then {one}" for one in _OTHERS[:2]]]
    elif skill == "temporal_duration":
        question, answer = f"How long is the part of the clip that has {thing}?", f"{end - start:.0f} seconds"
        wrong = [f"{end - start + more:.0f} seconds" for more in (7, 14, 21)]
    else:
        question = f"As to {skill.replace('_', ' ')}, which of these is heard from {start:.0f} to {end:.0f} seconds?"
        answer, place = thing, identity.number("others", asked.text) % len(_OTHERS)
        wrong = [*_OTHERS[place:], *_OTHERS[:place]][:3]
    flaw = _flaw(asked.text, skill)
    if flaw == 1:
        evidence = [(at + 500, to + 500) for at, to in evidence]
    elif flaw == 2:
        evidence = [*reversed(evidence)] if len(evidence) > 1 and skill != "counting" else evidence * 2
        answer = "a thunderstorm" if skill not in ("counting", "temporal_order") else answer
    elif flaw == 3:
        answer = "a xylophone, then a thunderstorm" if skill == "temporal_order" else "a thunderstorm"
    elif flaw == 4:
        answer += " and all else that was there to be heard in this part of it by those who listened"
    spans = [{"start": at, "end": to} for at, to in evidence]
    return {"questions": [{"kind": skill, "question": question, "answer": answer, "wrong": wrong, "evidence": spans}]}


def _things(caption: str) -> list[str]:
    """What is heard by the clauses of a caption: "a bell is heard" -> "a bell", "A man speaks" -> "a man"."""
    clauses = [one.strip(" .") for one in _CLAUSE.split(_QUOTED.sub("", caption))]
    found = [re.split(r" (?:is|are|speaks?|plays?)\b", one)[0] for one in clauses if re.match(r"an? ", one, re.I)]
    return list(dict.fromkeys(one[0].lower() + one[1:] for one in found if stems(one)))


def _flaw(text: str, of: str) -> int:
    """1 to 4 where what is asked gets a flawed reply, else 0."""
    drawn = identity.number(text, of)
    return 1 + drawn // FLAWED % 4 if drawn % FLAWED == 0 else 0


RULES: dict[str, Rule] = {"informative": informative, "skill_questions": skill_questions}
