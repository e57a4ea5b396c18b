"""Speech recognition: transcripts in the files of their authors, or in the tables of the Open ASR leaderboard.

Where an item's ``extra`` has ``UNSCORED``, official scoring leaves it out; it is asked and shown all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from afn_model.checks import shown
from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import UNSCORED, Files, field, read_parquet, read_table

TABLES = "leaderboard"  # the name in the table of the Open ASR leaderboard's Parquet files
IGNORED = "ignore_time_segment_in_scoring"
_CHUNK = 1 << 22


def or_leaderboard(read: Callable[..., Iterator[Item]]) -> Callable[..., Iterator[Item]]:
    """A loader of the files named "transcripts"; where there are none, of the leaderboard's tables, if the benchmark
    has any of its version."""

    @wraps(read)
    def load(files: Files, **options: Any) -> Iterator[Item]:
        name, paths = files.first(*(one for one in ("transcripts", TABLES) if one in files.names))
        return _open_asr(paths) if name == TABLES else read(paths, **options)

    return load


def open_asr(files: Files) -> Iterator[Item]:
    """The Open ASR leaderboard's Parquet files (hf-audio/open-asr-leaderboard): audio with its bytes, text, id."""
    yield from _open_asr(files.all(TABLES))


@or_leaderboard
def librispeech(paths: list[Path]) -> Iterator[Item]:
    """``<utterance> TEXT`` in upper case, in ``<speaker>-<chapter>.trans.txt`` beside ``<utterance>.flac``."""
    for path in paths:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            utterance, space, text = line.strip().partition(" ")
            if not utterance:
                continue
            if not space:
                raise ValueError(f"{path}, line {number}: an utterance and its text are expected, got {shown(line)}")
            yield _item(utterance, path.parent / f"{utterance}.flac", text)


@or_leaderboard
def spgispeech(paths: list[Path]) -> Iterator[Item]:
    """Columns wav_filename, wav_filesize, transcript, between ``|`` and without quotes; transcripts have case and
    punctuation."""
    for number, row in enumerate(read_table(paths[0], sep="|", quoted=False), 2):
        where = f"{paths[0]}, line {number}"
        file = field(row, "wav_filename", where)
        yield _item(file, _beside(paths[0], file, ("test", "spgispeech/test")), field(row, "transcript", where))


@or_leaderboard
def tedlium(paths: list[Path]) -> Iterator[Item]:
    """Lines ``file channel speaker start end <labels> text`` of a ``.stm`` for each talk, seconds in ``.sph``. What is
    marked ``ignore_time_segment_in_scoring`` stays an item that is not scored; ``;;`` begins a comment."""
    for path in paths:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if not line.strip() or line.startswith(";;"):
                continue
            try:
                talk, channel, _, start, end, *words = line.split()
                begins, ends = float(start), float(end)
            except ValueError:
                raise ValueError(f"{path}, line {number}: no segment of an .stm: {shown(line)}") from None
            if words and words[0].startswith("<") and words[0].endswith(">") and words[0] != "<unk>":
                del words[0]
            sound = _beside(path, f"{talk}.sph", ("../sph", "."))
            extra = {UNSCORED: IGNORED} if IGNORED in words else {}
            yield _item(f"{talk}-{channel}-{start}-{end}", sound, " ".join(words), begins, ends, extra=extra)


@or_leaderboard
def gigaspeech(paths: list[Path], *, subset: str = "{TEST}") -> Iterator[Item]:
    """``audios[].segments[]`` with sid, begin_time, end_time, text_tn, subsets in GigaSpeech.json; segments of music
    and noise have a tag for a text, which normalisers leave nothing of.

    Args:
        paths: of GigaSpeech.json.
        subset: as segments name it, in braces.
    """
    for audio in _audios(paths[0]):
        where = f"{paths[0]}, audio {audio.get('aid')}"
        sound = paths[0].parent / field(audio, "path", where)
        groups = {"source": audio["source"]} if isinstance(audio.get("source"), str) else {}
        for segment in field(audio, "segments", where, list):
            if subset not in field(segment, "subsets", where, list):
                continue
            begins, ends = (float(field(segment, key, where, (int, float))) for key in ("begin_time", "end_time"))
            sid, text = field(segment, "sid", where), field(segment, "text_tn", where)
            yield _item(sid, sound, text, begins, ends, groups=groups)


@or_leaderboard
def common_voice(paths: list[Path]) -> Iterator[Item]:
    """test.tsv with path and sentence, without quotes, beside ``clips/``."""
    for number, row in enumerate(read_table(paths[0], sep="\t", quoted=False), 2):
        where = f"{paths[0]}, line {number}"
        file = field(row, "path", where)
        yield _item(file, _beside(paths[0], file, ("clips",)), field(row, "sentence", where))


@or_leaderboard
def voxpopuli(paths: list[Path]) -> Iterator[Item]:
    """asr_test.tsv with id, raw_text, normalized_text: the last one is the reference, some are wrong, and recordings
    lie in folders of parts or years."""
    folder = paths[0].parent
    sounds = {path.stem: path for kind in ("*/*.ogg", "test/*.wav", "test/*/*.wav") for path in folder.glob(kind)}
    for number, row in enumerate(read_table(paths[0], sep="\t", quoted=False), 2):
        where = f"{paths[0]}, line {number}"
        key = field(row, "id", where)
        yield _item(key, sounds.get(key, folder / "test" / f"{key}.wav"), field(row, "normalized_text", where))


def _open_asr(paths: Iterable[Path]) -> Iterator[Item]:
    for path in paths:
        for number, row in enumerate(read_parquet(path, audio=("audio",)), 1):
            where = f"{path}, row {number}"
            text = field(row, "text", where)
            extra = {UNSCORED: IGNORED} if text.strip() == IGNORED else {}
            yield _item(field(row, "id", where), row["audio"], text, extra=extra)


def _item(
    key: str, sound: Path | str, text: str, start: float | None = None, end: float | None = None, **rest: Any
) -> Item:
    return Item(key, clips=(ItemClip(str(sound), start, end),), references=(text.strip(),), **rest)


def _beside(path: Path, name: str, folders: Iterable[str]) -> Path:
    """A recording in one of some folders beside a file; in the first of them where it is in none."""
    tried = [(path.parent / folder / name).resolve() for folder in folders]
    return next((one for one in tried if one.is_file()), tried[0])


def _audios(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of "audios" one at a time: the whole file has gigabytes."""
    decoder, text, at = json.JSONDecoder(), "", 0
    with path.open(encoding="utf-8-sig") as file:

        def more() -> str:
            read = file.read(_CHUNK)
            if not read:
                raise ValueError(f'{path}: no JSON with a whole list "audios"')
            return read

        while '"audios"' not in text or (at := text.find("[", text.find('"audios"')) + 1) == 0:
            text += more()
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text[at : at + 1] == "]":
                return
            try:
                entry, at = decoder.raw_decode(text, at)
            except ValueError:
                text, at = text[at:] + more(), 0
                continue
            if not isinstance(entry, dict):
                raise ValueError(f'{path}: an object is expected in "audios", got {shown(entry)}')
            yield entry
