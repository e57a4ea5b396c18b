"""A corpus copied with its recordings: JSON Lines here, and tar files of the recordings beside it.

Training asks for records in random order. Of a table a whole row group is read for each, and of what lies in storage
each answer is waited for: to read all of it once, in order, and train on the copy may be faster by far.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
from collections.abc import Callable
from pathlib import Path

from afn_model.audio.recording import read_whole
from afn_model.audio.shards import ShardWriter, is_member, split_path
from afn_model.audio.tables import is_cell
from afn_model.data.foreign import relocated
from afn_model.data.index import Corpus
from afn_model.files import atomic_path
from afn_model.storage import join

SHARD = 1 << 30  # bytes of a tar file
_KNOWN = 100_000  # recordings that are remembered, should another record name them


def copy(
    source: str | Path, out: str | Path, *, max_bytes: int = SHARD, progress: Callable[[int], None] | None = None
) -> int:
    """Copies an indexed corpus; returns the number of records.

    Args:
        source: whatever ``Corpus`` reads.
        out: the .jsonl file, which must not be there, nor a folder of its name: there the tar files go.
        max_bytes: of a tar file.
        progress: called with 1 after every record.

    Raises:
        ValueError: no index, something in the way, or a recording that cannot be read; nothing is left then.
    """
    out = Path(out)
    folder = out.with_suffix("")
    for taken in (out, folder):
        if taken.exists():
            raise ValueError(f"{taken}: is there already")
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: a name that ends in .jsonl is expected")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent}: no such folder")
    corpus = Corpus(source)
    try:
        with (
            atomic_path(out) as temporary,
            temporary.open("w", encoding="ascii") as file,
            ShardWriter(folder, "part", max_bytes, relative_to=out.parent) as shards,
        ):
            known: dict[str, str] = {}

            def moved(path: str) -> str:
                if path not in known:
                    if len(known) >= _KNOWN:
                        known.clear()
                    known[path] = shards.add(f"{number:09d}-{len(known)}{_suffix(path)}", read_whole(join(here, path)))
                return known[path]

            here = corpus.folder
            for number in range(len(corpus)):
                try:
                    record = relocated(corpus[number], moved)
                except ValueError as error:
                    raise ValueError(f"{corpus.path}[{number}]: {error}") from None
                if corpus.seconds(number) and "duration" not in record:
                    record["duration"] = round(corpus.seconds(number), 4)
                file.write(json.dumps(record) + "\n")
                if progress:
                    progress(1)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return len(corpus)


def _suffix(path: str) -> str:
    """The ending of a recording's name, which says to people what it is; a cell has none."""
    if is_cell(path):
        return ""
    name = split_path(path)[1] if is_member(path) else path
    return os.path.splitext(posixpath.basename(name))[1]
