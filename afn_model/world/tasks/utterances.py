"""Utterances of a closed vocabulary for speech recognition: alone, over each other, to translate; and captions.

What is asked is a ``SpeechTask``; when every word is said is exact, and kept in the record's events.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.hashing import text_key
from afn_model.prompt.speech_task import SPEAKER, SpeechTask
from afn_model.world.record import Draft, Made
from afn_model.world.scene import EQUALISER_HZ, VOICES, Clip, Heard, Scene, Style, equalised, unit
from afn_model.world.sounds import SOUNDS
from afn_model.world.vocabulary import ENROLMENT, VOCABULARY, load_vocabulary, speakers_of, talkers_of

STYLE = Style(speed=(0.92, 1.1), gain_db=(-3.0, 3.0), snr_db=(15.0, 35.0))
EQUALISER_DB = (-6.0, 3.0)
LEADS = (0.05, 0.3)  # seconds before and after what is said
GAPS = (0.02, 0.12)  # seconds between words
APART = (0.4, 0.8)  # of the first talker's utterance that is over when the second one begins
HELD_OUT = 8  # one in so many sequences of words is never in a training record
SOUND_CHANCE, SOUND_DB = 0.15, -15.0

Said = list[tuple[np.ndarray, Heard, float]]  # waves, events that start at 0, and when they are due


def held_out(words: Sequence[str]) -> bool:
    """Whether a sequence of two words or more is kept for held-out records."""
    return text_key(" ".join(words)) % HELD_OUT == 0


def single(draft: Draft) -> Made:
    """One word to write down."""
    language = draft.pick(tuple(VOCABULARY))
    return _transcribed(draft, language, [draft.pick(VOCABULARY[language])])


def phrases(draft: Draft) -> Made:
    """Two to five words to write down."""
    language = draft.pick(tuple(VOCABULARY))
    return _transcribed(draft, language, _words(draft, language, 2, 5))


def interpreted(draft: Draft) -> Made:
    """One to three words to translate, word by word."""
    source, into = (tuple(VOCABULARY)[i] for i in draft.rng.permutation(len(VOCABULARY))[:2])
    words = _words(draft, source, 1, 3)
    answer = " ".join(VOCABULARY[into][VOCABULARY[source].index(word)] for word in words)
    clip = _clip(draft, [_said(draft, source, words, _person(draft))])
    return _made(draft, SpeechTask("translate", into), answer, [clip], source)


def captions(draft: Draft) -> Made:
    """One or two sounds to name in order."""
    names = [tuple(SOUNDS)[i] for i in draft.rng.permutation(len(SOUNDS))[: draft.rng.integers(1, 3)]]
    scene = Scene(draft.rng, 0.0, draft.split, STYLE)
    said, at = [], 0.0
    for name in names:
        wave, event = scene.ring(name, (0.5, 0.9))
        said.append((wave, event, at))
        at += event.end + draft.rng.uniform(*GAPS)
    return _made(draft, SpeechTask("caption"), " ".join(names), [_clip(draft, [said], sounds=False)])


def overlaps(draft: Draft) -> Made:
    """A man and a woman, the second into the first's words; both to write down, in order of first appearance."""
    language, (clip, texts, _) = _mixture(draft)
    return _made(draft, SpeechTask("speakers", language), f" {SPEAKER} ".join(texts), [clip], language, texts)


def target(draft: Draft) -> Made:
    """A voice that is enrolled with other words, and then speaks beside another: what it says is to be written down."""
    language, (clip, texts, people) = _mixture(draft)
    place = int(draft.rng.integers(2))
    words = [ENROLMENT[i] for i in draft.rng.permutation(len(ENROLMENT))[:2]]
    enrolled = _clip(draft, [_said(draft, language, words, people[place])])
    task = SpeechTask("target", language)
    return _made(draft, task, texts[place], [enrolled, clip], language, [texts[place], texts[1 - place]])


def _transcribed(draft: Draft, language: str, words: list[str]) -> Made:
    clip = _clip(draft, [_said(draft, language, words, _person(draft))])
    return _made(draft, SpeechTask("transcribe", language), " ".join(words), [clip], language)


