"""Corpora of other tools, made into JSON Lines of records: JSON arrays, NeMo manifests, tables and Kaldi folders."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afn_model.data.records import check, parse
from afn_model.files import atomic_path
from afn_model.storage import is_url

TRANSCRIBE = "Transcribe the input speech."
AUDIO = ("audio_filepath", "audio", "audio_path", "audio_file", "file_name", "filename", "path", "file", "wav", "sound")
TRANSCRIPT = ("text", "transcript", "transcription", "sentence")
ANSWER = ("answer", "response", "caption")
QUESTION = ("question", "prompt")
_NAMED = 100  # problems that are named
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
RECORDS = ("messages", "conversations")


@dataclass(frozen=True)
class Columns:
    """Which columns, or keys, hold what; None finds them by their usual names.

    Args:
        audio, text, question: names of columns.
        instruction: what every recording is asked where there is no question column; for transcripts
            "Transcribe the input speech." if None.
    """

    audio: str | None = None
    text: str | None = None
    question: str | None = None
    instruction: str | None = None


def convert(source: str | Path, out: str | Path, columns: Columns | None = None) -> int:
    """Writes a corpus of records from what another tool reads; returns the number of records.

    Args:
        source: a JSON array (of records, or of objects with the columns of a table); a NeMo manifest or other JSON
            Lines; a table (.csv, .tsv) with a header; or a Kaldi folder (wav.scp, text, perhaps segments).
        out: the JSON Lines file, which must not be there. Recordings under its folder get relative paths.
        columns: where the usual names are not the right ones.

    Raises:
        ValueError: a line for every row that cannot be used, with its place; nothing is written then.
    """
    if is_url(source):
        raise ValueError(f"{source}: only what lies here is imported; `afn data index` reads corpora in storage")
    source, out = Path(source), Path(out)
    if not source.exists():
        raise ValueError(f"{source}: no such file")
    if source.suffix.lower() in (".parquet", ".arrow", ".tar"):
        raise ValueError(f"{source}: needs no import: `afn data index {source}` reads it as it is")
    if out.exists():
        raise ValueError(f"{out}: is there already")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent}: no such folder")
    count, wrong = 0, []
    with atomic_path(out) as temporary:
        with temporary.open("w", encoding="ascii") as file:
            for where, row in _rows(source):
                try:
                    if isinstance(row, ValueError):
                        raise row
                    record = record_of(row, columns or Columns(), _Paths(source, out))
                    check(record)
                    file.write(json.dumps(record) + "\n")
                except ValueError as error:
                    wrong.append(f"{source}, {where}: {error}")
                count += 1
        if wrong:
            more = [f"and {len(wrong) - _NAMED:,} more of {count:,}"] if len(wrong) > _NAMED else []
            raise ValueError("\n".join(wrong[:_NAMED] + more))
        if not count:
            raise ValueError(f"{source}: nothing in it")
    return count


class _Paths:
    """Paths as the new corpus writes them."""

    def __init__(self, source: Path, out: Path):
        self.folder, self.out = (
            os.path.abspath(source if source.is_dir() else source.parent),
            os.path.abspath(out.parent),
        )

    def __call__(self, path: str) -> str:
        """Relative to the source's folder; or, if it is only there, to the working folder, as Kaldi has it."""
        whole = os.path.join(self.folder, path)
        file = whole.partition(".tar#")[0] + (".tar" if ".tar#" in whole else "")
        if not os.path.exists(file) and os.path.exists(os.path.abspath(path)):
            whole = os.path.abspath(path)
        whole = os.path.normpath(whole)
        inside = os.path.commonpath([whole, self.out]) == self.out
        return os.path.relpath(whole, self.out) if inside else whole


def _rows(source: Path) -> Iterator[tuple[str, dict | ValueError]]:
    """(place, row) of everything in a source; an error in place of a row that cannot be read."""
    if source.is_dir():
        return _kaldi(source)
    if source.suffix.lower() in (".csv", ".tsv"):
        return _table(source)
    with source.open("rb") as file:
        array = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return _array(source) if array else _lines(source)


