"""Candidates: recordings of a folder, of a list or of a searcher, and what is told of them; and which are wanted."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from afn_model.checks import named, said, shown
from afn_model.curate.stage import Context, Dropped, Kept, Outcome, Row, Source, Stage
from afn_model.storage import is_url

_AUDIO = "wav flac mp3 ogg oga opus m4a aac wma aiff aif au caf amr ac3 wv w64 sph spx"
_VIDEO = "mp4 m4v mkv webm mov avi flv ts 3gp"
SUFFIXES = frozenset(f".{name}" for name in f"{_AUDIO} {_VIDEO}".split())
# Names under which side files, lists and searchers say things, the first that is there counts.
NAMES = {
    "url": ("url", "path", "file", "audio_filepath", "audio_path", "filename", "webpage_url"),
    "title": ("title", "name"),
    "channel": ("channel", "uploader", "artist", "creator", "author"),
    "licence": ("licence", "license", "rights"),
}
ABOUT = {
    "youtube_id": ("youtube_id", "ytid"),
    "page": ("webpage_url", "page"),
    "description": ("description",),
    "language": ("language", "lang"),
    "domain": ("domain", "genre", "category"),
    "tags": ("tags", "categories"),
    "comments": ("comments",),
    "rights_holder": ("rights_holder", "copyright"),
    "consent": ("consent",),
    "minors": ("minors", "made_for_kids"),
    "voice_cloning": ("voice_cloning",),
}
_YOUTUBE = re.compile(r"(?:youtube\.com/(?:watch\?(?:.*&)?v=|shorts/|embed/|live/)|youtu\.be/)([\w-]{11})(?![\w-])")


@dataclass(frozen=True)
class Discover(Source):
    """Finds recordings. Of an address that comes several times there is one row, with their number in ``about.listed``.

    An address is a url, or a path relative to the folder: never an absolute path, which would make ids depend on a
    machine.

    Relative paths of parameters start from the folder of the plan.

    Args:
        folder: of recordings; what is told of ``talk.flac`` stands in ``talk.json`` or ``talk.info.json``, as yt-dlp
            writes it.
        manifest: JSON Lines, CSV or TSV with a column url or path, in the folder or anywhere.
        searcher: ``module:function``, called with the seeds; it gives mappings such as lines of a manifest.
        seeds: what a search starts from.

    Raises:
        ValueError: none or several of folder, manifest and searcher are given (a manifest may have a folder); from
            ``find``, a line that is no row, with its number.
    """

    name: ClassVar[str] = "discover"
    writes: ClassVar[tuple[str, ...]] = ("url", "title", "channel", "licence", "about")

    folder: str = ""
    manifest: str = ""
    searcher: str = ""
    seeds: tuple[Any, ...] = ()

    def __post_init__(self):
        if bool(self.manifest or self.folder) + bool(self.searcher) != 1:
            raise ValueError("one of folder, manifest and searcher says where recordings are found")

    def find(self, context: Context) -> list[Row]:
        found: dict[str, dict[str, Any]] = {}
        home = context.folder / (self.folder or Path(self.manifest).parent)
        for where, told in self._candidates(context.folder):
            row = self._row(told, where, home)
            first = found.setdefault(row["url"], row)
            if first is not row:
                first["about"]["listed"] += 1
                for name in ("title", "channel", "licence"):
                    first[name] = first[name] or row[name]
                first["about"] = {**row["about"], **first["about"]}
        return list(found.values())

    def _candidates(self, base: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self.searcher:
            for number, told in enumerate(named(self.searcher, "searcher")(list(self.seeds)), 1):
                yield f"{self.searcher}: result {number}", told
        elif self.manifest:
            for number, told in _lines(base / self.manifest):
                yield f"{self.manifest}: line {number}", told
        else:
            folder = base / self.folder
            if not folder.is_dir():
                raise ValueError(f"{folder}: no such folder of recordings")
            for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
                if path.is_file() and not path.name.startswith("."):
                    yield str(path), {**_side(path), "url": path.relative_to(folder).as_posix()}

    def _row(self, told: Any, where: str, home: Path) -> dict[str, Any]:
        if not isinstance(told, Mapping):
            raise ValueError(f"{where}: a mapping with url or path is expected, got {shown(told)}")
        text = {name: str(_first(told, names) or "").strip() for name, names in NAMES.items()}
        text["url"] = _address(text["url"], where, home)
        about = {name: value for name, names in ABOUT.items() if (value := _first(told, names)) is not None}
        about["comments"] = _comments(about.get("comments"))
        if str(told.get("extractor") or "").lower().startswith("youtube"):
            about.setdefault("youtube_id", told.get("id"))
        if youtube := _YOUTUBE.search(f"{text['url']} {about.get('page', '')}"):
            about["youtube_id"] = youtube[1]
        return {**text, "about": {name: value for name, value in about.items() if value != []} | {"listed": 1}}


@dataclass(frozen=True)
class Wanted(Stage):
    """Yes or no, by what is told of a recording, before anything of it is fetched.

    Args:
        accepts: ``module:function`` of a row: true, or false, or a text that says why not.
    """

    name: ClassVar[str] = "wanted"
    reads: ClassVar[tuple[str, ...]] = ("url", "title", "channel", "licence", "about")
    drops: ClassVar[bool] = True

    accepts: str = ""

    def __post_init__(self):
        named(self.accepts, "accepts")

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        accepts, found = named(self.accepts, "accepts"), list[Outcome]()
        for row in rows:
            answer = accepts(row)
            why = answer if isinstance(answer, str) else ""
            found.append(Kept({}) if answer and not why else Dropped("not wanted", why))
        return found


def _address(url: str, where: str, home: Path) -> str:
    """A url as it is, or a path relative to the folder of recordings."""
    if is_url(url) and not url.startswith("file:"):
        return url
    plain = url.removeprefix("file://")
    path = Path(os.path.normpath(plain))
    if path.is_absolute() and path.is_relative_to(home.resolve()):
        path = path.relative_to(home.resolve())
    if not plain or path.is_absolute() or path.parts[:1] == ("..",):
        raise ValueError(f"{where}: {shown(url)} is neither a url nor a path inside of the folder of recordings")
    return path.as_posix()


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, mapping) of the lines of a list."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix in (".csv", ".tsv"):
                table = csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t")
                for row in table:
                    yield table.line_num, {key: value for key, value in row.items() if key and value}
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        raise ValueError(f"{path}: line {number}: no JSON ({said(error)})") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({said(error)})") from None


def _side(path: Path) -> dict[str, Any]:
    """What the side file of a recording says; nothing where there is none, or it is damaged."""
    for suffix in (".info.json", ".json"):
        for side in (path.with_suffix(suffix), path.with_name(path.name + suffix)):
            try:
                found = json.loads(side.read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
    return {}


def _first(told: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((told[name] for name in names if told.get(name) not in (None, "", [], {})), None)


def _comments(given: Any) -> list[str]:
    """Texts of comments, which yt-dlp gives as objects."""
    given = given if isinstance(given, list) else [given] if isinstance(given, str) else []
    texts = [one.get("text") if isinstance(one, dict) else one for one in given]
    return [text for text in texts if isinstance(text, str) and text]
