"""Captions of sounds: Clotho and AudioCaps, five for each recording."""

from __future__ import annotations

from collections.abc import Iterator

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, field, read_table
from afn_model.eval.loaders.videos import Videos

CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))  # columns of Clotho


def clotho(files: Files) -> Iterator[Item]:
    """Clotho: rows {file_name, caption_1 ... caption_5}."""
    path = files.one("captions")
    for number, row in enumerate(read_table(path), 1):
        where = f"{path}, row {number}"
        name = field(row, "file_name", where)
        references = tuple(field(row, column, where).strip() for column in CAPTIONS)
        audio = files.audio(name, "evaluation", "clotho_audio_evaluation/evaluation")
        yield Item(name, clips=(ItemClip(audio),), references=references)


def audiocaps(files: Files) -> Iterator[Item]:
    """AudioCaps: rows {audiocap_id, youtube_id, start_time, caption}, one for each caption, those of a recording
    together or apart; a recording is an item."""
    path = files.one("captions")
    found: dict[str, tuple[str, str, list[str], list[str]]] = {}
    for number, row in enumerate(read_table(path), 1):
        where = f"{path}, row {number}"
        video = field(row, "youtube_id", where)
        start, number_of_caption = field(row, "start_time", where), field(row, "audiocap_id", where)
        _, _, numbers, captions = found.setdefault(f"{video}_{start}", (video, start, [], []))
        numbers.append(number_of_caption)
        captions.append(field(row, "caption", where).strip())
    videos = Videos(files.folder)
    for name, (video, start, numbers, captions) in found.items():
        audio = videos.path(video, name, *numbers)
        told = {"audiocap_ids": tuple(numbers), "youtube_id": video, "start_time": start}
        yield Item(name, clips=(ItemClip(audio),), references=tuple(captions), extra=told)
