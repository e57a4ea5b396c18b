"""The basic tasks: which word is said, which sound is heard, when does it start."""

from __future__ import annotations

import numpy as np

from afn_model.world.phrases import BASIC_PHRASES, seconds
from afn_model.world.record import Draft, Made
from afn_model.world.scene import Heard, Scene
from afn_model.world.sounds import SOUNDS

DISTRACTOR = 0.2  # chance of a second event, of the other kind, in a recording that is asked for an onset
WITHIN = 0.3  # seconds that an onset may be off
_ROOM = 1.0  # seconds kept free after the latest onset


def word(draft: Draft) -> Made:
    """One word somewhere in a short recording."""
    scene = draft.scene()
    wave, event = _word(scene)
    scene.place(wave, event, scene.somewhere(wave))
    return _asked(draft, scene)


def sound(draft: Draft) -> Made:
    """One sound somewhere in a recording."""
    scene = draft.scene()
    wave, event = _sound(scene, (0.8, scene.seconds))
    scene.place(wave, event, scene.somewhere(wave))
    return _asked(draft, scene)


def onset(draft: Draft) -> Made:
    """When a word or a sound starts, sometimes beside an event of the other kind."""
    scene = draft.scene()
    # The range of onsets is that of the shortest recording: the length of a recording says nothing about the answer.
    latest = draft.seconds[0] - _ROOM
    is_word = draft.rng.random() < 0.5
    wave, event = _word(scene) if is_word else _sound(scene, (0.5, _ROOM))
    scene.place(wave, event, draft.rng.uniform(0.1, latest))
    if draft.rng.random() < DISTRACTOR:
        wave, event = _sound(scene, (0.5, _ROOM)) if is_word else _word(scene)
        quieter = np.float32(10 ** (draft.rng.uniform(-6, 0) / 20))
        scene.place(quieter * wave, event, draft.rng.uniform(0, latest))
    return _asked(draft, scene)


def _word(scene: Scene) -> tuple[np.ndarray, Heard]:
    language, label = scene.pick(scene.style.vocabulary)
    return scene.spoken(language, label, scene.speaker(language))


def _sound(scene: Scene, length: tuple[float, float]) -> tuple[np.ndarray, Heard]:
    return scene.sounding(scene.pick(tuple(SOUNDS)), length)


def _asked(draft: Draft, scene: Scene) -> Made:
    """The draft's question about the first event; in training also, in any order, all else that can be asked."""
    own, *others = [(event, task) for event in scene.events for task in (event.kind, "onset")]
    if draft.axis == "onset":
        own, others[0] = others[0], own
    turns = [_turn(draft, *own)]
    if draft.split == "train":
        turns += [_turn(draft, *others[i]) for i in draft.rng.permutation(len(others))]
    truth = turns[-1][2]
    return draft.made(draft.axis, [turn[:2] for turn in turns], [scene.clip()], truth=truth)


def _turn(draft: Draft, event: Heard, task: str) -> tuple[str, str, dict]:
    """Question, answer and how the answer is scored."""
    question = draft.pick(BASIC_PHRASES[task])
    if task != "onset":
        return question, event.label, {}
    name = "word" if event.kind == "word" else event.label
    truth = {"metric": "seconds", "seconds": event.start, "within": WITHIN}
    return question.format(name), seconds(event.start), truth
