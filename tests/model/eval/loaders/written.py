"""Files of a benchmark as a test writes them."""

import json
from pathlib import Path
from typing import Any

from afn_model.eval.items import Item
from afn_model.eval.loaders import load
from afn_model.eval.table import benchmarks


def loaded(name: str, data: Path, **files: Any) -> list[Item]:
    """Items of a benchmark whose files are given by their names in the table: text as it is, bytes, or what is written
    as JSON."""
    row = benchmarks()[name]
    for key, content in files.items():
        named = row.files[key]
        path = data / name / (named if isinstance(named, str) else named[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(plain if isinstance(plain, bytes) else plain.encode())
    return load(row, data)


def put(path: Path) -> str:
    """A file that stands for a recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return str(path)
