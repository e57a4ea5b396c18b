"""CoVoST 2: translations joined with the recordings of Common Voice."""

import pytest

from afn_model.audio.decode import load_audio
from afn_model.eval.copies import speech as copies
from afn_model.eval.copies.sounds import Sounds
from afn_model.eval.items import Item
from afn_model.eval.loaders import load
from afn_model.eval.loaders.files import UNSCORED
from afn_model.eval.prompts import PROMPTS
from afn_model.eval.table import benchmarks

ROWS = {name: row for name, row in benchmarks().items() if row.loader == "covost2"}


def test_a_translation_is_joined_with_its_recording_and_transcript(tmp_path):
    pytest.importorskip("espeakng_loader", reason="speech synthesis (the demo extra) is not installed")
    row, folder = ROWS["covost2-en-zh"], tmp_path / "covost2"  # directions share the folder of their benchmark
    copies.covost2(folder, Sounds(0), **row.options)
    items = load(row, tmp_path)
    assert [item.references[0] for item in items] == list(copies.TRANSLATED["zh-CN"][1])
    assert items[0].extra == {"transcript": 'He said: "Good morning."'}  # the backslashes before its quotes are gone
    assert items[3].extra == {UNSCORED: "not in validated.tsv"}
    assert items[0].clips[0].path == str(folder / "en" / "clips" / "common_voice_en_0.mp3")
    assert len(load_audio(items[0].clips[0].path)) > 16000

    # The split that the authors' script makes of both: no row is left without a transcript.
    lines = ["path\tsentence\ttranslation\tclient_id"]
    lines += [f"{one.id}\t{one.extra['transcript']}\t{one.references[0]}\t0" for one in items[:3]]
    text = "\n".join(lines).replace('"', '\\"')
    (folder / "covost_v2.en_zh-CN.test.tsv").write_text(text + "\n", "utf-8")
    assert load(row, tmp_path) == items[:3]


def test_files_that_are_missing_or_have_changed_are_named(tmp_path):
    row, folder = ROWS["covost2-de-en"], tmp_path / "covost2"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"no covost_v2.de_en.test.tsv or covost_v2.de_en.tsv in it"):
        load(row, tmp_path)
    translations = folder / "covost_v2.de_en.tsv"
    translations.write_text("path\ttranslation\tsplit\na.mp3\tgood\ttest\n")
    with pytest.raises(ValueError, match=r"no de/validated.tsv or cv-corpus-4-2019-12-10/de/validated.tsv in it"):
        load(row, tmp_path)
    (folder / "de").mkdir()
    (folder / "de" / "validated.tsv").write_text("path\ttext\na.mp3\tgut\n")
    with pytest.raises(ValueError, match="no field 'sentence'; there are path, text"):
        load(row, tmp_path)
    translations.write_text("path\ttranslation\na.mp3\tgood\n")
    with pytest.raises(ValueError, match="no field 'split'"):
        load(row, tmp_path)


def test_eight_directions_ask_in_their_languages():
    asked = {name.removeprefix("covost2-"): PROMPTS[row.prompt](Item(""), row.language) for name, row in ROWS.items()}
    assert len(asked) == 8
    assert asked["en-zh"] == "Translate any speech you hear from English into Chinese."
    assert asked["ar-en"] == "Translate any speech you hear from Arabic into English."
    targets = {name.removeprefix("covost2-"): row.targets["instruct"] for name, row in ROWS.items()}
    into = {"en-zh": 38.2, "en-ja": 29.6, "en-ar": 21.9, "en-de": 31.4}
    assert targets == {**into, "zh-en": 25.6, "ja-en": 27.2, "ar-en": 29.4, "de-en": 33.0}
    tokenisers = {name: [scorer["tok"] for scorer in ROWS[f"covost2-{name}"].scorers] for name in into}
    assert tokenisers == {"en-zh": ["zh", "char"], "en-ja": ["char", "ja-mecab"], "en-ar": ["13a"], "en-de": ["13a"]}
    assert not any(row.lower for row in ROWS.values())
