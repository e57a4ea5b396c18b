"""A record being made: its random stream, how questions are put, and the form it is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.world.phrases import PHRASES
from afn_model.world.scene import BASIC, WORLD, Clip, Heard, Scene
from afn_model.world.words import SPLITS

BASICS = ("word", "sound", "onset")  # what ``afn demo`` asks
# Shortest and longest recording of an axis; the place of an axis here numbers its random streams.
SECONDS = {
    "music": (2.0, 8.0),
    "talkers": (2.0, 8.0),
    "long": (12.0, 60.0),
    "skills": (15.0, 40.0),
    "multi_audio": (2.0, 4.0),
    "multi_turn": (3.0, 8.0),
    "safety": (2.0, 4.0),
    "multilingual": (2.0, 4.0),
    "text": (0.0, 0.0),
    "cot": (2.0, 10.0),
    "word": (1.0, 2.2),
    "sound": (1.0, 3.1),
    "onset": (3.55, 4.0),
    # As long as what is said.
    "single": (0.0, 0.0),
    "phrases": (0.0, 0.0),
    "overlaps": (0.0, 0.0),
    "target": (0.0, 0.0),
    "interpreted": (0.0, 0.0),
    "captions": (0.0, 0.0),
}


@dataclass
class Made:
    """A record and its recordings, [n] int16 at 16 kHz each; the paths in the record are member names."""

    record: dict
    pcm: list[np.ndarray]


@dataclass
class Draft:
    """What a record is made from; ``rng`` is a function of (seed, split, index, axis) alone."""

    axis: str
    seed: int
    split: str
    index: int
    seconds: tuple[float, float]
    compliance: float = 0.5
    any_length: bool = False  # nobody asked for these seconds: a task may choose others
    new: bool = field(default=False, init=False)

    def __post_init__(self):
        stream = 10 + list(SECONDS).index(self.axis)
        self.rng = np.random.default_rng([self.seed, SPLITS.index(self.split), self.index, stream])

    def pick(self, items: Sequence):
        return items[int(self.rng.integers(len(items)))]

    def length(self) -> float:
        """Seconds of a scene."""
        return float(self.rng.uniform(*self.seconds))

    def scene(self, seconds: float | None = None) -> Scene:
        style = BASIC if self.axis in BASICS else WORLD
        return Scene(self.rng, self.length() if seconds is None else seconds, self.split, style)

    def ask(self, phrase: str, *fields: str) -> str:
        """A question, in a phrasing of the split."""
        known, new = PHRASES[phrase]
        number = int(self.rng.integers(len(known) + (len(new) if self.split == "heldout" else 0)))
        self.new = self.new or number >= len(known)
        return (*known, *new)[number].format(*fields)

    def made(
        self,
        task: str,
        turns: list[tuple[str, str]],
        clips: Sequence[Clip] = (),
        *,
        truth: dict | None = None,
        rewards: list[dict] | None = None,
        part: tuple[float, float] | None = None,
        events: Sequence[Heard] | None = None,
    ) -> Made:
        """The record of a conversation.

        Args:
            task: what is asked.
            turns: questions and answers; the last answer is the one that is scored.
            clips: the recordings.
            truth: how to score: "metric" and what it needs; by default exact match with the last answer.
            rewards: by default exact match with the truth's answer.
            part: seconds of the only recording that the conversation is about.
            events: of the only recording, where they are not the clip's.
        """
        ident = f"{self.axis}-{self.split}-{self.seed}-{self.index:06d}"
        truth = {"metric": "exact", "answer": turns[-1][1], "phrase": "new" if self.new else "known"} | (truth or {})
        record = {"id": ident, "axis": self.axis, "task": task, "source": "world"}
        if clips:
            names = [f"{ident}.flac"] if len(clips) == 1 else [f"{ident}-{n}.flac" for n in range(1, len(clips) + 1)]
            start, end = part or (None, None)
            record["audios"] = [{"path": name} | ({"start": start, "end": end} if part else {}) for name in names]
            lengths = [end - start if part else clip.seconds for clip in clips]
            record["duration"] = lengths if len(lengths) > 1 else lengths[0]
        sounds = "<sound>\n" if len(clips) == 1 else "".join(f"<sound-{n}>" for n in range(1, len(clips) + 1))
        record["messages"] = []
        for number, (question, answer) in enumerate(turns):
            record["messages"].append({"role": "user", "content": question if number else sounds + question})
            record["messages"].append({"role": "assistant", "content": answer})
        record["rewards"] = [{"kind": "exact", "answer": truth["answer"]}] if rewards is None else rewards
        record["truth"] = truth
        record["events"] = [
            written(event, number if len(clips) > 1 else None)
            for number, clip in enumerate(clips)
            for event in (clip.events if events is None else events)
        ]
        return Made(record, [clip.pcm for clip in clips])


def written(event: Heard, audio: int | None = None) -> dict:
    """An event as a record holds it; of several recordings, ``audio`` counts from 0."""
    found = {"kind": event.kind, "label": event.label, "start": event.start, "end": event.end}
    found |= {key: value for key in ("voice", "turn", "language", "speaker") if (value := getattr(event, key))}
    return found if audio is None else found | {"audio": audio}


def read_events(record: dict, audio: int = 0) -> list[Heard]:
    """The events of one of a record's recordings."""
    events = [event for event in record.get("events") or [] if event.get("audio", 0) == audio]
    return [Heard(**{key: value for key, value in event.items() if key != "audio"}) for event in events]


def samples(seconds: float) -> int:
    """The sample nearest to a time."""
    return round(seconds * SAMPLE_RATE)