def _array(source: Path) -> Iterator[tuple[str, dict | ValueError]]:
    try:
        rows = json.loads(source.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON: {error}") from None
    for number, row in enumerate(rows):
        wrong = ValueError(f"a record is an object, not {type(row).__name__}")
        yield f"item {number}", row if isinstance(row, dict) else wrong


def _lines(source: Path) -> Iterator[tuple[str, dict | ValueError]]:
    with source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = parse(line)
                except ValueError as error:
                    row = error
                yield f"line {number}", row


def _table(source: Path) -> Iterator[tuple[str, dict | ValueError]]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(",;\t|", key=header.count)
            file.seek(0)
            plain = delimiter == "\t" and len({len(line.split("\t")) for line in file if line.strip()}) == 1
            file.seek(0)
            # Between tabs many write quotation marks as they are: what one begins must not take the next rows.
            quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
            rows = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
            names = [_unquoted(name.strip()) for name in next(rows, [])]
            if len(set(names)) < len(names):
                raise ValueError(f"{source}: two columns of its header have one name: {', '.join(names)}")
            for row in rows:
                if not row:
                    continue
                if plain:
                    row = [_unquoted(value) for value in row]
                wrong = ValueError(f"{len(row)} columns, but the header has {len(names)}")
                yield f"line {rows.line_num}", dict(zip(names, row, strict=True)) if len(row) == len(names) else wrong
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: {error}") from None
    except csv.Error as error:
        raise ValueError(f"{source}, line {rows.line_num}: {error}; is a quotation mark not closed?") from None


def _unquoted(value: str) -> str:
    """The text of a value that is wholly in quotation marks, those in it doubled; any other value as it is."""
    return value[1:-1].replace('""', '"') if _QUOTED.fullmatch(value) else value


def _kaldi(folder: Path) -> Iterator[tuple[str, dict | ValueError]]:
    for name in ("wav.scp", "text"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name} in it, so no Kaldi folder")
    recordings, texts = _kaldi_file(folder / "wav.scp"), _kaldi_file(folder / "text")
    segments = folder / "segments"
    parts = _kaldi_file(segments) if segments.is_file() else {key: key for key in recordings}
    for key in [*parts, *(key for key in texts if key not in parts)]:
        try:
            yield f"utterance {key}", _utterance(key, recordings, texts, parts)
        except ValueError as error:
            yield f"utterance {key}", error


def _kaldi_file(path: Path) -> dict[str, str]:
    """Key → the rest of its line."""
    try:
        rows = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    found = {row[0]: row[1].strip() if len(row) > 1 else "" for row in rows}
    if len(found) < len(rows):
        raise ValueError(f"{path}: {len(rows) - len(found)} keys come twice")
    return found


def _utterance(key: str, recordings: dict[str, str], texts: dict[str, str], parts: dict[str, str]) -> dict:
    if key not in parts:
        raise ValueError("is in text and has no recording")
    if not texts.get(key):
        raise ValueError("has no text")
    recording, *times = parts[key].split()
    if recording not in recordings:
        raise ValueError(f"recording {recording} is not in wav.scp")
    path = recordings[recording]
    if path.endswith("|"):
        raise ValueError(f"wav.scp has a command, which is not run: {path:.80}; write its output to a file")
    if re.search(r"\.ark(:\d+)?$", path):
        raise ValueError(f"wav.scp has a place in an archive, which is not read: {path:.80}")
    row: dict[str, Any] = {"id": key, "audio": path, "text": texts[key]}
    if times:
        start, end = (_seconds(time, "segments") for time in [*times, "", ""][:2])
        row |= {"offset": start} | ({"duration": end - start} if end >= 0 else {})
    return row


def _seconds(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what}: {value!r:.40} is no number of seconds") from None


def record_of(row: dict, columns: Columns, paths: Callable[[str], str]) -> dict:
    """The record of a row: of its recording, or list of them, its question and its answer.

    Raises:
        ValueError: what is missing, or may be meant in two ways.
    """
    if any(key in row for key in RECORDS):
        return relocated(row, paths)
    audio = _one(row, columns.audio, AUDIO, "recording", "--audio")
    transcript = columns.text is None and not any(row.get(name) not in (None, "") for name in ANSWER)
    text = _one(row, columns.text, TRANSCRIPT if transcript else (*TRANSCRIPT, *ANSWER), "answer", "--text")
    asked = [name for name in QUESTION if row.get(name)] if columns.question is None else [columns.question]
    question = columns.instruction or (TRANSCRIBE if transcript else "")
    if asked:
        question = row.get(asked[0])
    if not isinstance(question, str) or not question.strip():
        raise ValueError("nothing is asked: no question column; --instruction is what all recordings are asked")
    heard = row[audio] if isinstance(row[audio], list) else [row[audio]]
    if not heard or not all(isinstance(path, str) for path in heard) or not isinstance(row[text], str):
        raise ValueError(f"{audio} and {text} must be text, got {row[audio]!r:.60} and {row[text]!r:.60}")
    asked_of = "<sound>\n" * len(heard) + question.strip()
    said = [{"role": "user", "content": asked_of}, {"role": "assistant", "content": row[text]}]
    recordings: list[dict[str, Any]] = [{"path": paths(path)} for path in heard]
    recording = recordings[0]
    record = {"id": str(row["id"])} if row.get("id") not in (None, "") else {}
    record |= {"audios": recordings, "messages": said}
    length = None if row.get("duration") in (None, "") else _seconds(row["duration"], "duration")
    if row.get("offset") not in (None, ""):
        recording["start"] = _seconds(row["offset"], "offset")
        if length is not None:
            recording["end"] = round(recording["start"] + length, 6)
    elif length is not None:
        record["duration"] = length
    return record


def _one(row: dict, given: str | None, names: tuple[str, ...], what: str, option: str) -> str:
    """The column of a row that holds something."""
    if given is not None:
        if row.get(given) in (None, ""):
            raise ValueError(f"nothing under {given!r}; there are {', '.join(map(str, row))}")
        return given
    found = [name for name in names if row.get(name) not in (None, "")]
    if not found and (empty := [name for name in names if name in row]):
        raise ValueError(f"nothing under {', '.join(empty)}")
    if not found:
        raise ValueError(f"no column for the {what} among {', '.join(map(str, row))}; {option} names it")
    if len(found) > 1:
        raise ValueError(f"{' or '.join(found)} may be the {what}; {option} names it")
    return found[0]


def relocated(record: dict, paths) -> dict:
    """A record whose recordings' paths are changed by a function."""

    def moved(audio: Any) -> Any:
        if isinstance(audio, str):
            return paths(audio)
        if isinstance(audio, list):
            return [moved(one) for one in audio]
        if isinstance(audio, dict):
            return {
                k: paths(v) if k in ("audio", "path", "url") and isinstance(v, str) else v for k, v in audio.items()
            }
        return audio

    record = record | {key: moved(record[key]) for key in ("audios", "audio", "sounds", "sound") if record.get(key)}
    for key in RECORDS:
        if isinstance(record.get(key), list):
            record[key] = [_moved_message(message, moved) for message in record[key]]
    return record


def _moved_message(message: Any, moved) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = [
        moved(part) if isinstance(part, dict) and part.get("type") == "audio" else part for part in message["content"]
    ]
    return message | {"content": parts}
