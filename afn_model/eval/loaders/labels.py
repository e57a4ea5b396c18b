"""Benchmarks of labels: what is heard is one of a few classes, the same for all recordings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from afn_model.checks import shown
from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, field, read_json, read_table

# Classes as the files write them; the order of their numbers is that of the alphabet.
NONSPEECH7K = ("breath", "cough", "crying", "laugh", "screaming", "sneeze", "yawn")
NSYNTH = {
    "source": ("acoustic", "electronic", "synthetic"),
    "instrument": (
        *("bass", "brass", "flute", "guitar", "keyboard", "mallet"),
        *("organ", "reed", "string", "synth_lead", "vocal"),
    ),
}
MEDLEY_SOLOS_DB = (
    *("clarinet", "distorted electric guitar", "female singer", "flute"),
    *("piano", "tenor saxophone", "trumpet", "violin"),
)
GTZAN = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
_SPELT = {"cry": "crying", "scream": "screaming", "yawm": "yawn"}  # elsewhere in Nonspeech7k's files, and in its paper


def nonspeech7k(files: Files, question: str = "") -> Iterator[Item]:
    """Nonspeech7k: rows {Filename, Classname, ...}; the other columns and the capitals differ between its files.
    ``question`` is what all items ask, here and below."""
    path = files.one("labels")
    for number, row in enumerate(read_table(path), 1):
        where = f"{path}, row {number}"
        label = field(row, "Classname", where).strip().lower()
        name = field(row, "Filename", where).strip()
        yield _item(name, question, files.audio(name, "test"), _SPELT.get(label) or label, NONSPEECH7K, where)


def nsynth(files: Files, label: str, question: str = "") -> Iterator[Item]:
    """NSynth: an object of notes by name, {instrument_family_str, instrument_source_str, ...}; ``label`` is "source" or
    "instrument", which is the family."""
    path = files.one("notes")
    notes = read_json(path)
    if not isinstance(notes, dict):
        raise ValueError(f"{path}: an object of notes is expected, got {shown(notes)}")
    column = {"source": "instrument_source_str", "instrument": "instrument_family_str"}[label]
    for name, note in notes.items():
        where = f"{path}, note {name}"
        audio = files.audio(f"{name}.wav", "audio", "nsynth-test/audio")
        yield _item(name, question, audio, field(note, column, where), NSYNTH[label], where)


def medley_solos_db(files: Files, question: str = "") -> Iterator[Item]:
    """Medley-solos-DB: rows {subset, instrument, instrument_id, song_id, uuid4} of all subsets, of which the test is
    meant; recordings are named by them."""
    path = files.one("labels")
    for number, row in enumerate(read_table(path), 1):
        where = f"{path}, row {number}"
        if field(row, "subset", where) != "test":
            continue
        name = f"Medley-solos-DB_test-{field(row, 'instrument_id', where)}_{field(row, 'uuid4', where).strip()}"
        audio = files.audio(f"{name}.wav", "audio", "Medley-solos-DB")
        yield _item(name, question, audio, field(row, "instrument", where), MEDLEY_SOLOS_DB, where)


def gtzan(files: Files, question: str = "") -> Iterator[Item]:
    """GTZAN: lines ``blues/blues.00012.wav`` of the split without faults, or names without folder and suffix, as
    torchaudio has them. The genre is in the name."""
    path = files.one("split")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name = PurePosixPath(line.strip()).name.removesuffix(".wav").removesuffix(".au")
        if not re.fullmatch(r"[a-z]+\.\d{5}", name):
            raise ValueError(
                f"{path}, line {number}: a name such as blues.00012 is expected, got {shown(line.strip())}"
            )
        genre = name.split(".")[0]
        audio = files.audio(f"{genre}/{name}.wav", "genres", "genres_original", "Data/genres_original")
        yield _item(name, question, audio, genre, GTZAN, f"{path}, line {number}")


def _item(name: str, question: str, audio: str, label: str, labels: tuple[str, ...], where: Any) -> Item:
    """An item whose choices are all labels.

    Raises:
        ValueError: a label that the benchmark does not have: no answer to it could be right.
    """
    if label not in labels:
        raise ValueError(f"{where}: {shown(label)} is none of the benchmark's classes: {', '.join(labels)}")
    return Item(name, question, (ItemClip(audio),), labels, label, groups={"label": label})
