"""Small corpora in other people's forms: Parquet files with recordings in them, tar files of WebDataset, and clips."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


def clip(seconds: float, format: str = "FLAC", seed: int = 0) -> bytes:
    """A recording of noise."""
    file = io.BytesIO()
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))
    soundfile.write(file, samples, 16_000, format=format)
    return file.getvalue()


def parquet(path: Path, rows: Sequence[Mapping[str, Any]], group: int = 2, **options: Any) -> Path:
    """Writes rows, ``group`` of them in a row group; ``schema`` where their values do not tell it."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist(list(rows), schema=options.pop("schema", None))
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group, compression="none", **options)
    return path


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Writes a tar file of members in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
