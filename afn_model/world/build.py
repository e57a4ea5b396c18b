"""Corpora of the world on disk, the texts a tokenizer has to cover, and written stand-ins for what is heard."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from afn_model.audio.shards import ShardWriter
from afn_model.data.index import build as build_index
from afn_model.world.record import SECONDS, Draft, Made, read_events
from afn_model.world.scene import DETAILS, LABELS, frame_labels, medley, world_bank
from afn_model.world.sounds import SAMPLE_RATE
from afn_model.world.tasks import long, music, speech, talks, think
from afn_model.world.texts import texts
from afn_model.world.words import SPLITS, WordBank

MAKERS: dict[str, Callable[[Draft], Made]] = {
    "music": music.music,
    "talkers": speech.talkers,
    "long": long.long,
    "skills": long.skills,
    "multi_audio": talks.multi_audio,
    "multi_turn": talks.multi_turn,
    "safety": talks.safety,
    "multilingual": speech.multilingual,
    "text": think.text,
    "cot": think.cot,
}
SHARD_BYTES = 1 << 28
CHUNK = 16  # records a process makes at a time
LONGEST = 1800.0


def make(
    axis: str,
    seed: int,
    split: str,
    index: int,
    bank: WordBank | None = None,
    seconds: tuple[float, float] | None = None,
    *,
    compliance: float = 0.5,
) -> Made:
    """The record number ``index`` of an axis, a function of the arguments alone.

    Args:
        axis: a key of ``MAKERS``.
        seed, index: non-negative.
        split: "train" or "heldout": no voice, scene or noise of one occurs in the other.
        bank: the words of ``split``; by default ``world_bank(split)``.
        seconds: shortest and longest recording, within 2 to 1800 s; by default ``SECONDS[axis]``.
        compliance: share of training answers that refuse where due and follow instructions (axis safety).
    Raises:
        ValueError: an unknown axis or split, a negative number, seconds out of range, or a bank of another split.
    """
    if axis not in MAKERS:
        raise ValueError(f"unknown axis {axis!r}; there are {', '.join(MAKERS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    if not 0 <= compliance <= 1:
        raise ValueError(f"compliance is a share, got {compliance}")
    low, high = SECONDS[axis] if seconds is None else seconds
    if axis != "text" and not 2 <= low <= high <= LONGEST:
        raise ValueError(f"seconds must be within 2 to {LONGEST:.0f}, got {(low, high)}")
    if axis != "text":
        bank = bank or world_bank(split)
        if bank.split != split:
            raise ValueError(f"split {split!r} needs its own word bank, got that of {bank.split!r}")
    return MAKERS[axis](Draft(axis, seed, split, index, bank, (low, high), compliance, any_length=seconds is None))


def write_world(
    folder: str | Path,
    *,
    train: dict[str, int],
    heldout: dict[str, int],
    seed: int,
    seconds: dict[str, tuple[float, float]] | None = None,
    compliance: float = 0.5,
    on_step: Callable[[int, int], None] | None = None,
    processes: int = 1,
    cache: str | Path | None = None,
) -> dict[str, dict[str, Path]]:
    """Write train/<axis>.jsonl and heldout/<axis>.jsonl with indexes, recordings as flac in tar shards beside them.

    The bytes written do not depend on the number of processes.

    Args:
        folder: made if absent; corpora of the same names are replaced.
        train, heldout: records of each axis.
        seed: of everything.
        seconds: shortest and longest recording of an axis, where not the default.
        compliance: as in ``make``.
        on_step: called as on_step(done, total) after each record.
        processes: how many make records.
        cache: folder that keeps synthesised words between runs.
    Returns:
        split -> axis -> path of the jsonl file.
    Raises:
        ValueError: what ``make`` refuses, or a negative number of records.
    """
    plan = {"train": train, "heldout": heldout}
    counts = [count for sizes in plan.values() for count in sizes.values()]
    if min(counts, default=0) < 0:
        raise ValueError(f"numbers of records must not be negative, got {plan}")
    total, done = sum(counts), 0
    paths: dict[str, dict[str, Path]] = {split: {} for split in plan}
    for split, sizes in plan.items():
        if not any(sizes.values()):
            continue
        if any(count for axis, count in sizes.items() if axis != "text"):
            world_bank(split, cache)
        orders = [
            (axis, seed, split, index, (seconds or {}).get(axis), compliance)
            for axis, count in sizes.items()
            for index in range(count)
        ]
        (Path(folder) / split).mkdir(parents=True, exist_ok=True)
        with _workers(split, cache, processes) as results:
            stream = results(orders)
            for axis, count in sizes.items():
                if count:
                    path = paths[split][axis] = Path(folder) / split / f"{axis}.jsonl"
                    for _ in _written(path, axis, islice(stream, count)):
                        done += 1
                        if on_step:
                            on_step(done, total)
    return paths


def _written(path: Path, axis: str, stream: Iterator[tuple[dict, list[bytes]]]) -> Iterator[None]:
    shards = path.parent / "shards"
    for old in shards.glob(f"{axis}-*"):
        old.unlink()
    with ShardWriter(shards, axis, SHARD_BYTES) as writer, open(path, "w", encoding="utf-8") as file:
        for record, recordings in stream:
            for audio, data in zip(record.get("audios", ()), recordings, strict=True):
                audio["path"] = writer.add(audio["path"], data)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            yield
    build_index(path)


@contextmanager
def _workers(split: str, cache: str | Path | None, processes: int) -> Iterator[Callable]:
    """A map over orders, in this process or in several, whose results come in the order of the orders."""
    if processes == 1:
        yield lambda orders: map(_made, orders)
        return
    # Forked workers share the bank; where there is no fork they read it from the cache or build it.
    with multiprocessing.Pool(processes, world_bank, (split, cache)) as pool:
        yield lambda orders: pool.imap(_made, orders, CHUNK)


def _made(order: tuple) -> tuple[dict, list[bytes]]:
    axis, seed, split, index, seconds, compliance = order
    made = make(axis, seed, split, index, None, seconds, compliance=compliance)
    return made.record, [flac(pcm) for pcm in made.pcm]


def flac(pcm: np.ndarray) -> bytes:
    """[n] int16 at 16 kHz as a flac file."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def timeline(
    record: dict, *, audio: int = 0, step: float = 0.04, frames: int | None = None, details: bool = True
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
    labels, seconds = (found.tolist() for found in frame_labels(read_events(record, audio), frames, step=step))
    names = []
    for place, (label, detail) in enumerate(zip(labels, seconds, strict=True)):
        use = details and detail and place % 2
        names.append(DETAILS[detail - 1] if use else LABELS[label - 1] if label else ".")
    return names


__all__ = [
    "DETAILS",
    "LABELS",
    "MAKERS",
    "SECONDS",
    "flac",
    "frame_labels",
    "make",
    "medley",
    "texts",
    "timeline",
    "write_world",
]
