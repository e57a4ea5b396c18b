"""Records of the synthetic world one by one, and corpora of them on disk."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from afn_model.audio.encode import flac
from afn_model.audio.shards import ShardWriter
from afn_model.data.index import build as build_index
from afn_model.world.record import SECONDS, Draft, Made
from afn_model.world.tasks import basics, long, music, speech, talks, think, utterances
from afn_model.world.vocabulary import load_vocabulary
from afn_model.world.words import SPLITS, load_bank

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
    "word": basics.word,
    "sound": basics.sound,
    "onset": basics.onset,
}
# Speech recognition: as long as what is said.
UTTERANCES: dict[str, Callable[[Draft], Made]] = {
    "single": utterances.single,
    "phrases": utterances.phrases,
    "overlaps": utterances.overlaps,
    "target": utterances.target,
    "interpreted": utterances.interpreted,
    "captions": utterances.captions,
}
WORDLESS = ("text", "captions")
SHARD_BYTES = 1 << 28
CHUNK = 16  # records a process makes at a time
LONGEST = 1800.0


def make(
    axis: str,
    seed: int,
    split: str,
    index: int,
    seconds: tuple[float, float] | None = None,
    *,
    compliance: float = 0.5,
) -> Made:
    """The record number ``index`` of an axis, a function of the arguments alone.

    Args:
        axis: a key of ``MAKERS`` or ``UTTERANCES``.
        seed, index: non-negative.
        split: "train" or "heldout": no voice, scene or noise of one occurs in the other.
        seconds: shortest and longest recording, within 2 (or what ``SECONDS`` allows) to 1800 s; by default
            ``SECONDS[axis]``. Utterances take none.
        compliance: share of training answers that refuse where due and follow instructions (axis safety).
    Raises:
        ValueError: an unknown axis or split, a negative number, or seconds out of range.
    """
    makers = MAKERS | UTTERANCES
    if axis not in makers:
        raise ValueError(f"unknown axis {axis!r}; there are {', '.join(makers)}")
    if axis in UTTERANCES and seconds is not None:
        raise ValueError(f"axis {axis} is as long as what is said: it takes no seconds")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    if not 0 <= compliance <= 1:
        raise ValueError(f"compliance is a share, got {compliance}")
    low, high = SECONDS[axis] if seconds is None else seconds
    shortest = min(2.0, SECONDS[axis][0])
    if axis != "text" and not shortest <= low <= high <= LONGEST:
        raise ValueError(f"seconds must be within {shortest:.0f} to {LONGEST:.0f}, got {(low, high)}")
    return makers[axis](Draft(axis, seed, split, index, (low, high), compliance, any_length=seconds is None))


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
    shards: bool = True,
) -> dict[str, dict[str, Path]]:
    """Write train/<axis>.jsonl and heldout/<axis>.jsonl with indexes, and their recordings as flac beside them.

    The bytes written do not depend on the number of processes.

    Args:
        folder: made if absent; corpora of the same names are replaced.
        train, heldout: records of each axis.
        seed: of everything.
        seconds: shortest and longest recording of an axis, where not the default.
        compliance: as in ``make``.
        on_step: called as on_step(done, total) after each record.
        processes: how many make records.
        shards: put recordings into tar files; otherwise each is a file to play.
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
        axes = [axis for axis, count in sizes.items() if count]
        _load(split, axes)
        orders = [
            (axis, seed, split, index, (seconds or {}).get(axis), compliance)
            for axis, count in sizes.items()
            for index in range(count)
        ]
        (Path(folder) / split).mkdir(parents=True, exist_ok=True)
        with _workers(split, axes, processes) as results:
            stream = results(orders)
            for axis, count in sizes.items():
                if count:
                    path = paths[split][axis] = Path(folder) / split / f"{axis}.jsonl"
                    for _ in write_records(path, axis, shards, islice(stream, count)):
                        done += 1
                        if on_step:
                            on_step(done, total)
    return paths


def write_records(path: Path, axis: str, shards: bool, stream: Iterator[tuple[dict, list[bytes]]]) -> Iterator[None]:
    """Writes records and their recordings as they come, and an index at the end; yields after each.

    A record with more audios than recordings has the paths of its first ones already.
    """
    with _recordings(path, axis, shards) as keep, open(path, "w", encoding="utf-8") as file:
        for record, recordings in stream:
            audios = record.get("audios", [])
            for audio, data in zip(audios[len(audios) - len(recordings) :], recordings, strict=True):
                audio["path"] = keep(audio["path"], data)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            yield
    build_index(path)


@contextmanager
def _recordings(path: Path, axis: str, shards: bool) -> Iterator[Callable[[str, bytes], str]]:
    """A function (name, bytes) → path in the record that keeps a recording."""
    folder = path.parent / ("shards" if shards else "recordings")
    for old in folder.glob(f"{axis}-*"):
        old.unlink()
    if shards:
        with ShardWriter(folder, axis, SHARD_BYTES) as writer:
            yield writer.add
        return

    def keep(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        return f"{folder.name}/{name}"

    folder.mkdir(exist_ok=True)
    yield keep


def _load(split: str, axes: Sequence[str]) -> None:
    """Has the words said that records of these axes hold."""
    spoken = set(axes) - set(WORDLESS)
    if spoken & UTTERANCES.keys():
        load_vocabulary(split)
    if spoken - UTTERANCES.keys():
        load_bank(split)


@contextmanager
def _workers(split: str, axes: Sequence[str], processes: int) -> Iterator[Callable]:
    """A map over orders, in this process or in several, whose results come in the order of the orders."""
    if processes == 1:
        yield lambda orders: map(_made, orders)
        return
    # Forked workers share the words; where there is no fork each speaks them anew.
    with multiprocessing.Pool(processes, _load, (split, axes)) as pool:
        yield lambda orders: pool.imap(_made, orders, CHUNK)


def _made(order: tuple) -> tuple[dict, list[bytes]]:
    axis, seed, split, index, seconds, compliance = order
    made = make(axis, seed, split, index, seconds, compliance=compliance)
    return made.record, [flac(pcm) for pcm in made.pcm]
