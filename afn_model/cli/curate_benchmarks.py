"""``afn curate benchmarks``: from the evaluation's table to the index that keeps benchmarks out of training data."""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from afn_model.cli import options

if TYPE_CHECKING:
    from afn_model.curate.benchmark_index import BenchmarkItem
    from afn_model.eval.items import Item

CLIP_SECONDS = 10.0  # of AudioSet, which AudioCaps takes its recordings from
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")


def add_curate_benchmarks(parser: ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="DIR", help="the benchmarks' files, as for afn bench run")
    told = "paper (default), demo, beyond, or names of benchmarks with commas between them"
    parser.add_argument("--suite", default="paper", metavar="NAMES", help=told)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the index")
    options.add_json(parser)


def curate_benchmarks(args: Namespace) -> int:
    """3 where a benchmark has no files, or an item no recording: they will not be found."""
    from afn_model.curate.benchmark_index import build
    from afn_model.eval.table import chosen

    problems: dict[str, str] = {}
    counts = build(benchmark_items(chosen(args.suite.split(",")), args.data, problems), args.out)
    for name, problem in problems.items():
        print(f"afn: {name}: {problem}", file=sys.stderr)
    for missing in counts.missing[:20]:
        print(f"afn: {missing}", file=sys.stderr)
    if args.json:
        print(json.dumps(vars(counts) | {"problems": problems}, indent=2, ensure_ascii=False))
    else:
        hours = f"{counts.clips:,} recordings ({counts.seconds / 3600:.1f} h)"
        print(f"{args.out}: {counts.items:,} items with {hours}; {len(counts.missing):,} recordings missing")
        if counts.silent:
            some = ", ".join(counts.silent[:5]) + (", ..." if len(counts.silent) > 5 else "")
            print(f"{len(counts.silent):,} recordings have too little to be recognised by: {some}")
    return 3 if problems or counts.missing else 0


def benchmark_items(rows: Any, data: str, problems: dict[str, str]) -> Iterator[BenchmarkItem]:
    """The items of benchmarks, once for each of their recordings; what cannot be read goes into ``problems``."""
    from afn_model.eval.loaders import load

    for row in rows:
        try:
            items = load(row, data)
        except ValueError as error:
            problems[row.name] = str(error)
            continue
        for item in items:
            yield from _items_of(row.name, item)


def _items_of(benchmark: str, item: Item) -> Iterator[BenchmarkItem]:
    from afn_model.curate.benchmark_index import BenchmarkItem

    texts = (f"{item.question} {item.answer or ''}".strip(), *item.references)
    video, start, end = _video(item)
    told = {"video": video, "video_start": start, "video_end": end}
    given = tuple(text for text in texts if text)
    if not item.clips:
        yield BenchmarkItem(benchmark, item.id, texts=given, **told)
    for place, clip in enumerate(item.clips):
        own = given if place == 0 else ()
        yield BenchmarkItem(benchmark, item.id, clip.path, clip.start, clip.end, own, **told)


def _video(item: Item) -> tuple[str, float | None, float | None]:
    """(YouTube id or url, start, end) as files of benchmarks say it: AudioCaps has youtube_id and start_time, MMAR url
    and timestamp, "00:00:01,00:00:11"."""
    video = str(item.extra.get("youtube_id") or item.extra.get("url") or "")
    times = [_seconds(part) for part in str(item.extra.get("timestamp") or "").split(",")]
    if video and item.extra.get("start_time") is not None:
        start = float(item.extra["start_time"])
        return video, start, start + CLIP_SECONDS
    if video and len(times) == 2 and None not in times:
        return video, times[0], times[1]
    return video, None, None


def _seconds(clock: str) -> float | None:
    found = _CLOCK.fullmatch(clock.strip())
    return None if found is None else 3600 * int(found[1] or 0) + 60 * int(found[2]) + float(found[3])
