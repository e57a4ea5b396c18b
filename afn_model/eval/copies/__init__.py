"""Copies of the official files, a few rows each, with recordings and questions of the synthetic world: every format and
every oddity of the real ones, for tests and for ``afn bench run --suite demo``.

A benchmark's rows here are no rows of the benchmark: their scores say that the road from file to report works.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from afn_model.eval.copies.sounds import Sounds
from afn_model.eval.loaders import COPY
from afn_model.eval.table import BenchmarkRow
from afn_model.files import put_folder, write_text
from afn_model.hashing import key, text_key

NOTE = "The files here are in {}'s format; their rows are synthetic and none of the benchmark's.\n"

# Loader of the table -> module and function, (folder of the benchmark, Sounds, **options of the row) -> None.
COPIES: dict[str, str] = {
    "mmau": "choices:mmau",
    "mmar": "choices:mmar",
    "mmsu": "choices:mmsu",
    "mmau-pro": "choices:mmau_pro",
    "muchomusic": "choices:muchomusic",
    "rul-muchomusic": "choices:rul",
    "cmm": "voices:cmm",
    "voicebench": "voices:voicebench",
    "librisqa": "voices:librisqa",
    "entailment": "labels:entailment",
    "nonspeech7k": "labels:nonspeech7k",
    "nsynth": "labels:nsynth",
    "medley-solos-db": "labels:medley_solos_db",
    "gtzan": "labels:gtzan",
    "compa-r": "labels:compa_r",
    "clotho": "captions:clotho",
    "audiocaps": "captions:audiocaps",
    "songcaps": "captions:songcaps",
    "longaudiobench": "captions:longaudiobench",
    "musicinstruct": "captions:musicinstruct",
    "librispeech": "speech:librispeech",
    "spgispeech": "speech:spgispeech",
    "tedlium": "speech:tedlium",
    "gigaspeech": "speech:gigaspeech",
    "common-voice": "speech:common_voice",
    "voxpopuli": "speech:voxpopuli",
    "open-asr": "speech:open_asr",
    "covost2": "speech:covost2",
    "multi-talker": "talkers:multi_talker",
    "diarisation": "talkers:diarisation",
    "event-captions": "talkers:event_captions",
}


def write_copies(rows: Sequence[BenchmarkRow], data: str | Path, *, seed: int = 0) -> None:
    """Writes the files of benchmarks to a data folder; a benchmark's folder that is there already is left as it is.

    Raises:
        ValueError: the synthetic world's packages are missing.
    """
    sounds = None
    for row in rows:
        folder = Path(data) / row.name
        if folder.exists():
            continue
        sounds = sounds or Sounds()
        sounds.begin(key(seed, text_key(row.name)))
        Path(data).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{row.name}-", dir=data, ignore_cleanup_errors=True) as made:
            part = Path(made) / row.name  # a folder that is there is whole
            part.mkdir()
            write_text(part / COPY, NOTE.format(row.title))
            writer(row)(part, sounds, **row.options)
            put_folder(part, folder)


def writer(row: BenchmarkRow) -> Callable[..., None]:
    module, function = COPIES[row.loader].split(":")
    return getattr(import_module(f"{__name__}.{module}"), function)
