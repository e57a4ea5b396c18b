"""Files of a benchmark: finding them, reading their rows, and what all loaders must cope with."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from afn_model.audio.tables import cell_path
from afn_model.checks import shown

LETTERS = string.ascii_uppercase
UNSCORED = "unscored"  # in an item's extra: why official scoring leaves it out
_LETTERED = re.compile(r"(?:^|(?<=\s))\(?([A-Z])[.):](?=\s)\s*")  # "A. ", "B) ", "(C) "
_ASKED = re.compile(r"^\s*question:\s*|\s*(?:options|choices):\s*$", re.IGNORECASE)


class Files:
    """The files of one benchmark.

    Args:
        folder: of the benchmark.
        names: name -> path or pattern in the folder; a list of them is tried in turn.
    """

    def __init__(self, folder: Path, names: Mapping[str, str | Sequence[str]]):
        self.folder, self.names = folder, names

    def all(self, name: str) -> list[Path]:
        """Files of a name, sorted.

        Raises:
            ValueError: there is none.
        """
        patterns = self._patterns(name)
        for pattern in patterns:
            if found := sorted(path for path in self.folder.glob(pattern) if path.is_file()):
                return found
        raise ValueError(f"{self.folder}: no {plain_names(patterns)} in it")

    def _patterns(self, name: str) -> list[str]:
        given = self.names[name]
        return [given] if isinstance(given, str) else list(given)

    def first(self, *names: str) -> tuple[str, list[Path]]:
        """The first of several names that has files, and these.

        Raises:
            ValueError: none has.
        """
        for name in names:
            with suppress(ValueError):
                return name, self.all(name)
        patterns = [pattern for name in names for pattern in self._patterns(name)]
        raise ValueError(f"{self.folder}: no {plain_names(patterns)} in it")

    def one(self, name: str) -> Path:
        """The file of a name; of several the first."""
        return self.all(name)[0]

    def audio(self, path: str, *folders: str) -> str:
        """Where a recording is: a path of a benchmark's file looked for in the benchmark's folder, in ``folders`` of it
        and, by its last part, in these; then as the end of the path of one file anywhere below, as archives and hubs
        have folders of their own. A recording that is nowhere keeps the first path, which errors will name."""
        plain = path.replace("\\", "/").removeprefix("./").lstrip("/")
        tried = [self.folder / plain, *(self.folder / folder / plain for folder in folders)]
        tried += [self.folder / folder / Path(plain).name for folder in ("", *folders)]
        if found := next((one for one in tried if one.is_file()), None):
            return str(found)
        ends = [plain, *(f"{folder}/{Path(plain).name}" for folder in folders if not os.path.isabs(folder))]
        return str(next(filter(None, map(self._deeper, ends)), tried[0]))

    def _deeper(self, plain: str) -> Path | None:
        """The only file below the folder whose path ends like this."""
        end = Path(plain).parts
        found = [path for path in self._named.get(end[-1] if end else "", ()) if path.parts[-len(end) :] == end]
        return found[0] if len(found) == 1 else None

    @cached_property
    def _named(self) -> dict[str, list[Path]]:
        """All files below the folder by name."""
        found: dict[str, list[Path]] = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                found.setdefault(name, []).append(Path(folder, name))
        return found


def plain_names(patterns: Sequence[str]) -> str:
    """Patterns of a file as people read them, each name once: "test.json or questions/*.parquet"."""
    return " or ".join(dict.fromkeys(pattern.removeprefix("**/").removeprefix("*/") for pattern in patterns))


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines file."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: an object is expected, got {shown(row)}")
            yield row


def read_rows(path: Path, audio: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, of a JSON list or of JSON Lines, whichever the file is: hubs turn one into the other.

    Args:
        path: of the file.
        audio: columns of a Parquet file that hold recordings; they become names of cells.
    """
    if path.suffix == ".parquet":
        yield from read_parquet(path, audio)
        return
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):
        yield from read_lines(path)
        return
    for number, row in enumerate(read_json(path), 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: an object is expected, got {shown(row)}")
        yield row


def read_table(path: Path, *, sep: str = ",", quoted: bool = True, escape: str | None = None) -> Iterator[dict]:
    """Rows of a table of text by the names of its first line.

    Args:
        path: of the file, UTF-8.
        sep: between fields.
        quoted: fields may stand in double quotes; some sets are written without any (``csv.QUOTE_NONE``).
        escape: character before a separator that is none.
    """
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8-sig", newline="") as file:
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        rows = csv.DictReader(file, delimiter=sep, quoting=quoting, escapechar=escape, strict=quoted)
        try:
            for number, row in enumerate(rows, 2):
                if None in row or None in row.values():
                    raise ValueError(f"{path}, line {number}: {len(rows.fieldnames or [])} fields are expected")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None


def read_parquet(path: Path, audio: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file. Columns of recordings are not read: they become names of cells, which are read when the
    recording is needed.

    Args:
        path: of the file.
        audio: columns that hold recordings, ``{"bytes", "path"}`` or lists of these.

    Raises:
        ValueError: pyarrow is not installed, no Parquet file, or a column that is not there.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet files need pyarrow: pip install 'afn-kernels[eval]'") from None
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:
        raise ValueError(f"{path}: no Parquet file ({error})") from None
    names = file.schema_arrow.names
    if missing := [name for name in audio if name not in names]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; there are {', '.join(names)}")
    read = [name for name in names if name not in audio]
    for group in range(file.num_row_groups):
        for number, row in enumerate(file.read_row_group(group, columns=read).to_pylist()):
            yield row | {name: cell_path(str(path), group, number, name) for name in audio}


def field(row: Mapping[str, Any], name: str, where: Any, kind: type | tuple[type, ...] = str) -> Any:
    """A field that a benchmark's file must have.

    Raises:
        ValueError: it is not there, or of another type: the columns have changed.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: an object is expected, got {shown(row)}")
    if name not in row:
        raise ValueError(f"{where}: no field {name!r}; there are {', '.join(map(str, row))}")
    if not isinstance(row[name], kind):
        raise ValueError(f"{where}: field {name!r} is not what the benchmark publishes: {shown(row[name])}")
    return row[name]


def listed(value: Any) -> list[Any]:
    """A list, also one that is written as text in JSON's or Python's form; [] for nothing."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(value)
            except (ValueError, SyntaxError):
                continue
            if isinstance(found, (list, tuple)):
                return list(found)
        return [value]
    return list(value)


def choices_of(value: Any) -> tuple[str, ...]:
    """Options: None and empty ones left out, numbers as text."""
    return tuple(str(one).strip() for one in listed(value) if one is not None and str(one).strip())


def answer_of(value: Any, choices: Sequence[str]) -> str | None:
    """The right choice's text, which files give as text, as a letter ("B", "(B)", "B.") or as an index. A text that is
    no choice stays as it is: the doctor tells of it."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return choices[value] if 0 <= value < len(choices) else str(value)
    text = str(value).strip()
    if not choices or text in choices:
        return text
    letter = text.strip("().:").strip()
    if len(letter) == 1 and letter.upper() in LETTERS[: len(choices)]:
        return choices[LETTERS.index(letter.upper())]
    return text


def answer_at(letter: Any, choices: Sequence[str]) -> str | None:
    """The choice that a letter stands for, in files whose answers are letters alone: a choice may be a letter itself. A
    text that is none of their letters stays as it is."""
    text = str(letter or "").strip().strip("().:").strip()
    if len(text) == 1 and text.upper() in LETTERS[: len(choices)]:
        return choices[LETTERS.index(text.upper())]
    return text or None


def lettered(text: str) -> tuple[str, tuple[str, ...]]:
    """The question and the options of a text that has both: "Who? A. one B. two", also on lines of their own, as "(A)"
    or "A)". Of several places where options may begin the one with the most letters in order counts. A text in which
    there are none has the letters A to D as options."""
    marks = list(_LETTERED.finditer(text))
    best: list[re.Match[str]] = []
    for first, mark in enumerate(marks):
        if mark[1] != "A":
            continue
        run = [mark]
        for other in marks[first + 1 :]:
            if other[1] == LETTERS[len(run)]:
                run.append(other)
        if len(run) >= max(2, len(best)):
            best = run
    if not best:
        return text.strip(), tuple(LETTERS[:4])
    ends = [mark.start() for mark in best[1:]] + [len(text)]
    options = tuple(text[mark.end() : end].strip() for mark, end in zip(best, ends, strict=True))
    return _ASKED.sub("", text[: best[0].start()].strip()), options
