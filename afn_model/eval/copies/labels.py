"""Copies of benchmarks of labels and entailment, and of CompA-R. Classes that the synthetic world does not have are
other sounds of it: their scores say nothing but that they can be had."""

from __future__ import annotations

from pathlib import Path

from afn_model.eval.copies.sounds import NAMES, PLAYED, Sounds, save, write_csv
from afn_model.eval.loaders.labels import GTZAN, MEDLEY_SOLOS_DB, NONSPEECH7K, NSYNTH
from afn_model.files import write_json, write_text

ASKED = "Which sound do you hear?"


def entailment(folder: Path, sounds: Sounds) -> None:
    """Rows of Clotho, whose five captions are a list written as text with quotes and commas in it, and of AudioCaps, in
    which a recording has several rows and one is a FLAC file named by its start."""
    rows = []
    for name in ("one, two (1).wav", "Four's.wav", "five.six.wav", "seven.wav", "eight.wav"):
        sound = sounds.pick(NAMES)
        save(folder / "evaluation" / name, sounds.sound(sound, 0.6))
        captions = [f"A {sound} is heard, it's near.", *(f"There is the sound of a {sound} {n}." for n in range(4))]
        rows.append(("ClothoV2", name, repr(captions), *_hypotheses(sound, sounds)))
    columns = ("Dataset", "Audio file", "Caption", "Entailment", "Neutral", "Contradiction")
    write_csv(folder / "clotho_entailment_evaluation.csv", columns, rows)
    rows = []
    names = {"aaaaaaaaa_1": "Yaaaaaaaaa_1.wav", "-bbbbbbbb-2": "-bbbbbbbb-2_30.flac", "Ycccccccc_3": "Ycccccccc_3.wav"}
    for video, file in names.items():
        sound = sounds.pick(NAMES)
        save(folder / "test" / file, sounds.sound(sound, 0.6))
        for place in range(2):
            rows.append(("Audiocaps", f"Y{video}", f"A {sound} {place}", *_hypotheses(sound, sounds)))
    write_csv(folder / "audiocaps_entailment_test.csv", columns, rows)


def _hypotheses(sound: str, sounds: Sounds) -> tuple[str, str, str]:
    other = sounds.others(NAMES, sound, 1)[0]
    return f"The sound is a {sound}.", f'A {sound} is heard in a "hall".', f"Only a {other} is heard."


def nonspeech7k(folder: Path, sounds: Sounds, question: str = "") -> None:
    """Labels with other capitals and one misspelt, a byte order mark, lines that end in CR and LF."""
    rows = []
    spelt = [*NONSPEECH7K[:2], "Crying", "laugh", "Screaming", "sneeze", "yawm"]
    for number, label in enumerate(spelt[2:]):
        name = f"{number}_{number + 2}_0.wav"
        save(folder / "test" / name, sounds.sound(NAMES[number], 0.6))
        rows.append((name, number, 1100, number + 2, label, 0, "Original", "-"))
    columns = ("Filename", "File ID", "Duration in ms", "Class ID", "Classname", "augmentation  id")
    columns = (*columns, "Augmentation  type", "source")
    write_csv(folder / "metadata of test set.csv", ("\ufeff" + columns[0], *columns[1:]), rows, end="\r\n")


def nsynth(folder: Path, sounds: Sounds, label: str, question: str = "") -> None:
    """Notes of instruments of the world under the names of the classes."""
    notes = {}
    families, sources = NSYNTH["instrument"], NSYNTH["source"]
    for number, family in enumerate(("flute", "guitar", "organ", "synth_lead", "brass")):
        source = sources[number % 3]
        pitch = 60 + number
        name = f"{family}_{source}_{number:03d}-{pitch:03d}-075"
        played = {"synth_lead": "organ", "brass": "trumpet"}.get(family, family)
        save(folder / "nsynth-test" / "audio" / f"{name}.wav", sounds.note(played, 0.6))
        note = {"note": 1000 + number, "note_str": name, "pitch": pitch, "velocity": 75, "sample_rate": 16000}
        note |= {"instrument": number, "instrument_str": f"{family}_{source}_{number:03d}"}
        note |= {"qualities": [0] * 10, "qualities_str": []}
        note |= {"instrument_family": families.index(family), "instrument_family_str": family}
        notes[name] = note | {"instrument_source": sources.index(source), "instrument_source_str": source}
    write_json(folder / "nsynth-test" / "examples.json", notes)


def medley_solos_db(folder: Path, sounds: Sounds, question: str = "") -> None:
    """Rows of all subsets, of which the test's are meant."""
    rows = []
    for number, subset in enumerate(("test", "training", "test", "validation", "test", "test", "test")):
        instrument = number % len(MEDLEY_SOLOS_DB)
        uuid = f"00000000-0000-4000-8000-{number:012d}"
        if subset == "test":
            name = f"Medley-solos-DB_{subset}-{instrument}_{uuid}.wav"
            save(folder / "audio" / name, sounds.note(PLAYED[number % len(PLAYED)], 0.6))
        rows.append((subset, MEDLEY_SOLOS_DB[instrument], instrument, number, uuid))
    columns = ("subset", "instrument", "instrument_id", "song_id", "uuid4")
    write_csv(folder / "Medley-solos-DB_metadata.csv", columns, rows)


def gtzan(folder: Path, sounds: Sounds, question: str = "") -> None:
    """Names with and without their folder, and an empty line at the end."""
    lines = []
    for number, genre in enumerate(GTZAN[:5]):
        name = f"{genre}.{number:05d}"
        save(folder / "genres" / genre / f"{name}.wav", sounds.note(PLAYED[number % len(PLAYED)], 0.6))
        lines.append(name if number == 4 else f"{genre}/{name}.wav")
    write_text(folder / "test_filtered.txt", "\n".join([*lines, "", ""]))


def compa_r(folder: Path, sounds: Sounds) -> None:
    """Several instructions about a recording, a recording in two rows, paths of another machine, events as a list and
    as text."""
    rows = []
    for number in range(4):
        sound = rows[0]["caption"].split()[1] if number == 1 else sounds.pick(NAMES)
        name = f"video{max(number, 1) - 1}_10.wav"
        if number != 1:
            save(folder / "compa_r_test_audios" / name, sounds.sound(sound, 1.0))
        events = [f"({sound}-0.0-1.0)"]
        pairs = [(ASKED, sound), (f"What may the {sound} tell about the place?", f"A {sound} is close by.")]
        told = [{"instruction": asked, "output": said} for asked, said in pairs[: 1 + number % 2]]
        about = {"caption": f"A {sound} is heard.", "timestamp_events": str(events) if number % 2 else events}
        rows.append({"audio_id": f"/data/audios/{name}", **about, "instruction_output": told})
    write_json(folder / "CompA-R-test.json", rows)
