"""VoiceBench: requests that are spoken and nothing else (MatthewCYM/VoiceBench@5338154, hlt-lab/voicebench)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, answer_at, field, lettered, read_rows

LETTERED = ("openbookqa", "mmsu")  # subsets whose reference is a letter
REFERENCED = ("sd-qa",)  # one whose reference is an answer


def voicebench(files: Files, subset: str) -> Iterator[Item]:
    """Rows {audio, prompt, reference?} of one subset; the prompt says what is spoken, and is not shown to the model.

    A subset may have several splits, such as the regions of sd-qa, and several files of each: ids are the split and a
    number. Options, where there are any, are part of what is spoken.

    Args:
        files: "questions", Parquet or JSON Lines.
        subset: as the hub calls it.
    """
    numbers: Counter[str] = Counter()
    for path in files.all("questions"):
        split = _split(path)
        for row in read_rows(path, ["audio"]):
            numbers[split] += 1
            where = f"{path}, {split} {numbers[split]}"
            spoken = field(row, "prompt", where)
            choices, answer, extra = (), None, {"transcription": spoken}
            if subset in LETTERED:
                reference = field(row, "reference", where)
                question, choices = lettered(spoken)
                answer, extra = answer_at(reference, choices), extra | {"reference": reference.strip()}
            else:
                question = spoken
                answer = field(row, "reference", where) if subset in REFERENCED else None
            yield Item(
                id=str(row.get("id") or row.get("key") or f"{split}-{numbers[split]}"),
                question=question,
                clips=(ItemClip(_audio(files, path, field(row, "audio", where, (str, dict)))),),
                choices=choices,
                answer=answer,
                groups={} if split == "test" else {"split": split},
                extra=extra,
            )


def _split(path: Path) -> str:
    """ "usa" of usa-00000-of-00001.parquet; "test" of other names."""
    name, found, rest = path.stem.partition("-0")
    return name if found and "-of-" in rest else "test"


def _audio(files: Files, path: Path, audio: Any) -> str:
    if path.suffix == ".parquet":
        return audio
    return files.audio(str(audio["path"] if isinstance(audio, dict) else audio), str(path.parent), "audio")
