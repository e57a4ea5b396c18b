"""Which files a corpus is, by its name: JSON Lines, Parquet or Arrow files, WebDataset tar files."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from afn_model.audio.shards import index_places
from afn_model.data import tables, webdataset
from afn_model.data.foreign import Columns
from afn_model.files import read_json
from afn_model.storage import (
    StorageError,
    bare,
    check_allowed,
    expand,
    forget,
    is_folder,
    is_pattern,
    is_url,
    join,
    listing,
    parent,
    read_first,
)

_STATE = "state.json"  # what ``Dataset.save_to_disk`` writes beside its Arrow files
_SPLITS = "dataset_dict.json"


@dataclass(frozen=True)
class CorpusFiles:
    """The files of a corpus.

    Args:
        name: of the corpus, as it was given.
        kind: "lines", "tables" or "tars".
        folder: that recordings' paths start from.
        files: all of them, in the order of their records.
    """

    name: str
    kind: str
    folder: str
    files: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Whether it is a JSON Lines file on this machine, which is read where it lies."""
        return self.kind == "lines" and not is_url(self.name)

    @property
    def places(self) -> list[Path]:
        """Where its index may lie; beside a tar file is that file's own."""
        places = index_places(self.name if self.kind == "lines" else f"{self.name.rstrip('/')}.records")
        return [place for place in places if self.kind == "lines" or not is_pattern(str(place.parent))]

    def inside(self, path: str) -> str:
        """A path as records write it: relative to the corpus' folder where it lies there."""
        if is_url(self.folder):
            return path.removeprefix(f"{self.folder}/")
        if is_url(path):
            return path
        whole, folder = os.path.abspath(path), os.path.abspath(self.folder)
        return os.path.relpath(whole, folder) if os.path.commonpath([whole, folder]) == folder else whole

    def rows(self, columns: Columns) -> Iterator[tuple[str, dict | ValueError]]:
        """(place, record) of everything in tables or tar files; an error in place of a record that cannot be used."""
        return (tables if self.kind == "tables" else webdataset).rows(self.files, self.inside, columns)


def locate(corpus: str | Path) -> CorpusFiles:
    """The files that a corpus' name stands for.

    Args:
        corpus: a .jsonl file; a .parquet or .tar file, several of them by braces (``{000..127}``) or by ``*``; a folder
            of .parquet files, or one that ``datasets`` has saved. Each here or in storage.

    Raises:
        ValueError: nothing is called so, no access, a folder or a file of another kind.
    """
    name = os.fspath(corpus)
    if is_url(name):
        check_allowed(name)
        forget()
    kind = _kind(name)
    if kind in ("tables", "tars") and not os.path.isdir(name):
        files = tuple(expand(name)) if is_pattern(name) and not os.path.exists(name) else (name,)
        return CorpusFiles(name, kind, _common(files), files)
    if kind == "lines" or not _may_be_folder(name) or not is_folder(name):
        return CorpusFiles(name, "lines", parent(name), (name,))
    found = listing(name)
    arrow = _saved(name, found)
    files = arrow or tuple(file for file in found if file.lower().endswith(".parquet"))
    if not files:
        raise ValueError(
            f"{name}: is a folder; `afn data import {name} OUT.jsonl` reads Kaldi folders; no .parquet file is in it"
        )
    return CorpusFiles(name, "tables", _common(files), files)


def _kind(name: str) -> str | None:
    lower = bare(name).lower()
    kinds = {".parquet": "tables", ".arrow": "tables", ".tar": "tars", ".jsonl": "lines"}
    return next((kind for ending, kind in kinds.items() if lower.endswith(ending)), None)


def _may_be_folder(name: str) -> bool:
    """Storage is not asked where the name says that it is a file."""
    return not is_url(name) or "." not in posixpath.basename(bare(name).rstrip("/"))


def _common(files: tuple[str, ...]) -> str:
    """The folder that all of the files are in or below."""
    folder = parent(files[0])
    while not all(parent(file) == folder or file.startswith(join(folder, "")) for file in files):
        higher = parent(folder)
        if higher == folder:
            break
        folder = higher
    return folder


def _saved(folder: str, found: list[str]) -> tuple[str, ...]:
    """The Arrow files of a folder that ``datasets`` has saved; none where it is no such folder."""
    folder = folder.rstrip("/")
    if join(folder, _SPLITS) in found:
        names = sorted({parent(file).rpartition("/")[2] for file in found if file.endswith(f"/{_STATE}")})
        raise ValueError(f"{folder}: holds several splits; name one of them: {', '.join(names)}")
    file = join(folder, _STATE)
    if file not in found:
        return ()
    try:
        raw = _json(file)
        if raw.get("_indices_data_files"):
            raise ValueError("its rows are selected by indices; save it again after flatten_indices()")
        names = [entry["filename"] for entry in raw["_data_files"]]
    except StorageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not what datasets writes ({error})") from None
    return tuple(join(folder, name) for name in names)


def _json(file: str) -> dict:
    import json

    return json.loads(read_first(file, 1 << 24)) if is_url(file) else read_json(Path(file))
