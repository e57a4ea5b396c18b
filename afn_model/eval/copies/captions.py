"""Copies of benchmarks of captions and of open answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afn_model.eval.copies.labels import ASKED
from afn_model.eval.copies.sounds import NAMES, PLAYED, Sounds, save, write_csv
from afn_model.eval.loaders.captions import CAPTIONS
from afn_model.files import write_json


def _captions(sound: str) -> list[str]:
    return [
        f"A {sound} is heard.",
        f'A "{sound}", near by, then it is quiet.',
        f"There is the sound of a {sound}.",
        f"The {sound} sounds once and stops.",
        f"Somewhere, a {sound} makes a sound.",
    ]


def clotho(folder: Path, sounds: Sounds) -> None:
    """Names and captions with commas and quotes, lines that end in CR and LF."""
    rows = []
    for name in ("one.wav", "two, three (1).wav", "Four's.wav", "five.six.wav", "seven.wav"):
        sound = sounds.pick(NAMES)
        save(folder / "evaluation" / name, sounds.sound(sound, 1.0))
        rows.append((name, *_captions(sound)))
    write_csv(folder / "clotho_captions_evaluation.csv", ("file_name", *CAPTIONS), rows, end="\r\n")


def audiocaps(folder: Path, sounds: Sounds) -> None:
    """Recordings under each of the names in use; the captions of each are not together."""
    names = ("{0}_{1}.flac", "Y{0}.wav", "{0}.wav", "[{0}]-[{1}-40].wav", "104.wav")
    rows = []
    for number, form in enumerate(names):
        video, sound = f"-video_{number:04d}", sounds.pick(NAMES)
        save(folder / "test" / form.format(video, 30), sounds.sound(sound, 1.0))
        rows += [(100 * place + number, video, 30, caption) for place, caption in enumerate(_captions(sound))]
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")
    write_csv(folder / "test.csv", columns, sorted(rows))


def songcaps(folder: Path, sounds: Sounds) -> None:
    """Songs of one instrument with their captions, one without an answer."""
    records = []
    for number in range(5):
        played = PLAYED[number % len(PLAYED)]
        save(folder / "audio" / f"song{number}.wav", sounds.note(played))
        path, caption = f"/songs/song{number}.wav", f"A {played} plays one long note."
        records.append(_record(f"song-{number}", path, "Describe this song in detail.", caption))
    records[4]["conversations"].pop()
    write_json(folder / "songcaps.json", records)


def longaudiobench(folder: Path, sounds: Sounds) -> None:
    """An id given twice, several recordings that the question names, no recording and a duration as text."""
    records = []
    for number in range(3):
        sound = sounds.pick(NAMES)
        save(folder / "audio" / f"long{number}.wav", sounds.sound(sound, 2.0))
        records.append(_record(f"long-{number // 2}", f"./audio/long{number}.wav", ASKED, sound))
    records[1]["duration"] = "2.5"
    both = ["audio/long0.wav", "audio/long1.wav"]
    records.append(_record(7, both, "How is <sound-1> different from <sound-2>?", "They have other sounds."))
    records.append(_record("text", None, "How many seconds does a minute have?", "60"))
    for name in ("longaudiobench", "longaudiobench-speech"):
        write_json(folder / f"{name}.json", records)


def _record(name: str | int, sound: str | list[str] | None, asked: str, answer: str) -> dict[str, Any]:
    """A record in Audio Flamingo's form."""
    mark = "<sound>\n" if isinstance(sound, str) else ""
    turns = [{"from": "human", "value": mark + asked}, {"from": "gpt", "value": answer}]
    return {"id": name, **({"sound": sound, "duration": 2.0} if sound else {}), "conversations": turns}


def musicinstruct(folder: Path, sounds: Sounds) -> None:
    """Several questions about a recording, and one of the training part."""
    rows = []
    for number in range(6):
        video, played = f"music_{number // 2:05d}", PLAYED[number // 2]
        if number % 2 == 0:
            name = f"[{video}]-[30-40].wav" if number == 0 else f"{video}.wav"
            save(folder / "MusicCaps_audio" / name, sounds.note(played))
        asked = "What is played?" if number % 2 else "Which instrument do you hear?"
        row = {"ytid": video, "question": asked, "answer": f"A {played}."}
        rows.append(row | {"is_audioset_eval": number != 5, "sampling_rate": 16000})
    (folder / "MusicInstruct").mkdir()
    for kind in ("short", "long"):
        write_json(folder / "MusicInstruct" / f"music_instruct_{kind}.json", {"QA": rows})
