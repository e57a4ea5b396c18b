"""A transcriber that listens: pocketsphinx with a grammar of what the recordings of the stand-ins say.

    annotators:
      transcriber: {call: "afn_model.curate.stand_ins.heard_words:transcribe", options: {truth: truth.jsonl}}

It hears English, one voice at a time and nothing beside it. Of other recordings, by the truth, the truth answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from afn_model.audio.decode import load_audio
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.curate.requests import AnnotationRequest, parts_of
from afn_model.curate.stages.activity import runs
from afn_model.curate.stand_ins.grammar_recogniser import PocketSphinx
from afn_model.curate.stand_ins.rules.rule_input import Event
from afn_model.curate.stand_ins.spoken import PRIVATE, SENTENCES
from afn_model.curate.stand_ins.truth import answer, read_truth

HOP, QUIET = 160, 1e-5  # samples; mean square of what is no pause
PAUSE, AROUND = 40, 10  # 10 ms


def transcribe(requests: Sequence[AnnotationRequest], truth: str) -> list[Any]:
    """Transcripts with the times of words, from samples where they can be heard, else from the side file ``truth``.

    Raises:
        ValueError: pocketsphinx is not installed.
    """
    known, found = read_truth(truth), list[Any]()
    for request in requests:
        (audio,) = (part["audio"] for message in request.messages for part in parts_of(message) if "audio" in part)
        if is_clear(known.get(Path(audio["path"]).stem, ())):
            words = heard(audio["path"], audio.get("start") or 0.0, audio.get("end"))
            found.append({"text": " ".join(one["word"] for one in words), "language": "en", "words": words})
        else:
            found += answer([request], truth)
    return found


def heard(path: str, start: float, end: float | None) -> list[dict[str, Any]]:
    """Words with their times in seconds from ``start``; what lies between pauses is heard by itself, which is quick."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pcm = load_audio(path, start=start, end=end).numpy()
    frames = pcm[: len(pcm) // HOP * HOP].reshape(-1, HOP)
    parts = runs((frames * frames).mean(1) > QUIET, PAUSE, 1)
    found: list[dict[str, Any]] = []
    for first, last in parts:
        begin, stop = max(0, first - AROUND) * HOP, min(last + AROUND, len(frames)) * HOP
        words = _recogniser()(path, start + begin / SAMPLE_RATE, start + stop / SAMPLE_RATE)
        found += [
            {**one, "start": round(one["start"] - start, 2), "end": round(one["end"] - start, 2)} for one in words
        ]
    return found


def is_clear(events: Sequence[Event]) -> bool:
    """Whether all that is heard are English words, one after another."""
    words = all(one["kind"] == "word" and one["language"] == "en" for one in events)
    return bool(events) and words and all(one["end"] <= other["start"] + 0.01 for one, other in pairwise(events))


@lru_cache(1)
def _recogniser() -> PocketSphinx:
    return PocketSphinx([*SENTENCES["en"], PRIVATE])
