"""Speech recognition from official files; the copies have them."""

import json
from itertools import pairwise

import pytest

from afn_model.audio.decode import load_audio
from afn_model.audio.recording import read_whole
from afn_model.eval.copies import speech as copies
from afn_model.eval.copies.sounds import Sounds
from afn_model.eval.items import ItemClip
from afn_model.eval.loaders import load, speech
from afn_model.eval.loaders.files import UNSCORED, Files
from afn_model.eval.table import benchmarks

ROWS = {
    name: row
    for name, row in benchmarks().items()
    if row.loader in ("librispeech", "spgispeech", "tedlium", "gigaspeech", "common-voice", "voxpopuli", "open-asr")
}


@pytest.fixture(scope="module")
def sounds():
    pytest.importorskip("espeakng_loader", reason="speech synthesis (the demo extra) is not installed")
    return Sounds(0)


def seconds(clip: ItemClip) -> float:
    """How long the sound of a clip is."""
    return len(load_audio(clip.path, start=clip.start, end=clip.end)) / 16000


def span(clip: ItemClip) -> float:
    assert clip.start is not None
    assert clip.end is not None
    return clip.end - clip.start


def made(name, write, sounds, folder):
    """The items of a row from its copy."""
    (folder / name).mkdir()
    write(folder / name, sounds)
    return load(ROWS[name], folder)


def test_librispeech_takes_the_chapters_of_one_split(sounds, tmp_path):
    items = made("librispeech-clean", copies.librispeech, sounds, tmp_path)
    assert [item.id for item in items] == ["121-121726-0000", "121-121726-0001", "61-70968-0000", "61-70968-0001"]
    assert all("/test-clean/" in item.clips[0].path and item.references[0].isupper() for item in items)
    gone = tmp_path / items[1].clips[0].path
    gone.unlink()
    again = load(ROWS["librispeech-clean"], tmp_path)
    assert again == items, "a recording that is absent keeps its path, which errors will name"
    assert str(gone).endswith("121/121726/121-121726-0001.flac")
    assert 0.4 < seconds(items[0].clips[0]) < 3
    (tmp_path / "librispeech-clean/LibriSpeech/test-clean/61/70968/61-70968.trans.txt").write_text("61-70968-0000")
    with pytest.raises(ValueError, match="line 1: an utterance and its text are expected, got '61-70968-0000'"):
        load(ROWS["librispeech-clean"], tmp_path)


def test_tables_without_quotes(sounds, tmp_path):
    items = made("spgispeech", copies.spgispeech, sounds, tmp_path)
    assert items[4].references == ("\"We'll e-mail the colour.",)
    assert len(items) == 5
    assert seconds(items[4].clips[0]) > 1
    assert items[4].clips[0].path.endswith("/test/" + items[4].id)
    items = made("common-voice", copies.common_voice, sounds, tmp_path)
    assert items[4].references == ("\"It's twenty one dollars.",)
    assert len(items) == 5
    assert seconds(items[4].clips[0]) > 1
    items = made("voxpopuli", copies.voxpopuli, sounds, tmp_path)
    assert [item.references[0] for item in items[2:4]] == ["", "dr allan isn't there um yet"]
    assert all("test_part_0" in item.clips[0].path for item in items)


def test_tedlium_s_segments_are_parts_of_one_recording(sounds, tmp_path):
    items = made("tedlium", copies.tedlium, sounds, tmp_path)
    assert {item.clips[0].path for item in items} == {items[0].clips[0].path}
    assert len(items) == 5
    assert seconds(items[0].clips[0]) == pytest.approx(span(items[0].clips[0]), abs=1e-3)
    assert items[2].references == ("it 's the colour <unk>",)
    assert [item.extra for item in items] == [{}, {}, {}, {UNSCORED: "ignore_time_segment_in_scoring"}, {}]
    assert all(a.clips[0].end == b.clips[0].start for a, b in pairwise(items))
    stm = next((tmp_path / "tedlium").rglob("*.stm"))
    stm.write_text(";; comment\n\ntalk 1 talk 0.5 soon <o,f0,male> no number")
    with pytest.raises(ValueError, match=r"line 3: no segment of an .stm"):
        load(ROWS["tedlium"], tmp_path)


