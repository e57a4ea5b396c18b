"""An index of benchmarks: what training data must not contain, their sound, their words, their places in videos.

A folder: index.json {"version", "items", "clips": codes of each, "sha256"}, items.jsonl with a line for each item
{"benchmark", "item", "clip", "video", "start", "end", "texts"}, and codes.npy, the fingerprints of clips one after
another. Where the index says nothing of a benchmark, its data cannot be found.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.audio.recording import Audio, load
from afn_model.checks import said
from afn_model.curate.fingerprint import LONGEST, VERSION, Fingerprint, FingerprintIndex, fingerprint
from afn_model.files import atomic_path, read_json, write_json

FACTS, ITEMS, CODES = "index.json", "items.jsonl", "codes.npy"
_VIDEO = re.compile(
    r"(?:youtube(?:-nocookie)?\.com/(?:watch\?(?:[^#\s]*&)?v=|shorts/|embed/|live/|v/)|youtu\.be/)([\w-]{11})(?![\w-])"
)


@dataclass(frozen=True)
class BenchmarkItem:
    """What is known of an item; any part may be missing.

    Args:
        benchmark, item: names, for explanations.
        audio: a recording as ``afn_model.audio`` names it; "" for none.
        start, end: the part of it, in seconds.
        texts: of words that are the benchmark's own: question and answer in one, each transcript or caption.
        video: a YouTube id, or a url that has one.
        video_start, video_end: seconds of it; None for its beginning and its end.
    """

    benchmark: str
    item: str
    audio: str = ""
    start: float | None = None
    end: float | None = None
    texts: tuple[str, ...] = ()
    video: str = ""
    video_start: float | None = None
    video_end: float | None = None


@dataclass
class BenchmarkCounts:
    """What went into an index.

    Args:
        items, clips: how many; items about the same recording share its clip.
        seconds: of audio.
        silent: clips with too little to be found by (silence, a steady tone, under 0.5 s), as "benchmark/item".
        missing: "benchmark/item: why" of recordings that cannot be read.
    """

    items: int = 0
    clips: int = 0
    seconds: float = 0.0
    silent: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def build(items: Iterable[BenchmarkItem], out: str | Path) -> BenchmarkCounts:
    """Writes the index of items to a folder; ``index.json`` comes last, so that a folder without it is no index.

    Raises:
        ValueError: the folder cannot be written.
    """
    out, counts = Path(out), BenchmarkCounts()
    out.mkdir(parents=True, exist_ok=True)
    (out / FACTS).unlink(missing_ok=True)
    clips: dict[tuple[str, float | None, float | None], int | None] = {}
    prints, lines = list[Fingerprint](), list[dict[str, Any]]()
    for one in items:
        counts.items += 1
        name, key = f"{one.benchmark}/{one.item}", (one.audio, one.start, one.end)
        if one.audio and key not in clips:
            clips[key] = _clip(one, name, prints, counts)
        line = {
            "benchmark": one.benchmark,
            "item": one.item,
            "clip": clips.get(key),
            "video": youtube_id(one.video),
            "start": one.video_start,
            "end": one.video_end,
            "texts": list(one.texts),
        }
        lines.append(line)
    counts.clips = len(prints)
    with atomic_path(out / ITEMS) as path, path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    codes = [np.stack([one.codes, one.sure]) for one in prints]
    with atomic_path(out / CODES) as path, path.open("wb") as file:
        np.save(file, np.concatenate([np.zeros((2, 0), np.uint32), *codes], axis=1))
    facts = {"version": VERSION, "items": len(lines), "clips": [len(one.codes) for one in prints], "sha256": _hash(out)}
    write_json(out / FACTS, facts)
    return counts


def _clip(one: BenchmarkItem, name: str, prints: list[Fingerprint], counts: BenchmarkCounts) -> int | None:
    try:
        pcm = load(Audio(one.audio, start=one.start, end=one.end), max_seconds=LONGEST)
    except (OSError, ValueError) as error:
        counts.missing.append(f"{name}: {said(error)}")
        return None
    found = fingerprint(pcm)
    counts.seconds += len(pcm) / 16_000
    if not found.is_findable:
        counts.silent.append(name)
    prints.append(found)
    return len(prints) - 1


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (ITEMS, CODES):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def index_hash(folder: str | Path) -> str:
    """The hash that an index says it has.

    Raises:
        ValueError: no index is there, or one of another version.
    """
    if not (Path(folder) / FACTS).is_file():
        raise ValueError(f"{folder}: no index of benchmarks; afn curate benchmarks makes one")
    facts = read_json(Path(folder) / FACTS)
    if facts.get("version") != VERSION:
        found = f"{folder}: an index of benchmarks of version {facts.get('version')}, not {VERSION}"
        raise ValueError(f"{found}; make it again with afn curate benchmarks")
    return str(facts["sha256"])


@dataclass(frozen=True, eq=False)
class BenchmarkIndex:
    """An index in memory.

    Args:
        items: its lines.
        prints: of its clips.
        sounds: the index of them; names are numbers of clips.
        of_clip: clip -> the first item about it.
        videos: YouTube id -> items.
    """

    items: list[Mapping[str, Any]]
    prints: list[Fingerprint]
    sounds: FingerprintIndex
    of_clip: Mapping[int, Mapping[str, Any]]
    videos: Mapping[str, list[Mapping[str, Any]]]


def read_index(folder: str | Path) -> BenchmarkIndex:
    """The index in a folder; one that has been read is kept.

    Raises:
        ValueError: none is there, or its files are not those that were written.
    """
    return _read(Path(folder), index_hash(folder))


@lru_cache(2)
def _read(folder: Path, told: str) -> BenchmarkIndex:
    try:
        found = _hash(folder)
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}") from None
    if found != told:
        raise ValueError(f"{folder}: its files are not those that {FACTS} tells of; make it again")
    with (folder / ITEMS).open(encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    codes, ends = np.load(folder / CODES), np.cumsum([0, *read_json(folder / FACTS)["clips"]])
    prints = [Fingerprint(*codes[:, begin:end].copy()) for begin, end in pairwise(ends)]
    of_clip: dict[int, Mapping[str, Any]] = {}
    videos: dict[str, list[Mapping[str, Any]]] = {}
    for one in items:
        if one["clip"] is not None:
            of_clip.setdefault(one["clip"], one)
        if one["video"]:
            videos.setdefault(one["video"], []).append(one)
    sounds = FingerprintIndex((str(number), one) for number, one in enumerate(prints))
    return BenchmarkIndex(items, prints, sounds, of_clip, videos)


def youtube_id(text: str) -> str:
    """The id of a video, from itself or a url; "" where there is none."""
    if re.fullmatch(r"[\w-]{11}", text):
        return text
    found = _VIDEO.search(text)
    return found[1] if found else ""
