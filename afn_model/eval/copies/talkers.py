"""Copies of meetings and of recordings with events, with the world's exact truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.eval.copies.sounds import NAMES, SPOKEN, Sounds, save
from afn_model.files import write_json, write_rows, write_text
from afn_model.world.scene import Clip, Heard, Scene, Style

# (session, (speaker, seconds from the end of the turn before to the beginning, words) of each turn)
TALKS: tuple[tuple[str, tuple[tuple[int, float, int], ...]], ...] = (
    ("turns", ((0, 0.2, 4), (1, 0.2, 1), (0, 0.2, 1))),
    ("overlap", ((0, 0.1, 2), (1, -0.3, 1))),
    ("interruption", ((1, 0.1, 5), (0, -0.6, 1), (2, 0.1, 1))),
    ("alone", ((0, 0.3, 4), (0, 0.4, 1))),
    ("silence", ()),
)
VARIANTS = ("m3", "f2", "m7")
_PLAIN = Style(snr_db=None)


def multi_talker(folder: Path, sounds: Sounds) -> None:
    """Turns, two at once, an interruption by one of three, one alone, and silence, whose only segment has no words;
    speakers have names, times are numbers and text."""
    rows: list[dict[str, Any]] = []
    for session, turns in TALKS:
        clip = _talk(folder, sounds, session, turns)
        for number, event in enumerate(clip.events):
            start, end = (round(time, 4) for time in (event.start, event.end))
            row = {"session_id": session, "speaker": event.speaker, "words": event.label}
            rows.append(row | {"start_time": str(start) if number else start, "end_time": end})
        if not turns:
            rows.append({"session_id": session, "speaker": "", "words": "", "start_time": 0.0, "end_time": 0.0})
    write_json(folder / "reference.seglst.json", rows)


def diarisation(folder: Path, sounds: Sounds) -> None:
    """The same talks: lines of turns and of speakers, a comment, and regions that name the silent recording too."""
    lines, regions = [";; made by the synthetic world"], []
    for session, turns in TALKS:
        clip = _talk(folder, sounds, session, turns)
        for name in dict.fromkeys(event.speaker for event in clip.events):
            lines.append(f"SPKR-INFO {session} 1 <NA> <NA> <NA> unknown {name} <NA>")
        for event in clip.events:
            start, end = round(event.start, 3), round(event.end, 3)
            lines.append(f"SPEAKER {session} 1 {start:.3f} {end - start:.3f} <NA> <NA> {event.speaker} <NA> <NA>")
        regions.append(f"{session} 1 0.000 {clip.seconds:.3f}")
    write_text(folder / "reference.rttm", "\n".join(lines) + "\n")
    write_text(folder / "all.uem", "\n".join(regions) + "\n")


def event_captions(folder: Path, sounds: Sounds) -> None:
    """One to three sounds, two at once, one that comes twice, and none."""
    rows = []
    for number, plan in enumerate(((0.2,), (0.1, 0.1), (0.3, -0.4), (0.2, 0.3, 0.1), ())):
        scene = Scene(sounds.random, 3.5, "heldout", _PLAIN)
        names = [NAMES[place] for place in sounds.random.permutation(len(NAMES))[: len(plan)]]
        at = 0.0
        for gap, name in zip(plan, [*names[:2], *names[:1]] if number == 3 else names, strict=True):
            wave, event = scene.ring(name, (0.6, 0.9))
            scene.place(wave, event, at + gap)
            at += gap + event.end
        clip = _saved(folder / "audio" / f"{number}.wav", scene)
        events = [{"label": one.label, "start": round(one.start, 3), "end": round(one.end, 3)} for one in clip.events]
        rows.append({"id": f"copy-{number}", "audio": f"{number}.wav", "events": events})
    write_rows(folder / "events.jsonl", rows)


def _talk(folder: Path, sounds: Sounds, session: str, turns: Sequence[tuple[int, float, int]]) -> Clip:
    scene, at = Scene(sounds.random, 3.5, "heldout", _PLAIN), 0.0
    for speaker, gap, count in turns:
        said = " ".join(sounds.pick(SPOKEN) for _ in range(count))
        wave = sounds.espeak.say(said, variant=VARIANTS[speaker], rate=190).numpy()
        seconds = len(wave) / SAMPLE_RATE
        scene.place(wave, Heard("word", said, 0.0, seconds, VARIANTS[speaker]), at + gap)
        at += gap + seconds
    return _saved(folder / "wav" / f"{session}.wav", scene)


def _saved(path: Path, scene: Scene) -> Clip:
    if scene.events:
        clip = scene.clip()
    else:  # what has no events has no level either
        clip = Clip(np.rint(3 * scene.rng.standard_normal(len(scene.pcm))).astype(np.int16), ())
    save(path, clip.pcm.astype(np.float32) / 32768)
    return clip