def test_gigaspeech_reads_segments_of_a_subset_piece_by_piece(sounds, tmp_path, monkeypatch):
    items = made("gigaspeech", copies.gigaspeech, sounds, tmp_path)
    assert [item.id for item in items] == [f"POD0000000001_S{number:07d}" for number in range(4)]
    assert items[3].references == ("UM IT'S <COMMA> E-MAIL <PERIOD>",)
    assert items[0].groups == {"source": "podcast"}
    clip = items[3].clips[0]
    assert clip.path.endswith("audio/podcast/P0000/POD0000000001.opus")
    assert seconds(clip) == pytest.approx(span(clip), abs=1e-3)
    assert clip.start == items[2].clips[0].end
    path = tmp_path / "gigaspeech" / "GigaSpeech.json"
    train = list(speech.gigaspeech(Files(path.parent, {"transcripts": path.name}), subset="{L}"))
    assert [item.references for item in train] == [("NO",)] * 2  # of both recordings, one of them absent
    for chunk in (1, 7, 64, 1000):
        monkeypatch.setattr(speech, "_CHUNK", chunk)
        assert load(ROWS["gigaspeech"], tmp_path) == items


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"audio": []}', 'no JSON with a whole list "audios"'),
        ('{"audios": [{"aid": "a"', 'no JSON with a whole list "audios"'),
        ('{"audios": [3]}', "an object is expected"),
        ('{"audios": [{"aid": "a", "path": "p"}]}', "audio a: no field 'segments'"),
        (
            '{"audios": [{"path": "p", "segments": [{"sid": "s", "subsets": ["{TEST}"], "begin_time": "0"}]}]}',
            "field 'begin_time' is not what the benchmark publishes",
        ),
    ],
)
def test_gigaspeech_that_is_none(text, problem, tmp_path):
    (tmp_path / "gigaspeech").mkdir()
    (tmp_path / "gigaspeech" / "GigaSpeech.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        load(ROWS["gigaspeech"], tmp_path)


def test_the_leaderboard_s_tables_hold_recordings(sounds, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow (the eval extra) is not installed")
    items = made("open-asr-ami", copies.open_asr, sounds, tmp_path)
    assert [item.extra.get(UNSCORED) for item in items] == [None] * 4 + ["ignore_time_segment_in_scoring"]
    assert items[3].clips[0].path.endswith("test-00000-of-00001.parquet#1.1:audio")
    assert read_whole(items[3].clips[0].path)[:4] == b"RIFF"
    # They stand in for the files of any set.
    (tmp_path / "voxpopuli").mkdir()
    (tmp_path / "open-asr-ami" / "ami_cleaned").rename(tmp_path / "voxpopuli" / "voxpopuli")
    assert [item.references for item in load(ROWS["voxpopuli"], tmp_path)] == [item.references for item in items]
    # Not for Common Voice 15: theirs are of version 9.
    (tmp_path / "common-voice").mkdir()
    (tmp_path / "voxpopuli" / "voxpopuli").rename(tmp_path / "common-voice" / "common_voice")
    with pytest.raises(ValueError, match=r"no test.tsv or .* in it$"):
        load(ROWS["common-voice"], tmp_path)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_files_that_are_missing_or_have_changed_are_named(name, tmp_path):
    with pytest.raises(ValueError, match=f"{ROWS[name].name}: no .* in it"):
        load(ROWS[name], tmp_path)
    if name in ("spgispeech", "common-voice", "voxpopuli"):
        patterns = ROWS[name].files["transcripts"]
        path = tmp_path / name / patterns[0]
        path.parent.mkdir(parents=True)
        path.write_text("file\ttext\n1.wav\tone\n".replace("\t", "|" if name == "spgispeech" else "\t"))
        with pytest.raises(ValueError, match=r"line 2: no field '.*'; there are file, text"):
            load(ROWS[name], tmp_path)


def test_every_row_of_the_paper_compares_two_named_normalisers():
    rows = [row for row in ROWS.values() if row.row]
    assert [row.row for row in rows] == [18, 18, 19, 20, 21, 22, 23]
    for row in rows:
        used = [scorer["normaliser"] for scorer in row.scorers]
        assert used[:2] == ["whisper@0.1.15", "openasr@d1e99b2"]
        assert used[-1] == "none"
        assert row.lower
        assert row.unknown == ("the normaliser behind Table 1",)
    assert json.dumps([row.targets["instruct"] for row in rows]) == "[1.54, 2.76, 1.91, 3.3, 9.8, 7.2, 5.4]"
