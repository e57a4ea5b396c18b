"""Benchmarks of labels."""

import pytest

from afn_model.eval.loaders.labels import GTZAN, MEDLEY_SOLOS_DB, NONSPEECH7K, NSYNTH
from afn_model.eval.prompts import PROMPTS
from afn_model.eval.table import benchmarks
from tests.model.eval.loaders.written import loaded, put

NOTE = {"instrument_family_str": "synth_lead", "instrument_source_str": "synthetic", "pitch": 60}


@pytest.mark.parametrize(
    ("spelt", "label"), [("Breath", "breath"), (" cry", "crying"), ("yawm", "yawn"), ("SCREAM", "screaming")]
)
def test_nonspeech7k_reads_its_labels_however_they_are_spelt(tmp_path, spelt, label):
    here = put(tmp_path / "nonspeech7k" / "test" / "1_0_0.wav")
    (item,) = loaded("nonspeech7k", tmp_path, labels=f"\ufeffFilename,File ID,Classname\r\n1_0_0.wav,1,{spelt}\r\n")
    assert (item.id, item.answer, item.choices) == ("1_0_0.wav", label, NONSPEECH7K)
    assert item.clips[0].path == here
    assert item.groups == {"label": label}


@pytest.mark.parametrize(("part", "answer"), [("source", "synthetic"), ("instrument", "synth_lead")])
def test_nsynth_asks_for_the_label_of_its_row(tmp_path, part, answer):
    name = f"nsynth-{part}"
    here = put(tmp_path / name / "nsynth-test" / "audio" / "a_b-060-075.wav")
    first, second = loaded(name, tmp_path, notes={"a_b-060-075": NOTE, "absent": NOTE})
    assert first.answer == answer
    assert first.clips[0].path == here
    assert second.clips[0].path == str(tmp_path / name / "absent.wav")
    assert first.choices == NSYNTH[part]


def test_classes_are_asked_for_in_the_form_of_audio_flamingo_1(tmp_path):
    (item,) = loaded("nsynth-source", tmp_path, notes={"a": NOTE})
    asked = PROMPTS[benchmarks()["nsynth-source"].prompt](item, "")
    assert asked == "what is the source of this music?\nOPTIONS:\n - acoustic.\n - electronic.\n - synthetic."
    for some in (*NSYNTH.values(), NONSPEECH7K, MEDLEY_SOLOS_DB, GTZAN):
        assert list(some) == sorted(some)
    assert list(map(len, (NSYNTH["instrument"], NONSPEECH7K, MEDLEY_SOLOS_DB, GTZAN))) == [11, 7, 8, 10]


def test_medley_solos_db_takes_the_test_and_names_recordings_by_its_columns(tmp_path):
    table = "subset,instrument,instrument_id,song_id,uuid4\ntraining,piano,4,1,aa\ntest,female singer,2,3,bb-cc\n"
    here = put(tmp_path / "medley-solos-db" / "audio" / "Medley-solos-DB_test-2_bb-cc.wav")
    (item,) = loaded("medley-solos-db", tmp_path, labels=table)
    assert (item.answer, item.clips[0].path) == ("female singer", here)


def test_gtzan_reads_names_with_and_without_folder(tmp_path):
    here = put(tmp_path / "gtzan" / "genres_original" / "hiphop" / "hiphop.00007.wav")
    items = loaded("gtzan", tmp_path, split="hiphop/hiphop.00007.wav\nrock.00012\n\n")
    assert [(item.id, item.answer) for item in items] == [("hiphop.00007", "hiphop"), ("rock.00012", "rock")]
    assert items[0].clips[0].path == here
    with pytest.raises(ValueError, match=r"line 1: a name such as blues\.00012 is expected, got 'hiphop/x\.wav'"):
        loaded("gtzan", tmp_path, split="hiphop/x.wav")


@pytest.mark.parametrize(
    ("name", "files", "told"),
    [
        ("nonspeech7k", {"labels": "Filename,Classname\na.wav,snore\n"}, "row 1: 'snore' is none of the .*: breath, "),
        ("nonspeech7k", {"labels": "Filename,Class\na.wav,cough\n"}, "no field 'Classname'; there are Filename, Class"),
        ("nsynth-source", {"notes": {"a": NOTE | {"instrument_source_str": 2}}}, "note a: field .*_source_str' is not"),
        ("nsynth-source", {"notes": {"a": 1}}, "note a: an object is expected, got 1"),
        ("nsynth-source", {"notes": [NOTE]}, "an object of notes is expected"),
        ("gtzan", {"split": "noise.00012"}, "line 1: 'noise' is none of the benchmark's classes"),
    ],
)
def test_what_the_benchmark_does_not_publish_is_named(tmp_path, name, files, told):
    with pytest.raises(ValueError, match=told):
        loaded(name, tmp_path, **files)
