"""Which model a folder holds, told from its files: no path, no date, and without reading all of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from afn_model.files import fingerprint, model_folder
from afn_model.weights.checkpoint import PARTS, find_layout, shard_files

DIGITS = 16
BLOCKS, BLOCK = 64, 4096  # bytes that are read of each file of weights, at even places
TEXTS = (
    "config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def identity(folder: str | Path) -> dict[str, Any]:
    """Name and digest of a model.

    Args:
        folder: of any layout.

    Returns:
        {"name": of the folder, "weights": the first digits of a SHA-256 over names, sizes and ``BLOCKS`` places of the
        weights' files, and over all of the configuration, tokenizer and template}. Training changes every place.

    Raises:
        ValueError: no model folder.
    """
    folder, found = model_folder(folder), hashlib.sha256()
    find_layout(folder)
    for part in PARTS:
        for path in shard_files(folder / part) if (folder / part).is_dir() else ():
            found.update(f"{part}/{path.name} {path.stat().st_size} {_some(path)}\n".encode())
        for name in TEXTS:
            if (path := folder / part / name).is_file():
                found.update(f"{part}/{name} {fingerprint(path)}\n".encode())
    return {"name": folder.resolve().name, "weights": found.hexdigest()[:DIGITS]}


def _some(path: Path) -> str:
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for block in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * block // (BLOCKS - 1))
            found.update(file.read(BLOCK))
    return found.hexdigest()
