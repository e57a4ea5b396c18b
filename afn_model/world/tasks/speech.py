"""Speech: who says what among several talkers, and words of four languages to transcribe and translate."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from afn_model.world.phrases import TRANSLATIONS
from afn_model.world.record import Draft, Made
from afn_model.world.scene import LANGUAGES, VOICES, Clip, Heard, clear_speakers, things
from afn_model.world.words import MORE_WORDS


def talkers(draft: Draft) -> Made:
    """A man and a woman in turn, now and then one into the other's word; sometimes a third voice."""
    task = draft.pick(("who", "target", "diarise", "interrupt"))
    seconds = draft.length()
    clip = None
    while clip is None:
        clip = _talk(draft, task, seconds)
    words = clip.events
    if task == "who":
        labels = [event.label for event in words]
        event = draft.pick([event for event in words if labels.count(event.label) == 1])
        return draft.made(task, [(draft.ask(task, event.label), f"the {event.voice}")], [clip])
    if task == "target":
        voice = draft.pick(VOICES)
        answer = " ".join(event.label for event in words if event.voice == voice)
        truth = {"metric": "f1"}
        return draft.made(task, [(draft.ask(task, f"the {voice}"), answer)], [clip], truth=truth)
    if task == "diarise":
        return draft.made(task, [(draft.ask(task), diarised(words))], [clip], truth={"metric": "f1"})
    cuts = interruptions(words)
    return draft.made(task, [(draft.ask(task), f"the {cuts[0].voice}" if cuts else "nobody")], [clip])


def _talk(draft: Draft, task: str, seconds: float) -> Clip | None:
    scene = draft.scene(seconds)
    most = int(np.clip(seconds / 0.9, 2, 6)) if seconds <= 12 else int(seconds / 3)
    count = int(draft.rng.integers(2 if seconds <= 12 else most // 2, most + 1))
    cast = [draft.pick(clear_speakers(draft.split, "en", voice)) for voice in VOICES]
    if task == "diarise" and count >= 3 and draft.rng.random() < 0.15:
        cast.append(draft.pick(clear_speakers(draft.split, "en", draft.pick(VOICES))))
    roles = [int(role) for role in draft.rng.permutation(len(cast))]
    roles += [int(draft.rng.integers(len(cast))) for _ in range(count - len(roles))]
    chance = 2 / 3 if task == "interrupt" else 0.15
    cut = 1 + int(draft.rng.integers(count - 1)) if draft.rng.random() < chance else 0
    if cut:
        roles[cut] = (roles[cut - 1] + 1) % len(cast)
    blocks = []
    for place, (word, language) in enumerate(things(draft.rng, count, words=1.0)):
        # Speakers have the same numbers in every language.
        wave, event = scene.say(language, word, speaker=cast[roles[place]])
        if cut and place == cut:
            blocks[-1].append((wave, event, blocks[-1][0][1].end * draft.rng.uniform(0.45, 0.65)))
        else:
            blocks.append([(wave, event, 0.0)])
    placed = scene.row(blocks)
    fits = len(placed) == count and {event.voice for event in placed} == set(VOICES)
    return scene.clip() if fits else None


def interruptions(words: tuple[Heard, ...]) -> list[Heard]:
    """The words that begin before another speaker's word has ended."""
    return [b for a, b in pairwise(words) if b.start < a.end and a.speaker != b.speaker]


def diarised(words: tuple[Heard, ...]) -> str:
    """The words under speaker labels, speakers numbered in order of appearance."""
    order, parts, last = {}, [], None
    for event in words:
        # The accent changes with the language, not with the speaker.
        speaker = event.speaker.partition("+")[2]
        if speaker != last:
            parts.append(f"[Speaker {order.setdefault(speaker, len(order) + 1)}]")
        parts.append(event.label)
        last = speaker
    return " ".join(parts)


def multilingual(draft: Draft) -> Made:
    """One to three words of a language, to write down or to translate."""
    language = draft.pick(tuple(LANGUAGES))
    seconds, scene = draft.length(), None
    words = [MORE_WORDS[language][i] for i in draft.rng.permutation(len(MORE_WORDS[language]))]
    count = int(np.clip(draft.rng.integers(1, 4), 1, max(1, seconds)))
    placed: list[Heard] = []
    while not placed:
        scene = draft.scene(seconds)
        speaker = draft.pick(clear_speakers(draft.split, language, draft.pick(VOICES)))
        placed = scene.row([[(*scene.say(language, word, speaker=speaker), 0.0)] for word in words[:count]])
    clip = scene.clip()
    said = [event.label for event in clip.events]
    if draft.rng.random() < 0.5:
        return draft.made("asr", [(draft.ask("asr"), " ".join(said))], [clip], truth={"metric": "f1"})
    ((into, table),) = TRANSLATIONS[language].items()
    question = draft.ask("ast", LANGUAGES[language], LANGUAGES[into])
    return draft.made("ast", [(question, " ".join(table[word] for word in said))], [clip], truth={"metric": "f1"})
