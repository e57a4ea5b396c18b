"""CompA-R-test: instructions about recordings of AudioSet, with open answers (Sreyan88/GAMA@041c3a6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from afn_model.checks import shown
from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, field, read_json


def compa_r(files: Files) -> Iterator[Item]:
    """An item for each instruction of rows {audio_id, caption, timestamp_events, instruction_output: [{instruction,
    output}]}. ``audio_id`` is a path of the authors' machine; the caption and the events are what their judge reads."""
    path = files.one("instructions")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list of recordings is expected, got {shown(rows)}")
    for number, row in enumerate(rows, 1):
        where = f"{path}, recording {number}"
        audio = field(row, "audio_id", where)
        name = PurePosixPath(audio).name.removesuffix(".wav").removesuffix(".flac")
        told = {
            "caption": field(row, "caption", where),
            "events": field(row, "timestamp_events", where, (str, list)),
        }
        found = files.audio(audio, "audio", "compa_r_test_audios")
        for place, pair in enumerate(field(row, "instruction_output", where, list), 1):
            here = f"{where}, instruction {place}"
            yield Item(
                id=f"{name}/{place}",
                question=field(pair, "instruction", here),
                clips=(ItemClip(found),) if audio != "empty" else (),
                answer=field(pair, "output", here).strip() or None,
                extra=told,
            )
