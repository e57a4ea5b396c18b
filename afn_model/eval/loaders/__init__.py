"""Loaders of the official files: one function for each format, (files) -> items. No hub library is needed."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from afn_model.checks import said, shown
from afn_model.eval.items import Item, distinct
from afn_model.eval.loaders.files import Files
from afn_model.eval.table import BenchmarkRow

# Name in the table -> module and function, (Files, **options of the row) -> Iterator[Item].
LOADERS: dict[str, str] = {
    # choices
    "mmau": "mmau:mmau",
    "mmar": "mmar:mmar",
    "mmsu": "mmsu:mmsu",
    "mmau-pro": "mmau_pro:mmau_pro",
    "muchomusic": "muchomusic:muchomusic",
    "rul-muchomusic": "muchomusic:rul",
    "cmm": "cmm:cmm",
    "voicebench": "voicebench:voicebench",
    "librisqa": "librisqa:librisqa",
    # labels, entailment, captions, open answers
    "entailment": "entailment:entailment",
    "nonspeech7k": "labels:nonspeech7k",
    "nsynth": "labels:nsynth",
    "medley-solos-db": "labels:medley_solos_db",
    "gtzan": "labels:gtzan",
    "compa-r": "compa_r:compa_r",
    "clotho": "captions:clotho",
    "audiocaps": "captions:audiocaps",
    "songcaps": "open_answers:songcaps",
    "longaudiobench": "open_answers:longaudiobench",
    "musicinstruct": "open_answers:musicinstruct",
    # speech
    "librispeech": "speech:librispeech",
    "spgispeech": "speech:spgispeech",
    "tedlium": "speech:tedlium",
    "gigaspeech": "speech:gigaspeech",
    "common-voice": "speech:common_voice",
    "voxpopuli": "speech:voxpopuli",
    "open-asr": "speech:open_asr",
    "covost2": "covost2:covost2",
    # what the paper leaves out
    "multi-talker": "talkers:multi_talker",
    "diarisation": "talkers:diarisation",
    "event-captions": "talkers:event_captions",
}


STRANGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, UnicodeError)
COPY = "COPY.txt"  # in folders that ``copies`` has made


def load(benchmark: BenchmarkRow, data: str | Path) -> list[Item]:
    """The items of a benchmark, each with an id of its own.

    Args:
        benchmark: a row of the table.
        data: the data folder; the benchmark's files are in the folder of its name in it, or in that of the name before
            the first "-" that exists, as parts of a benchmark share their files.

    Raises:
        ValueError: a file that is missing, or that is not what the benchmark publishes: named, with what is expected.
    """
    module, function = LOADERS[benchmark.loader].split(":")
    make, folder = getattr(import_module(f"{__name__}.{module}"), function), folder_of(benchmark, data)
    try:
        items = distinct(make(Files(folder, benchmark.files), **benchmark.options))
    except STRANGE as error:  # types that no loader expects
        what = f"the files are not what the benchmark publishes ({type(error).__name__}: {said(error)})"
        raise ValueError(f"{folder}: {what}") from error
    if not items:
        raise ValueError(f"{folder}: there are no items in its files")
    _inside(items, Path(data).resolve())
    return items


def _inside(items: Sequence[Item], data: Path) -> None:
    within = str(data).rstrip(os.sep) + os.sep
    for path, name in {clip.path: item.id for item in items for clip in item.clips}.items():
        if not os.path.normpath(path).startswith(within):
            what = "outside of it"
        elif _special(path):
            what = "that is no regular file"
        else:
            continue
        raise ValueError(f"{data}: item {shown(name)} names a recording {what}: {shown(path)}")


def _special(path: str) -> bool:
    """A pipe or a device, which may have no end."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR)
    except (OSError, ValueError):
        return False


def folder_of(benchmark: BenchmarkRow, data: str | Path) -> Path:
    """The folder of a benchmark's files: that of its name or of the beginning of its name."""
    parts = benchmark.name.split("-")
    names = ["-".join(parts[:n]) for n in range(len(parts), 0, -1)]
    data = Path(data).resolve()
    return next((data / name for name in names if (data / name).is_dir()), data / names[0])


def is_copy(benchmark: BenchmarkRow, data: str | Path) -> bool:
    """Whether a benchmark's files are a copy of ours with synthetic rows."""
    return (folder_of(benchmark, data) / COPY).is_file()
