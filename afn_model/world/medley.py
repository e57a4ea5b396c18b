"""Medleys, recordings full of events to learn hearing from, and what is heard in a recording frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from afn_model.world.instruments import INSTRUMENTS
from afn_model.world.record import read_events
from afn_model.world.scene import DETAILS, LABELS, WORLD, Clip, Heard, Scene, Style, melody
from afn_model.world.sounds import SOUNDS
from afn_model.world.words import SPLITS

STEP = 0.04  # seconds per frame: those of an audio token
_STREAM = 1_000  # keeps the random streams of medleys apart from those of the axes


def medley(seed: int, split: str, index: int, *, seconds: float = 3.0, style: Style = WORLD) -> Clip:
    """A clip full of words, sounds and notes one after another, for ``frame_labels``.

    Args:
        seed, index: non-negative.
        split: "train" or "heldout".
        seconds: length of the clip, at least 2.
        style: how much of what, and how it sounds.
    Raises:
        ValueError: a clip that is too short.
    """
    if seconds < 2:
        raise ValueError(f"a medley needs at least 2 seconds, got {seconds}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index, _STREAM])
    scene, start = Scene(rng, seconds, split, style), rng.uniform(0, 0.3)
    while True:
        if rng.random() < style.spoken:
            block = [(*scene.say(*scene.pick(style.vocabulary)), 0.0)]
        elif not style.played or rng.random() < 1 - style.played:
            block = [(*scene.ring(scene.pick(tuple(SOUNDS)), (0.4, 1.0)), 0.0)]
        else:
            name, count = scene.pick(tuple(INSTRUMENTS)), int(rng.integers(2, 5))
            block = melody(scene, name, count, up=rng.random() < 0.5, period=rng.uniform(0.18, 0.45))
        end = start + block[-1][2] + block[-1][1].end
        if end > seconds:
            return scene.clip()
        for wave, event, at in block:
            scene.place(wave, event, start + at)
        early = style.overlap and rng.random() < style.overlap
        start = end + (rng.uniform(-0.12, 0.0) if early else rng.uniform(0.02, 0.3))


def frame_labels(
    events: Sequence[Heard], frames: int, *, step: float = STEP, labels: Sequence[str] = LABELS
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is heard in the middle of each frame; of two events at once, the one that began later.

    Args:
        events: of a clip.
        frames: how many.
        step: seconds per frame.
        labels: of the clip's style.
    Returns:
        ([frames] int64: 0 for background, else 1 + index in ``labels``;
        [frames] int64: 0 for none, else 1 + index in ``DETAILS``: 1 man, 2 woman, 3 up, 4 down).
    """
    middle = (np.arange(frames) + 0.5) * step
    heard, details = np.zeros(frames, np.int64), np.zeros(frames, np.int64)
    for event in sorted(events, key=lambda event: event.start):
        part = slice(*np.searchsorted(middle, (event.start, event.end)))
        heard[part] = 1 + labels.index(event.label)
        details[part] = 1 + DETAILS.index(event.detail) if event.detail else 0
    return torch.from_numpy(heard), torch.from_numpy(details)


def timeline(
    record: dict, *, audio: int = 0, step: float = STEP, frames: int | None = None, details: bool = True
) -> list[str]:
    """What is heard in a recording, frame by frame in words: a stand-in for its audio tokens.

    Args:
        record: with events.
        audio: number of the recording, from 0.
        step: seconds per frame.
        frames: how many; by default those of the record's duration.
        details: every second frame of a word names the voice, and of a note where it goes.
    Returns:
        for each frame one of ``LABELS``, one of ``DETAILS``, or ".".
    """
    if frames is None:
        lengths = record.get("duration", 0)
        frames = int(np.ceil((lengths[audio] if isinstance(lengths, list) else lengths) / step - 1e-9))
    heard, second = (found.tolist() for found in frame_labels(read_events(record, audio), frames, step=step))
    names = []
    for place, (label, detail) in enumerate(zip(heard, second, strict=True)):
        use = details and detail and place % 2
        names.append(DETAILS[detail - 1] if use else LABELS[label - 1] if label else ".")
    return names