def _made(
    draft: Draft, task: SpeechTask, answer: str, clips: list[Clip], language: str = "", texts: Sequence[str] = ()
) -> Made:
    """``texts``: of each talker; of a target the one who is asked for stands first."""
    truth: dict = {"metric": "f1", "language": language}
    truth |= {"texts": list(texts)} if texts else {}
    return draft.made(task.task, [(task.text, answer)], clips, truth=truth)


def _words(draft: Draft, language: str, least: int, most: int) -> list[str]:
    """A sequence of the split, no word twice running."""
    while True:
        count, own = int(draft.rng.integers(least, most + 1)), VOCABULARY[language]
        words = [own[i] for i in draft.rng.permutation(len(own))[:count]]
        if len(words) == 1 or held_out(words) == (draft.split == "heldout"):
            return words


def _person(draft: Draft, voice: str = "") -> int:
    """The number of a man or a woman among the speakers."""
    voice = voice or draft.pick(VOICES)
    first = 0 if voice == VOICES[0] else len(talkers_of(draft.split, VOICES[0]))
    return first + int(draft.rng.integers(len(talkers_of(draft.split, voice))))


def _mixture(draft: Draft) -> tuple[str, tuple[Clip, list[str], list[int]]]:
    language = draft.pick(tuple(VOCABULARY))
    order = draft.rng.permutation(len(VOICES))
    people = [_person(draft, VOICES[i]) for i in order]
    spoken = [_words(draft, language, 2, 3) for _ in people]
    first, second = (_said(draft, language, words, who) for words, who in zip(spoken, people, strict=True))
    delay = draft.rng.uniform(*APART) * _end(first)
    later = [(wave, event, at + delay) for wave, event, at in second]
    return language, (_clip(draft, [first, later]), [" ".join(words) for words in spoken], people)


def _said(draft: Draft, language: str, words: Sequence[str], person: int) -> Said:
    """Words of one speaker one after another, all at one speed and through one microphone."""
    rng, speaker = draft.rng, speakers_of(draft.split, language)[person]
    speed, gains = rng.uniform(*STYLE.speed), rng.uniform(*EQUALISER_DB, len(EQUALISER_HZ))
    level = np.float32(10 ** (rng.uniform(*STYLE.gain_db) / 20))
    voice = VOICES[person >= len(talkers_of(draft.split, VOICES[0]))]
    name = f"{speaker.accent}+{speaker.variant} rate {speaker.rate} pitch {speaker.pitch}"
    said, at = [], 0.0
    for word in words:
        pcm = load_vocabulary(draft.split)[language, word][person].astype(np.float32)
        wave = np.interp(np.arange(0, len(pcm) - 1, speed), np.arange(len(pcm)), pcm).astype(np.float32)
        wave = equalised(wave, gains) if draft.split == "train" else wave
        seconds = len(wave) / SAMPLE_RATE
        said.append((level * unit(wave), Heard("word", word, 0.0, seconds, name, voice, language=language), at))
        at += seconds + rng.uniform(*GAPS)
    return said


def _end(said: Said) -> float:
    return max(at + event.end for _, event, at in said)


def _clip(draft: Draft, talk: list[Said], sounds: bool = True) -> Clip:
    """Talkers in one recording, with noise and now and then a sound behind them."""
    before, after = draft.rng.uniform(*LEADS, 2)
    scene = Scene(draft.rng, before + max(map(_end, talk)) + after, draft.split, STYLE)
    for said in talk:
        for wave, event, at in said:
            scene.place(wave, event, before + at)
    if sounds and draft.rng.random() < SOUND_CHANCE:
        wave, _ = scene.sounding(draft.pick(tuple(SOUNDS)), (0.3, 0.8))
        wave = wave[: len(scene.pcm)]
        first = int(draft.rng.integers(len(scene.pcm) - len(wave) + 1))
        scene.pcm[first : first + len(wave)] += np.float32(10 ** (SOUND_DB / 20)) * wave
    return scene.clip()
