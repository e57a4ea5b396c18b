"""What is there of the benchmarks before a model is asked: files, items, answers, recordings and their length."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from afn_model.audio.recording import Audio, is_inside, measured_seconds
from afn_model.checks import said
from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders import folder_of, is_copy, load
from afn_model.eval.loaders.files import plain_names
from afn_model.eval.reports.scored import labels, questions
from afn_model.eval.table import BenchmarkRow
from afn_model.files import fingerprint_as_of

LONGEST = 1800  # seconds of a recording that the model takes
OPTIONS = ("choices", "string-match", "labels", "rul-muchomusic")  # rules of answers that are one of the options
SHOWN = 3  # examples of what is wrong


@dataclass
class BenchmarkFiles:
    """What was found of one benchmark.

    Args:
        name, title: of the row, the title such that rows differ.
        folder: where its files are looked for.
        copy: the files are synthetic ones of ours.
        files: name -> paths in the folder; what was not found is in ``missing``: name -> pattern. Some benchmarks have
            files in two forms, of which one is enough.
        where: how to get the files, for what is missing.
        other_files: paths whose SHA-256 is not the table's: another version than the paper's, or a damaged file.
        problem: why the files cannot be read as the benchmark's; "" where they can.
        items, official: how many there are, and how many the official split has.
        hidden: items whose answer is not public.
        repeated: ids that the file has more than once.
        not_a_choice: ids of items whose answer is none of their options.
        absent: recordings that are not there.
        unreadable: recordings that are there, and why they cannot be read.
        clips: recordings, each counted once.
        hours, longest: of the recordings' parts that are asked about: hours in all, and seconds.
        too_long: recordings that are longer than the model takes.
    """

    name: str
    title: str
    folder: str
    copy: bool = False
    files: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    where: str = ""
    other_files: list[str] = field(default_factory=list)
    problem: str = ""
    items: int = 0
    official: int | None = None
    hidden: int = 0
    repeated: list[str] = field(default_factory=list)
    not_a_choice: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    clips: int = 0
    hours: float = 0.0
    longest: float = 0.0
    too_long: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """It can be asked as it is: the files are read, and so is every recording."""
        return bool(self.items) and not (self.problem or self.absent or self.unreadable or self.too_long)

    @property
    def state(self) -> str:
        return "ready" if self.complete else "faulty" if self.files else "missing"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"complete": self.complete}

    def sentences(self) -> list[str]:
        """What is to be known of it, a sentence for each thing."""
        told = []
        if self.copy:
            told.append("The rows are synthetic, written by the demo suite: no benchmark.")
        if self.problem and not self.files:
            told.append(f"Missing in {self.folder}: {', '.join(self.missing.values())}.")
            told.append(f"To get it: {self.where.rstrip(' .') or 'the table does not say where it is'}.")
        elif self.problem:
            told.append(f"It cannot be read: {self.problem}.")
        if self.other_files:
            told.append(f"{', '.join(self.other_files)}: not the file that the table knows (SHA-256 differs).")
        if self.items and self.official not in (None, self.items):
            told.append(f"{self.items:,} items, the official split has {self.official:,}: not the paper's version.")
        if self.hidden:
            told.append(f"The answers of {self.hidden:,} items are hidden.")
        told += _examples("Ids given more than once", self.repeated)
        told += _examples("Answers that are none of their options", self.not_a_choice)
        told += _examples("Recordings that are absent", self.absent)
        told += _examples("Recordings that cannot be read", [f"{path}: {why}" for path, why in self.unreadable.items()])
        told += _examples(f"Recordings longer than the model's {LONGEST // 60} minutes", self.too_long)
        return told


def examine(
    rows: Sequence[BenchmarkRow],
    data: str | Path,
    *,
    durations: bool = True,
    threads: int = 4,
    on_row: Callable[[str], Any] | None = None,
) -> list[BenchmarkFiles]:
    """Examines the files of benchmarks. Of recordings only the headers are read.

    Args:
        rows: of the table.
        data: the data folder.
        durations: whether recordings are opened; without, only whether they are there is found.
        threads: that open recordings.
        on_row: called with the name of each benchmark before it is examined.
    """
    found, known, titles = [], dict[str, float | str](), labels(rows)
    with ThreadPoolExecutor(threads) as pool:
        for row in rows:
            if on_row is not None:
                on_row(row.name)
            found.append(_examine(row, titles[row.name], data, known, pool if durations else None))
    return found


def other_files(row: BenchmarkRow, data: str | Path) -> list[str]:
    """Files of a benchmark that have another SHA-256 than the table says."""
    folder, found = folder_of(row, data), []
    for name, expected in row.sha256.items():
        path = folder / name
        if path.is_file():
            state = path.stat()
            if fingerprint_as_of(path, state.st_size, state.st_mtime_ns) != expected:
                found.append(name)
    return found


def _examine(
    row: BenchmarkRow, title: str, data: str | Path, known: dict[str, float | str], pool: Any
) -> BenchmarkFiles:
    folder = folder_of(row, data)
    found = BenchmarkFiles(row.name, title, str(folder), is_copy(row, data), where=row.where, official=row.items)
    for name, given in row.files.items():
        patterns = [given] if isinstance(given, str) else list(given)
        paths = next((some for one in patterns if (some := sorted(folder.glob(one)))), [])
        if paths:
            found.files[name] = [str(path.relative_to(folder)) for path in paths]
        else:
            found.missing[name] = plain_names(patterns)
    found.other_files = other_files(row, data)
    try:
        items = load(row, data)
    except (OSError, ValueError) as error:
        found.problem = said(error)
        return found
    _items(found, items, row.hidden, any(scorer["rule"] in OPTIONS for scorer in row.scorers))
    _recordings(found, items, known, pool)
    return found


def _items(found: BenchmarkFiles, items: Sequence[Item], hidden: bool, chooses: bool) -> None:
    found.items = questions(items)
    found.hidden = hidden * sum(item.answer is None for item in items)
    ids = Counter(item.id for item in items)
    found.repeated = [item.id.rpartition("#")[0] for item in items if item.id.endswith("#2") and item.id[:-2] in ids]
    if chooses:
        found.not_a_choice = [item.id for item in items if item.choices and item.answer not in (None, *item.choices)]


def _recordings(found: BenchmarkFiles, items: Sequence[Item], known: dict[str, float | str], pool: Any) -> None:
    clips = dict.fromkeys(clip for item in items for clip in item.clips)
    paths = list(dict.fromkeys(clip.path for clip in clips))
    found.clips = len(paths)
    there = [path for path in paths if is_inside(path) or os.path.isfile(path)]
    found.absent = sorted(set(paths) - set(there))
    if pool is None:
        return
    todo = [path for path in there if path not in known]
    known.update(zip(todo, pool.map(_seconds, todo, chunksize=64), strict=True))
    for clip in clips:
        seconds = known.get(clip.path)
        if isinstance(seconds, str):
            found.unreadable[clip.path] = seconds
        elif seconds is not None:
            part = _part(clip, seconds)
            found.hours += part / 3600
            found.longest = max(found.longest, part)
            if part > LONGEST:
                found.too_long.append(clip.path)
            if part <= 0:
                found.unreadable[clip.path] = f"the part from {clip.start} s is outside of its {seconds:.2f} s"


def _part(clip: ItemClip, seconds: float) -> float:
    return min(seconds, seconds if clip.end is None else clip.end) - (clip.start or 0.0)


def _seconds(path: str) -> float | str:
    try:
        return measured_seconds(Audio(path))
    except (OSError, ValueError) as error:
        return said(error).removeprefix(f"{path}: ")


def _examples(what: str, found: Sequence[str]) -> list[str]:
    if not found:
        return []
    more = ", ..." if len(found) > SHOWN else ""
    return [f"{what}: {len(found):,} ({', '.join(found[:SHOWN])}{more})."]


def text(found: Sequence[BenchmarkFiles]) -> str:
    """Findings for people: a line for each benchmark, below it what is to be known of it, and what there is in all."""
    width = max([9, *(len(one.name) for one in found)])
    lines = [f"{'benchmark':{width}}  state    items / official  recordings    hours  longest s"]
    for one in found:
        official = "?" if one.official is None else f"{one.official:,}"
        counts = f"{f'{one.items:,} / {official}':>17}  {one.clips:>10,}"
        lines.append(f"{one.name:{width}}  {one.state:9}{counts}  {one.hours:>7.2f}  {one.longest:>9.1f}")
        lines += [f"    {sentence}" for sentence in one.sentences()]
    states = Counter(one.state for one in found)
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    return "\n".join([*lines, "", f"{told}; {sum(one.hours for one in found):,.1f} hours of audio"])
