"""Copies of CMM, VoiceBench and LibriSQA."""

from __future__ import annotations

from pathlib import Path

from afn_model.eval.copies.choices import options, write_parquet
from afn_model.eval.copies.sounds import NAMES, SPOKEN, Sounds, encoded, save
from afn_model.files import write_json


def cmm(folder: Path, sounds: Sounds) -> None:
    """Pairs of questions, one yes and one no; and what is left out: questions about videos, with and without their
    sound."""
    rows = []

    def add(kind: str, audio: str | None, video: str | None, asked: str, answer: str):
        row = {"category": "inter-modality_spurious_correlation", "sub_category": kind, "granularity": "event-level"}
        row |= {"modality": "audio" if video is None else "visual", "correlation_type": "cooccurrence"}
        row |= {"video_path": video, "audio_path": audio}
        rows.append(row | {"question": f"{asked} Answer with yes or no.", "answer": answer})

    for number in range(3):
        name = sounds.pick(NAMES)
        audio = f"./reorg_raw_files/audio-language/{number}.wav"
        save(folder / audio, sounds.sound(name, 1.0))
        (other,) = sounds.others(NAMES, name, 1)
        add("audio-language", audio, None, f"Did you hear {name} in the audio?", "yes")
        add("audio-language", audio, None, f"Did you hear {other} in the audio?", "no")
    video = "./reorg_raw_files/visual-audio-language/0.mp4"
    add("visual-audio-language", audio, video, f"Did you see {name} in the video?", "yes")
    add("visual-language", None, video, f"Did you see {other} in the video?", "no")
    write_json(folder / "all_data_final_reorg.json", rows)


def voicebench(folder: Path, sounds: Sounds, subset: str) -> None:
    """Recordings inside the table, several splits where a subset has them, options on one line and on several, a letter
    as reference."""
    splits = {"mmsu": ("law", "physics"), "sd-qa": ("usa",)}.get(subset, ("test",))
    for split in splits:
        rows = []
        for number in range(5 if len(splits) == 1 else 3):
            word = sounds.pick(SPOKEN)
            row = {"prompt": f"Say {word}.", "reference": word}
            if subset in ("openbookqa", "mmsu"):
                choices = options(sounds, SPOKEN, word)
                parts = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
                between = "\n" if number % 2 else " "
                told = f"Find {word}.{between}{between.join(parts)}"
                row = {"prompt": told, "reference": "ABCD"[choices.index(word)]}
            elif subset != "sd-qa":
                del row["reference"]
            sound = encoded(sounds.speech(row["prompt"].replace("\n", " ")), ".wav")
            rows.append({"audio": {"bytes": sound, "path": None}, **row})
        write_parquet(folder / subset / f"{split}-00000-of-00001.parquet", rows)


def librisqa(folder: Path, sounds: Sounds, part: int = 1) -> None:
    """An utterance that is asked about twice, a path with another suffix than the file has, options inside the
    question, letters as answers."""
    rows = []
    for number in range(5):
        word = sounds.pick(SPOKEN)
        utterance = f"1089-134686-000{min(number, 3)}"
        path = f"LibriSpeech/test-clean/1089/134686/{utterance}.flac"
        if number < 4:
            save(folder / path, sounds.speech(word))
        elif rows:
            word = str(rows[-1]["text"])
        speech = path.replace(".flac", ".wav") if number == 2 else path
        choices = options(sounds, SPOKEN, word)
        letter = "ABCD"[choices.index(word)]
        listed = "\n".join(f"{one}. {choice}" for one, choice in zip("ABCD", choices, strict=True))
        question = ("Which word is said?", "What word do you hear?")[number % 2]
        if part == 1:
            row = {"speech_path": speech, "question": question, "answer": word, "text": word, "duration": 1.0}
        else:
            row = {"speech_path": speech, "question_and_option": f"Question: {question}\nOptions:\n{listed}"}
            row |= {"answer": f"{letter}." if number == 3 else letter, "text": word}
            row |= {"answer_and_analysis": f"The answer is Option {letter}."}
        rows.append(row)
    name = f"LibriSQA-Part{('I', 'II')[part - 1]}"
    (folder / name).mkdir()
    write_json(folder / name / f"{name}-test.json", rows)
