"""Keeps benchmarks out of training data: their sound, their videos, their words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from afn_model.checks import is_number, number, shown, whole
from afn_model.curate.benchmark_index import BenchmarkIndex, index_hash, read_index, youtube_id
from afn_model.curate.fingerprint import SCORE, SoundMatch, read_fingerprint, share_aligned
from afn_model.curate.stage import Context, Dropped, Kept, Outcome, Resources, Row, Stage
from afn_model.curate.texts import Grams, texts_in

ACTIONS = ("drop", "mark")


@dataclass(frozen=True)
class Decontaminate(Stage):
    """Drops recordings that hold audio of a benchmark, or marks where.

    A recording holds an item where its fingerprint has ``share`` of what can be recognised in the item, or the item has
    ``share`` of the recording's, or a stretch of ``seconds`` is the same; and where it is a video, or a part of one,
    that an item names, and their times overlap. Clips without enough to be recognised are found by their video alone.

    ``contaminated`` of a recording that stays is [{"start", "end", "benchmark", "item", "by": "sound" or "video"}],
    empty unless it is marked.

    Args:
        benchmarks: folder that ``afn curate benchmarks`` has written.
        action: "drop", or "mark".
        share: 0 to 1.
        seconds: of a stretch.
        score: of a stretch that counts.
    """

    name: ClassVar[str] = "decontaminate"
    reads: ClassVar[tuple[str, ...]] = ("fingerprint", "url", "about")
    writes: ClassVar[tuple[str, ...]] = ("contaminated",)
    files: ClassVar[tuple[str, ...]] = ("benchmarks",)
    drops: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(batch=16, seconds=8.0)

    benchmarks: str = ""
    action: str = "drop"
    share: float = 0.7
    seconds: float = 10.0
    score: float = SCORE

    def __post_init__(self):
        _check(self.benchmarks, self.action)
        for name in ("share", "seconds", "score"):
            number(getattr(self, name), name, above=0)

    def depends(self) -> Mapping[str, Any]:
        return {"benchmarks": index_hash(self.benchmarks)}

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        index = read_index(self.benchmarks)
        return [self._one(row, context, index) for row in rows]

    def _one(self, row: Row, context: Context, index: BenchmarkIndex) -> Outcome:
        found = [*_by_video(row, index), *self._by_sound(row, context, index)]
        if found and self.action == "drop":
            first = found[0]
            where = f" at {first['start']:g} s" if first["start"] is not None else ""
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            detail = f"{first['benchmark']}/{first['item']} by {first['by']}{where}{more}"
            return Dropped(f"benchmark {first['by']}", detail)
        return Kept({"contaminated": found}, {"contaminated": len(found)} if found else {})

    def _by_sound(self, row: Row, context: Context, index: BenchmarkIndex) -> Iterator[dict[str, Any]]:
        own = read_fingerprint(context.out / row["fingerprint"])
        matches: dict[str, list[SoundMatch]] = {}
        for one in index.sounds.matches(own, score=self.score):
            matches.setdefault(one.name, []).append(one)
        for name, some in sorted(matches.items(), key=lambda pair: (pair[1][0].first, int(pair[0]))):
            longest = max(one.end - one.start for one in some)
            if longest >= self.seconds or share_aligned(own, index.prints[int(name)], some) >= self.share:
                item = index.of_clip[int(name)]
                for one in some:
                    yield _found(item, "sound", one.start, one.end)


@dataclass(frozen=True)
class DecontaminateTexts(Stage):
    """Drops recordings whose texts have 13 words in a row that a benchmark's question and answer, or one of its
    transcripts or captions, has too; or says so in ``contaminated_texts``: [{"benchmark", "item", "words"}].

    Case and punctuation do not count. What more than ``common`` items have in common is the form of their questions.

    Args:
        benchmarks: folder that ``afn curate benchmarks`` has written.
        texts: fields with transcripts, captions, questions.
        action: "drop", or "mark".
        common: items.

    Source: Brown et al., 2020, arXiv:2005.14165, appendix C.
    """

    name: ClassVar[str] = "decontaminate-texts"
    writes: ClassVar[tuple[str, ...]] = ("contaminated_texts",)
    files: ClassVar[tuple[str, ...]] = ("benchmarks",)
    drops: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(batch=64, seconds=0.1)

    benchmarks: str = ""
    texts: tuple[str, ...] = ("transcript",)
    action: str = "drop"
    common: int = 10

    def __post_init__(self):
        _check(self.benchmarks, self.action)
        whole(self.common, "common", 1)

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(self.texts)

    def depends(self) -> Mapping[str, Any]:
        return {"benchmarks": index_hash(self.benchmarks)}

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        items = read_index(self.benchmarks).items
        grams = _grams(self.benchmarks, index_hash(self.benchmarks), self.common)
        outcomes: list[Outcome] = []
        for row in rows:
            shared = grams.shared(text for field in self.texts for text in texts_in(row.get(field)))
            if shared is None:
                outcomes.append(Kept({"contaminated_texts": []}))
                continue
            item, words = items[shared[0]], shared[1]
            if self.action == "drop":
                outcomes.append(Dropped("benchmark words", f"{item['benchmark']}/{item['item']}: {words}"))
            else:
                told = {"benchmark": item["benchmark"], "item": item["item"], "words": words}
                outcomes.append(Kept({"contaminated_texts": [told]}, {"contaminated": 1}))
        return outcomes


@lru_cache(2)
def _grams(folder: str, told: str, common: int) -> Grams:
    items = read_index(folder).items
    return Grams(((place, text) for place, one in enumerate(items) for text in one["texts"]), common)


def _by_video(row: Row, index: BenchmarkIndex) -> Iterator[dict[str, Any]]:
    about = row.get("about") or {}
    own = youtube_id(str(about.get("youtube_id") or "")) or youtube_id(str(row.get("url") or ""))
    begin, stop = (about.get(name) if is_number(about.get(name)) else None for name in ("start", "end"))
    for one in index.videos.get(own, ()) if own else ():
        start, end = max(one["start"] or 0.0, begin or 0.0), min(_end(one["end"]), _end(stop))
        if start < end:
            first = begin or 0.0  # seconds of the recording, which begins there in the video
            yield _found(one, "video", round(start - first, 2), round(end - first, 2) if end < math.inf else None)


def _end(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _found(item: Mapping[str, Any], by: str, start: float | None, end: float | None) -> dict[str, Any]:
    return {"start": start, "end": end, "benchmark": item["benchmark"], "item": item["item"], "by": by}


def _check(benchmarks: str, action: str) -> None:
    if not benchmarks:
        raise ValueError("benchmarks: the folder of an index is expected; afn curate benchmarks makes it")
    if action not in ACTIONS:
        raise ValueError(f"action is {' or '.join(ACTIONS)}, got {shown(action)}")
