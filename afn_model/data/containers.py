"""The files that hold recordings of a corpus, tar files and tables: what is known of each, to notice another one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from afn_model.audio import tables
from afn_model.audio.shards import is_member, open_archive, split_path
from afn_model.data.corpus_files import CorpusFiles
from afn_model.data.records import audios_of, parse_sample
from afn_model.files import fingerprint_of
from afn_model.storage import FileState, NoSuchFile, join, states

MARK = re.compile(rb"\.(?:tar|parquet|arrow)[?#]")  # of what may name a recording in one


@dataclass(frozen=True)
class ContainerState:
    """A tar file or a table as it was indexed."""

    size: int
    written: int | str
    fingerprint: str


def sources_of(record: dict) -> list[str]:
    """The recordings that a record names, as it writes them; none where it cannot be read and need not be."""
    try:
        return [audio.source for audio in audios_of(parse_sample(record, ""))]
    except ValueError:
        return []


def containers_of(record: dict) -> set[str]:
    """The tar files and tables in which a record's recordings are, as it writes them."""
    sources = sources_of(record)
    cells = {tables.split_cell(source)[0] for source in sources if tables.is_cell(source)}
    return cells | {split_path(source)[0] for source in sources if is_member(source)}


def container_states(found: CorpusFiles, named: set[str]) -> dict[str, ContainerState]:
    """What is known of each that is there."""
    files = {name: join(found.folder, name) for name in sorted(named)}
    now, known = states(files.values()), {}
    for name, file in files.items():
        state = now[file]
        if isinstance(state, FileState):
            known[name] = container_state(file, state)
        elif not isinstance(state, NoSuchFile):
            raise state
    return known


def container_state(file: str, now: FileState) -> ContainerState:
    """What is known of one, whose fingerprint is read again where its index is of another state."""
    opened = tables.open_table(file) if tables.is_cell(f"{file}#") else open_archive(file)
    return ContainerState(now.size, now.written, opened.fingerprint)


def digest_of(tars: Mapping[str, ContainerState]) -> str:
    """SHA-256 over all of them; "" where there are none."""
    return fingerprint_of(f"{tar}\0{state.fingerprint}\n" for tar, state in sorted(tars.items())) if tars else ""
