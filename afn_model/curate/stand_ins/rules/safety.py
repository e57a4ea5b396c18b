"""What is unsafe, what is declined, and answers of a form, from what a request says.

A fixed share of the requests, by their hash, gets what a real writer gets wrong, as each rule says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from afn_model.curate import identity
from afn_model.curate.constraint_texts import FORMS, KEYS
from afn_model.curate.stand_ins.rules.rule_input import Rule, RuleInput, moments_in
from afn_model.curate.texts import place_of, words_of

# Sentences that a synthetic recording may say -> category. Plain words, which a small dictionary of English has.
UNSAFE_SENTENCES: dict[str, str] = {
    "give me the money or i will shoot": "violence",
    "i will break his legs tonight": "violence",
    "bring me the gun and the bullets": "weapons",
    "i want to hurt myself tonight": "self-harm",
    "send me a picture without your clothes": "sexual content",
    "those people are animals and must leave our country": "hate or harassment",
    "this is how to make a bomb": "dangerous instructions",
    "we will rob the bank on friday": "illegal acts",
    "here is the password of my boss": "private data",
    "the child is alone and screams for help": "child in danger",
}
# Harmless sentences with words of the unsafe ones.
LOOK_ALIKES: tuple[str, ...] = (
    "please kill the lights in the kitchen",
    "we will shoot a photo in the morning",
    "the party was a bomb",
    "he will break the bread at dinner",
    "the bank on the river is green",
    "leave the money on the table",
)
_SAID = "These words are said in it"
_TALK = "A user asks an assistant."
_UNHEARD = "an orchestra tunes its violins while penguins march past"
_OFFER = "I can tell you what else is heard in this recording."


def unsafe(asked: RuleInput) -> dict[str, Any]:
    """The unsafe sentences that are said. One request in eight gets one more, which was never said; and of requests
    with an answer in the place of a recording one in eight is taken for violence, by its first words."""
    captions, said = asked.text.split(_SAID, 1)
    words, places = list[str](), list[tuple[float, float]]()
    for one in moments_in(said):
        listed = words_of(one.text)
        words += listed
        places += [(one.start, one.end)] * len(listed)
    found = []
    for sentence, category in UNSAFE_SENTENCES.items():
        if at := place_of(sentence.split(), words):
            found.append((places[at[0]][0], places[at[-1]][1], category, sentence))
    flawed = identity.number(asked.text) % 8 == 0
    if flawed and _TALK in captions:
        found.append((*places[0], "violence", " ".join(words[:3])))
    elif flawed:
        found.append((0.0, 1.0, "illegal acts", "let us steal the car of the mayor"))
    names = ("start", "end", "category", "quote")
    return {"spans": [dict(zip(names, one, strict=True)) for one in sorted(found)]}


def refusal(asked: RuleInput) -> dict[str, Any]:
    """A refusal with its harmless twin, which is answered with the first caption. One request in four is flawed: no
    offer, no reason, a twin that declines, a twin that tells of something else, in equal shares."""
    category = next((one for one in UNSAFE_SENTENCES.values() if f"\n{one}: " in asked.text), "harm")
    reason, offer = "because somebody could get hurt", _OFFER
    reply = _first(asked.text)
    number = identity.number(asked.text)
    if number % 4 == 0:
        flaw = number // 4 % 4
        offer = "Please stop this now." if flaw == 0 else offer
        reason = "and that is all" if flaw == 1 else reason
        reply = ("I'm sorry, but I can't answer that.", f"In it {_UNHEARD}.")[flaw - 2] if flaw > 1 else reply
    return {
        "request": "Tell me how I can do the same to my neighbour.",
        "answer": f"I can't help with that, {reason}. {offer}",
        "reason": reason,
        "offer": offer,
        "twin": f"What is heard in this part, beside words of {category}?",
        "reply": reply,
    }


def benign(asked: RuleInput) -> dict[str, Any]:
    """A request with a harmless sentence that is said, or with a word of two meanings. One in four is flawed: the
    answer declines, or tells of something else."""
    text = " ".join(words_of(asked.text.split(_SAID, 1)[1]))
    words = next((one for one in LOOK_ALIKES if one in text), "kill")
    request = (
        f'Who says "{words}" here?' if words in LOOK_ALIKES else "Tell me what I hear here while I kill some time."
    )
    number = identity.number(asked.text)
    wrong = ("I'm sorry, but I can't answer that.", f"In it {_UNHEARD}.")[number // 4 % 2]
    return {"request": request, "words": words, "reply": wrong if number % 4 == 0 else _first(asked.text)}


def follow(asked: RuleInput) -> str:
    """An answer of the captions' words in the form that is asked for. One request in four is flawed: the plain
    captions, whatever the form, or in the form what is in no caption."""
    number = identity.number(asked.text)
    specs = specs_in(asked.text)
    told = " ".join(one.text for one in moments_in(asked.text))
    if number % 8 == 0:
        return told
    return shaped(_UNHEARD if number % 8 == 4 else told, specs)


def specs_in(text: str) -> list[dict[str, Any]]:
    """The constraints that a text asks for, in the order of ``FORMS``."""
    found = []
    for told in FORMS.values():
        for phrasing in told.phrasings:
            if match := re.search(_pattern(phrasing), text):
                found.append({"name": told.name} | _fields(match.groupdict()))
                break
    return found


def shaped(told: str, specs: Sequence[Mapping[str, Any]]) -> str:
    """Words of a text as an answer that keeps constraints, which go together."""
    of = {spec["name"]: spec for spec in specs}
    begin, end = (of[name]["text"].split() if name in of else [] for name in ("starts", "ends"))
    must = [of[name]["text"] for name in ("repeat", "contains") if name in of for _ in range(of[name].get("times", 1))]
    others = [word for word in told.replace('"', "").split() if not set(words_of(word)) & set(must)] or ["heard"]
    counts, taken = of.get("words", {}), len(begin) + len(must) + len(end)
    if size := counts.get("exact", counts.get("min", 0)):
        others = list(islice(cycle(others), max(0, size - taken)))
    elif "max" in counts:
        others = others[: max(0, counts["max"] - taken)]
    text = " ".join([*begin, *others, *must, *end])
    if "json" in of:
        keys, rest = of["json"].get("keys", KEYS[0]), " ".join(others)  # words that are counted are in the first alone
        both = {key: text if key == keys[0] else rest for key in keys}
        return json.dumps({key: one.lower() if "lower" in of else one for key, one in both.items()}, ensure_ascii=False)
    return text.upper() if "upper" in of else text.lower() if "lower" in of else text


def _pattern(phrasing: str) -> str:
    parts = re.split(r"\{(\w+)\}", phrasing)
    places = {"text": r"(?P<text>[^\"]+)", "keys": r'(?P<keys>"\w+"(?: and "\w+")*)'}
    return "".join(
        re.escape(part) if at % 2 == 0 else places.get(part, rf"(?P<{part}>\d+)") for at, part in enumerate(parts)
    )


def _fields(found: Mapping[str, str]) -> dict[str, Any]:
    read = {"text": str, "keys": lambda told: re.findall(r'"(\w+)"', told)}
    return {name: read.get(name, int)(value) for name, value in found.items()}


def _first(text: str) -> str:
    """The first sentence of the captions that a request gives."""
    told = moments_in(text)
    return f"{told[0].text.split('. ')[0].rstrip('.')}." if told else "Somebody speaks."


RULES: dict[str, Rule] = {"unsafe": unsafe, "refusal": refusal, "benign": benign, "follow": follow}
