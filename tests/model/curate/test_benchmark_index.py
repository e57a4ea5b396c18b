import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="recordings speak with espeakng-loader")

from afn_model.curate import benchmark_index as bench
from afn_model.curate.fingerprint import fingerprint
from tests.model.curate.audio import SAMPLE_RATE, recordings, tensor, vorbis


def test_an_index_is_what_was_given(tmp_path):
    pcm = recordings()
    (tmp_path / "a.ogg").write_bytes(vorbis(pcm["speech 0"]))
    (tmp_path / "tone.ogg").write_bytes(vorbis(np.zeros(SAMPLE_RATE, np.float32)))
    path, item = str(tmp_path / "a.ogg"), bench.BenchmarkItem
    given = [
        item("b", "1", path, texts=("What is said? A word.",), video="https://youtu.be/abcdefghijk?t=3"),
        item("b", "2", path),  # the same clip
        item("b", "3", path, 0.5, 2.5, video="abcdefghijk", video_start=30.0, video_end=40.0),
        item("c", "1", str(tmp_path / "tone.ogg")),
        item("c", "2", str(tmp_path / "none.wav")),
        item("c", "3", texts=("No recording.",)),
    ]
    counts = bench.build(given, tmp_path / "index")
    assert (counts.items, counts.clips, counts.silent) == (6, 3, ["c/1"])
    assert counts.seconds == pytest.approx(len(pcm["speech 0"]) / SAMPLE_RATE + 3, abs=0.1)
    (missing,) = counts.missing
    assert missing.startswith("c/2: ")
    assert "none.wav" in missing
    index = bench.read_index(tmp_path / "index")
    assert [one["clip"] for one in index.items] == [0, 0, 1, 2, None, None]
    assert [one["item"] for one in index.videos["abcdefghijk"]] == ["1", "3"]
    assert index.items[0]["texts"] == ["What is said? A word."]
    assert (index.items[2]["start"], index.items[2]["end"]) == (30.0, 40.0)
    query = fingerprint(tensor(pcm["speech 0"][SAMPLE_RATE // 4 :]))
    assert {one.name for one in index.sounds.matches(query)} == {"0", "1"}
    assert index.of_clip[0]["item"] == "1"


def test_other_items_are_another_hash_and_other_files_are_no_index(tmp_path):
    hashes = []
    for texts in (("one",), ("two",), ("one",)):
        bench.build([bench.BenchmarkItem("b", "1", texts=texts)], tmp_path)
        hashes.append(bench.index_hash(tmp_path))
    assert hashes[0] == hashes[2] != hashes[1]
    assert len(bench.read_index(tmp_path).sounds.codes) == 0
    (tmp_path / bench.ITEMS).write_text((tmp_path / bench.ITEMS).read_text().replace("one", "won"))
    bench._read.cache_clear()
    with pytest.raises(ValueError, match=r"not those that index\.json tells of"):
        bench.read_index(tmp_path)
    with pytest.raises(ValueError, match="no index of benchmarks; afn curate benchmarks makes one"):
        bench.index_hash(tmp_path / "none")
    facts = tmp_path / bench.FACTS
    facts.write_text(facts.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(ValueError, match="version 0, not 1; make it again with afn curate benchmarks"):
        bench.index_hash(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("abc-efg_ijk", "abc-efg_ijk"),
        ("https://www.youtube.com/watch?list=5&v=abcdefghijk&t=4s", "abcdefghijk"),
        ("https://youtube.com/shorts/abcdefghijk", "abcdefghijk"),
        ("https://example.org/watch?v=abcdefghijk", ""),
        ("https://youtu.be/abcdefghijkl", ""),
        ("", ""),
    ],
)
def test_ids_of_videos(text, found):
    assert bench.youtube_id(text) == found
