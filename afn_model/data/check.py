"""Recordings that a corpus names and that are not there, found before a run needs them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from afn_model.audio.shards import is_member, open_archive, split_path
from afn_model.audio.tables import find_cell, is_cell
from afn_model.data.index import Corpus
from afn_model.data.order import permute
from afn_model.data.records import audios_of, parse_sample
from afn_model.hashing import key
from afn_model.storage import StorageError, check_allowed, is_url, join, shown, states

MOST = 1_000_000
WEB = ("http://", "https://")
_ASKED = 100  # web addresses that are asked for, of each block
_BLOCK = 1 << 16  # records whose tar members are looked up together, tar by tar


def missing_recordings(
    corpora: Mapping[str, Corpus | str | Path],
    *,
    most: int = MOST,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """All recordings that are not there, without opening those that are: some 30 µs a record.

    Args:
        corpora: name → indexed corpus.
        most: records to look at of each; of larger ones so many are drawn evenly.
        progress: called with the number of records that were looked at.

    Returns:
        "talks[4]: clips/004.wav: no such file" and the like, in the order of the records. Records that are not valid
        are passed over: ``afn data index`` names them.

    Raises:
        ValueError: a corpus that is not there, has no index, or changed since.
    """
    found = []
    for name, given in corpora.items():
        corpus = given if isinstance(given, Corpus) else Corpus(given)
        total = len(corpus)
        for first in range(0, min(most, total), _BLOCK):
            block = range(first, min(first + _BLOCK, most, total))
            numbers = block if total <= most else [permute(i, total, key(0)) for i in block]
            found += [f"{name}[{number}]: {what}" for number, what in _missing(corpus, numbers)]
            if progress:
                progress(len(block))
    return found


def _missing(corpus: Corpus, numbers) -> list[tuple[int, str]]:
    folder, found = corpus.folder, []
    members: dict[str, list[tuple[int, str]]] = defaultdict(list)
    stored: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number in numbers:
        try:
            sources = dict.fromkeys(audio.source for audio in audios_of(parse_sample(corpus[number], "")))
        except ValueError:
            continue
        for source in sources:
            try:
                path = join(folder, source)
            except StorageError as error:
                found.append((number, str(error)))
                continue
            if is_member(source):
                tar, member = split_path(source)
                members[tar].append((number, member))
            elif is_cell(source):
                found += _missing_cell(number, source, path)
            elif is_url(path):
                stored[path].append((number, source))
            elif not os.path.isfile(path):
                found.append((number, f"{source:.200}: no such file"))
    for tar, wanted in members.items():
        found += _missing_members(tar, join(folder, tar), wanted)
    return sorted(found + _missing_stored(stored))


def _missing_stored(wanted: dict[str, list[tuple[int, str]]]) -> list[tuple[int, str]]:
    """Of addresses in storage the folders are listed; of web addresses, which have none, some are asked for."""
    web = [url for url in wanted if url.startswith(WEB)]
    refused = set()
    if web:
        try:
            check_allowed(web[0])
        except StorageError:
            refused.update(web)
        web = web[:: -(-len(web) // _ASKED)]
    asked = states([url for url in wanted if url not in refused and (not url.startswith(WEB) or url in web)])
    found = [
        (number, f"{shown(source):.200}: {str(state).removeprefix(f'{shown(url)}: ')}")
        for url, state in asked.items()
        if isinstance(state, StorageError)
        for number, source in wanted[url]
    ]
    why = "a web address, and recordings are files; AFN_ALLOW_HTTP=1 lets them be read"
    return found + [(number, f"{shown(source):.200}: {why}") for url in refused for number, source in wanted[url]]


def _missing_cell(number: int, source: str, path: str) -> list[tuple[int, str]]:
    try:
        find_cell(path)
    except ValueError as error:
        return [(number, f"{source}: {str(error).removeprefix(f'{path}: ')}")]
    return []


def _missing_members(tar: str, path: str, wanted: list[tuple[int, str]]) -> list[tuple[int, str]]:
    try:
        archive = open_archive(path)
    except ValueError as error:
        there = is_url(path) or os.path.exists(path)
        why = str(error).removeprefix(f"{path}: ") if there else "no such file"
        return [(number, f"{tar}: {why}") for number, _ in wanted]
    found = []
    for number, member in wanted:
        try:
            archive.find(member)
        except ValueError as error:
            found.append((number, f"{tar}{str(error).removeprefix(path)}"))
    return found
