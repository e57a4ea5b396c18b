"""Copies of benchmarks with options: MMAU, MMAR, MMSU, MMAU-Pro and both forms of MuchoMusic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afn_model.eval.copies.sounds import NAMES, SPOKEN, Sounds, save, write_csv
from afn_model.files import write_json, write_rows

SOUND, WORD = "Which sound do you hear?", "Which word is said?"


def mmau(folder: Path, sounds: Sounds) -> None:
    """Choices as a list and as a string, an id given twice, an answer that is no choice, and a test split whose answers
    are hidden."""
    rows: list[dict[str, Any]] = []
    for number in range(5):
        name = sounds.pick(NAMES)
        choices = options(sounds, NAMES, name)
        audio = f"./test-mini-audios/{number}.wav"
        save(folder / audio, sounds.sound(name))
        row = {"id": f"copy-{max(0, number - 1)}", "audio_id": audio, "question": SOUND}
        row |= {"choices": json.dumps(choices) if number == 2 else choices}
        row |= {"answer": f"a {name}" if number == 3 else name, "dataset": "copy", "task": "sound"}
        row |= {"split": "test-mini", "category": "Reasoning", "sub-category": "Acoustic Source Inference"}
        rows.append(row | {"difficulty": ("easy", "medium", "hard")[number % 3]})
    write_json(folder / "mmau-test-mini.json", rows)
    hidden = [{name: value for name, value in row.items() if name != "answer"} | {"split": "test"} for row in rows]
    write_json(folder / "mmau-test.json", hidden)


def mmar(folder: Path, sounds: Sounds) -> None:
    """Two choices and an empty last one, blanks around the answer, a language that is null or several, rubrics."""
    rows = []
    for number in range(5):
        word = sounds.pick(SPOKEN)
        choices = options(sounds, SPOKEN, word, 1 if number == 1 else 3)
        if number == 2:
            choices.append("")
        if number == 3:
            choices[choices.index(word)] = word = f"{word} "
        audio = f"./audio/copy_00-00-0{number}_00-00-0{number + 1}.wav"
        save(folder / audio, sounds.speech(word))
        row = {"id": Path(audio).stem, "audio_path": audio, "question": WORD, "choices": choices, "answer": word}
        row |= {"modality": "mix-sound-speech" if number == 4 else "speech", "category": "Semantic Layer"}
        row |= {"sub-category": "Content Analysis", "language": (None, "en", "zh|en")[number % 3]}
        row |= {"source": "youtube", "url": "", "timestamp": f"00:00:0{number},00:00:0{number + 1}"}
        rubric = {"name": "Word", "scoring_point": "The word.", "note": "", "choices": [0, 1]}
        rows.append(row | {"thinking": f"The voice says {word}.", "cue": ["voice"], "rubric": [rubric]})
    write_rows(folder / "MMAR-meta.jsonl", rows)


def mmsu(folder: Path, sounds: Sounds) -> None:
    """Two choices, those before them null; numbers as choices and answer; "None" as a choice."""
    rows = []
    for number in range(5):
        word = "two" if number == 2 else sounds.pick(SPOKEN)
        choices: list[Any] = options(sounds, SPOKEN, word)
        answer: Any = word
        if number == 1:
            one, other = options(sounds, SPOKEN, word, 1)
            choices = [None, one, None, other]
        if number == 2:
            choices, answer = [1, 2, 3, 4], 2
        if number == 3:
            choices[choices[0] == word] = "None"
        audio = f"/audio/copy_{number}.wav"
        save(folder / audio[1:], sounds.speech(word))
        row = {"id": f"copy_{number}", "task_name": "copy", "audio_path": audio, "question": WORD}
        row |= {f"choice_{letter}": one for letter, one in zip("abcd", choices, strict=True)}
        row |= {"answer_gt": answer, "category": "Perception" if number % 2 else "Reasoning"}
        row |= dict.fromkeys(("sub-sub-category", "linguistics_sub_discipline"), "Semantics")
        rows.append(row | {"sub-category": "Linguistics"})
    (folder / "question").mkdir()
    write_rows(folder / "question" / "mmsu.jsonl", rows)


def mmau_pro(folder: Path, sounds: Sounds) -> None:
    """Several recordings, no choices, no answer, instructions with and without arguments, a struct of arguments whose
    other fields are null, eleven choices."""
    closed = {"task_identifier": None, "kwargs": {"N": None, "keywords": None}, "transcription": None}
    rows: list[dict[str, Any]] = []

    def add(
        clips: Sequence[str], category: str, question: str, answer: str | None, choices: Sequence[str], **rest: Any
    ):
        audio = []
        for name in clips:
            audio.append(f"data/copy_{len(rows)}_{len(audio)}.wav")
            save(folder / audio[-1], sounds.sound(name, 1.0))
        row = {"id": f"copy-{len(rows)}", "audio_path": audio, "question": question, "answer": answer}
        row |= {"choices": list(choices), "length_type": "long" if category == "multi" else "short"}
        row |= {"perceptual_skills": ["Sound Source Identification"], "reasoning_skills": []}
        rows.append(row | {"category": category, "task_classification": None, "sub-cat": None} | closed | rest)

    one, two, three, four = sounds.others(NAMES, "", 4)
    add([one], "sound", SOUND, one, options(sounds, NAMES, one))
    add([two, three], "multi", "Which sound is in the second recording?", three, options(sounds, NAMES, three, 10))
    add([four], "open", SOUND, four, ())
    add([one], "instruction following", "Say it in lower case.", None, (), task_identifier="All Lowercase")
    words = {"task_identifier": "Number Words (at most)", "kwargs": {"N": 5, "keywords": None}}
    add([two], "instruction following", "Name the sound in five words.", None, (), transcription="", **words)
    write_parquet(folder / "test.parquet", rows)


def rul(folder: Path, sounds: Sounds, **_: Any) -> None:
    """A dict of questions by number; the recordings are mp3 files of these numbers."""
    rows = {}
    for number in (7, 1740, 12, 958, 20):
        name = sounds.pick(NAMES)
        save(folder / "audio" / f"{number}.mp3", sounds.sound(name, 1.0))
        row = {"question": SOUND, "caption": f"A {name}.", "correct_answer": name}
        row |= {"distractors": sounds.others(NAMES, name, 4), "PI": round(float(sounds.random.uniform(0.5, 1)), 6)}
        rows[str(number)] = row
    write_json(folder / "RUL-MuchoMusic.json", rows)


def muchomusic(folder: Path, sounds: Sounds, **_: Any) -> None:
    """Both forms: what the authors' script prepares, with the id of a track given twice, and the table as published."""
    prepared, published = [], []
    for number, track in enumerate([415600, 415600, 1017, "a_b-cdefghi", "jklmnopqrst"]):
        name = ("flute", "flute", "guitar", "flute", "guitar")[number]
        right = [name, *sounds.others(NAMES, name, 3)]
        orders = [int(place) for place in sounds.random.permutation(4)]
        if isinstance(track, int):
            dataset, identifier = "sdd", f"{track}.json"
            audio = f"data/sdd/audio/{track % 100:02d}/{track}.2min.mp3"
        else:
            dataset, identifier = "musiccaps", f"{track}_30.json"
            audio = f"data/musiccaps/audio/[{track}]-[30-40].wav"
        if not (folder / audio).exists():
            save(folder / audio, sounds.sound(name, 1.0))
        answers = [right[place] for place in orders]
        asked = " ".join(f"({letter}) {answer}" for letter, answer in zip("ABCD", answers, strict=True))
        shown = "Question: Which one is it? \n Options: (A) this. (B) that. \n The correct answer is: A"
        prompt = f"{shown}\n Question: {SOUND}\n Options: {asked} \n The correct answer is: "
        about = {"dataset": dataset, "genre": "Rock" if number else ""}
        row = {"id": track, "prompt": prompt, "answers": answers, "answer_orders": orders} | about
        row |= {"reasoning": [], "knowledge": ["instrumentation"] if number < 3 else []}
        prepared.append(row | {"audio_path": audio, "model_output": "A"})
        row = {"question_id": number, "question": SOUND, "correct_answer": name} | about
        row |= {f"distractor_{place}_answer": right[place] for place in (1, 2, 3)}
        row |= {"dataset_identifier": identifier, "music_knowledge": "['instrumentation']" if number < 3 else ""}
        published.append(row | {"music_reasoning": "[]"})
    write_json(folder / "example_file.json", prepared)
    write_csv(folder / "muchomusic.csv", list(published[0]), [list(row.values()) for row in published])


def options(sounds: Sounds, items: Sequence[str], right: str, wrong: int = 3) -> list[str]:
    """The right one and so many others, in a random order."""
    found = [right, *sounds.others(items, right, wrong)]
    sounds.random.shuffle(found)
    return found


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], group: int | None = None) -> None:
    """Rows with the columns of the first, so many in a row group; recordings are {"bytes", "path"}.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet files need pyarrow: pip install 'afn-kernels[eval]'") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=group)
