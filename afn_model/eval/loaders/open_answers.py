"""Questions with open answers that a judge grades, about songs, music and long recordings."""

from __future__ import annotations

from collections.abc import Iterator

from afn_model.checks import shown
from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, field, read_json
from afn_model.eval.loaders.videos import Videos

_WHO = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}


def songcaps(files: Files) -> Iterator[Item]:
    """SongCaps, whose file is not public: Audio Flamingo's form of records is read, a song's caption as the answer."""
    yield from _records(files)


def longaudiobench(files: Files) -> Iterator[Item]:
    """LongAudioBench, whose file is not public: Audio Flamingo's form of records is read, that of LongAudio's training
    files, in which ids repeat."""
    yield from _records(files)


def _records(files: Files) -> Iterator[Item]:
    """Rows {id, sound: path or list, duration, conversations: [{from, value}]} of a list, as NVIDIA/audio-flamingo's
    README at 1337fb9 describes them: one question and its answer, ``<sound>`` or ``<sound-2>`` where the recordings
    belong. A ``<sound>`` at the beginning is left out, as recordings come first anyway."""
    path = files.one("records")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list of records is expected, got {shown(rows)}")
    for number, row in enumerate(rows, 1):
        where = f"{path}, record {number}"
        said: dict[str, str] = {}
        for turn in field(row, "conversations", where, list):
            who = _WHO.get(field(turn, "from", where))
            if who is None or who in said:
                raise ValueError(
                    f"{where}: one question and one answer are expected, got {shown(row['conversations'])}"
                )
            said[who] = field(turn, "value", where).strip()
        if not said.get("question"):
            raise ValueError(f"{where}: no question in it")
        sounds = field(row, "sound", where, (str, list)) if row.get("sound") else []
        sounds = [sounds] if isinstance(sounds, str) else sounds
        yield Item(
            id=str(field(row, "id", where, (str, int))),
            question=said["question"].removeprefix("<sound>").strip(),
            clips=tuple(ItemClip(files.audio(sound, "audio")) for sound in sounds),
            answer=said.get("answer") or None,
            extra={"duration": row["duration"]} if "duration" in row else {},
        )


def musicinstruct(files: Files) -> Iterator[Item]:
    """MusicInstruct: {"QA": [{ytid, question, answer, is_audioset_eval, ...}]}, of which those about recordings of
    AudioSet's evaluation part are the test. Recordings have the names of their videos."""
    path, videos = files.one("questions"), Videos(files.folder)
    for number, row in enumerate(field(read_json(path), "QA", path, list), 1):
        where = f"{path}, question {number}"
        if not field(row, "is_audioset_eval", where, (bool, int)):
            continue
        video = field(row, "ytid", where)
        yield Item(
            id=video,
            question=field(row, "question", where).strip(),
            clips=(ItemClip(videos.path(video)),),
            answer=field(row, "answer", where).strip() or None,
        )
