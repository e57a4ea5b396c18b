"""Copies of speech recognition and translation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.eval.copies.choices import write_parquet
from afn_model.eval.copies.sounds import SPOKEN, Sounds, encoded, save
from afn_model.files import write_text

PAUSE = 0.2  # seconds between segments of one recording
# Sentences in which normalisers differ; the demo model knows the words of ``SPOKEN`` alone.
SENTENCES = ("Dr. Allan isn't there, um, yet.", "It's twenty one dollars.", "We'll e-mail the colour.")
TRANSLATED = {  # voice and sentences of each language
    "en": ("en-us", ('He said: "Good morning."', "The tea is hot.", "Where is the station?", "I see a red car.")),
    "de": ("de", ('Er sagte: "Guten Morgen."', "Der Tee ist heiß.", "Wo ist der Bahnhof?", "Ich sehe ein rotes Auto.")),
    "zh-CN": ("cmn", ("他说：“早上好。”", "茶很热。", "车站在哪里？", "我看见一辆红色的车。")),
    "ja": (
        "ja",
        ("かれは「おはよう」といった。", "おちゃはあついです。", "えきはどこですか。", "あかいくるまがみえます。"),
    ),
    "ar": ("ar", ('قال: "صباح الخير."', "الشاي ساخن.", "أين المحطة؟", "أرى سيارة حمراء.")),
}
ENGLISH = ("en-us", "en-gb")


def librispeech(folder: Path, sounds: Sounds) -> None:
    """Upper case, a file of transcripts for each chapter, of both splits."""
    for split in ("test-clean", "test-other"):
        for chapter in (("61", "70968"), ("121", "121726")):
            home, lines = folder / "LibriSpeech" / split / chapter[0] / chapter[1], []
            for number, text in enumerate((sounds.pick(SPOKEN), sounds.pick(SENTENCES))):
                key = f"{chapter[0]}-{chapter[1]}-{number:04d}"
                lines.append(f"{key} {_plain(text).upper()}")
                save(home / f"{key}.flac", sounds.speech(text))
            write_text(home / f"{chapter[0]}-{chapter[1]}.trans.txt", "\n".join(lines) + "\n")


def spgispeech(folder: Path, sounds: Sounds) -> None:
    """Case, punctuation, and a quote that opens and never closes."""
    rows = ["wav_filename|wav_filesize|transcript"]
    for number, text in enumerate((*_words(sounds, 2), *SENTENCES)):
        name = f"{number:032x}/{number}.wav"
        path = save(folder / "test" / name, sounds.speech(text))
        rows.append(f"{name}|{path.stat().st_size}|{chr(34) * (number == 4)}{text}")
    write_text(folder / "test.csv", "\n".join(rows) + "\n")


def tedlium(folder: Path, sounds: Sounds) -> None:
    """Segments of one talk: a comment, a space before an apostrophe, <unk>, and a segment that is not scored."""
    home = folder / "TEDLIUM_release-3" / "legacy" / "test"
    texts = [*_words(sounds, 2), "it 's the colour <unk>", "ignore_time_segment_in_scoring", "we will not wait"]
    spoken = ["it's the colour" if "<unk>" in text else "um" if "ignore" in text else text for text in texts]
    pcm, spans = _joined(sounds, spoken)
    save(home / "sph" / "AlexSmith_2011.sph", pcm)
    lines = [';; category "0" "" ""']
    for text, (start, end) in zip(texts, spans, strict=True):
        speaker, label = (
            ("inter_segment_gap", "<o,,unknown>") if "ignore" in text else ("AlexSmith_2011", "<o,f0,male>")
        )
        lines.append(f"AlexSmith_2011 1 {speaker} {start:.2f} {end:.2f} {label} {text}")
    (home / "stm").mkdir(parents=True, exist_ok=True)
    write_text(home / "stm" / "AlexSmith_2011.stm", "\n".join(lines) + "\n")


def gigaspeech(folder: Path, sounds: Sounds) -> None:
    """Segments of a long recording with tags for punctuation, one of music, one of another subset; a second recording,
    of training alone, that is absent."""
    texts = [*_words(sounds, 3), "um it's e-mail", "no"]
    written = [*(text.upper() for text in texts[:2]), "<MUSIC>", "UM IT'S <COMMA> E-MAIL <PERIOD>", "NO"]
    pcm, spans = _joined(sounds, texts)
    path = save(folder / "audio" / "podcast" / "P0000" / "POD0000000001.opus", pcm)
    segments = []
    for number, (text, (start, end)) in enumerate(zip(written, spans, strict=True)):
        segment = {"sid": f"POD0000000001_S{number:07d}", "speaker": "N/A", "text_tn": text}
        segment |= {"begin_time": round(start, 3), "end_time": round(end, 3)}
        segments.append(segment | {"subsets": ["{XL}", "{L}"] if text == "NO" else ["{TEST}"]})
    audio = {"title": "N/A", "aid": "POD0000000001", "source": "podcast", "format": "opus", "sample_rate": SAMPLE_RATE}
    audios = [
        audio | {"path": str(path.relative_to(folder)), "duration": len(pcm) / SAMPLE_RATE, "segments": segments},
        audio | {"aid": "YOU0000000002", "path": "audio/youtube/P0000/YOU0000000002.opus", "segments": segments[-1:]},
    ]
    table = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    write_text(folder / "GigaSpeech.json", json.dumps(table, indent=2))


def common_voice(folder: Path, sounds: Sounds) -> None:
    """Quotes that are characters, and clips as MP3."""
    rows = ["client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"]
    for number, text in enumerate((*_words(sounds, 3), *SENTENCES[:2])):
        file = f"common_voice_en_{number}.mp3"
        save(folder / "en" / "clips" / file, sounds.speech(text, voice=sounds.pick(ENGLISH)))
        sentence = f'"{text}' if number == 4 else text
        rows.append("\t".join(["0" * 16, file, sentence, "2", "0", "", "", "", "", "en", ""]))
    write_text(folder / "en" / "test.tsv", "\n".join(rows) + "\n")


def voxpopuli(folder: Path, sounds: Sounds) -> None:
    """A text with case beside a normalised one, recordings in a folder of a part, and a reference that is empty."""
    rows = ["id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"]
    for number, text in enumerate((*_words(sounds, 3), *SENTENCES[:2])):
        key = f"20090116-0900-PLENARY-4-en_20090116-09:{number:02d}:34_0"
        save(folder / "data" / "en" / "test" / "test_part_0" / f"{key}.wav", sounds.speech(text))
        normal = "" if number == 2 else _plain(text).lower()
        rows.append("\t".join([key, text, normal, "2191", "test", "female", "True", "None"]))
    write_text(folder / "data" / "en" / "asr_test.tsv", "\n".join(rows) + "\n")


def open_asr(folder: Path, sounds: Sounds) -> None:
    """A Parquet file with the bytes of recordings, ids without a folder, and a text that is not scored."""
    texts = (*_words(sounds, 3), SENTENCES[0], "ignore_time_segment_in_scoring")
    rows = []
    for number, text in enumerate(texts):
        audio = {"bytes": encoded(sounds.speech("um" if "_" in text else text)), "path": f"{number}.wav"}
        row = {"id": f"AMI_EN2002a_{number}", "audio": audio, "dataset": "ami", "text": text, "audio_length_s": 1.0}
        rows.append(row)
    write_parquet(folder / "ami_cleaned" / "test-00000-of-00001.parquet", rows, group=2)


def covost2(folder: Path, sounds: Sounds, *, direction: str) -> None:
    """Translations with a split column beside Common Voice's validated.tsv, quotes and a backslash in both, a row of
    training, and a translation whose recording Common Voice does not have."""
    source, _, target = direction.partition("_")
    voice, said = TRANSLATED[source]
    _, meant = TRANSLATED[target]
    known, rows = ["client_id\tpath\tsentence\tup_votes"], ["path\ttranslation\tsplit\tclient_id"]
    for number, (sentence, translation) in enumerate(zip(said, meant, strict=True)):
        file = f"common_voice_{source}_{number}.mp3"
        rows.append(f"{file}\t{translation.replace(chr(34), chr(92) + chr(34))}\ttest\t{number:08x}")
        if number != 3:
            known.append(f"{number:08x}\t{file}\t{sentence.replace(chr(34), chr(92) + chr(34))}\t2")
        save(folder / source / "clips" / file, sounds.speech(sentence, voice=voice))
    rows.append(f"common_voice_{source}_9.mp3\tnot asked\ttrain\t00000009")
    write_text(folder / source / "validated.tsv", "\n".join(known) + "\n")
    write_text(folder / f"covost_v2.{direction}.tsv", "\n".join(rows) + "\n")


def _words(sounds: Sounds, count: int) -> list[str]:
    return [sounds.pick(SPOKEN) for _ in range(count)]


def _plain(text: str) -> str:
    return "".join(one for one in text if one.isalnum() or one in " '")


def _joined(sounds: Sounds, texts: Sequence[str]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Texts one after another in one recording, and the seconds at which each begins and ends."""
    pieces, spans, at = [], [], 0.0
    for text in texts:
        piece = sounds.speech(text, around=PAUSE / 2)
        pieces.append(piece)
        spans.append((at, at + len(piece) / SAMPLE_RATE))
        at = spans[-1][1]
    return np.concatenate(pieces), spans
