from argparse import ArgumentParser

import pytest

from afn_model.cli.curate_benchmarks import _items_of, add_curate_benchmarks, curate_benchmarks
from afn_model.curate.benchmark_index import BenchmarkItem, read_index
from afn_model.eval.items import Item, ItemClip


def test_an_item_has_its_words_once_and_every_recording():
    item = Item("7", "Who?", (ItemClip("a.wav", 1.0, 2.0), ItemClip("b.wav")), answer="He", references=("Said he.", ""))
    first, second = _items_of("mmau-pro", item)
    assert first == BenchmarkItem("mmau-pro", "7", "a.wav", 1.0, 2.0, ("Who? He", "Said he."))
    assert second == BenchmarkItem("mmau-pro", "7", "b.wav")
    assert list(_items_of("voicebench", Item("1", "Say it."))) == [BenchmarkItem("voicebench", "1", texts=("Say it.",))]


@pytest.mark.parametrize(
    ("extra", "video"),
    [
        ({"youtube_id": "abcdefghijk", "start_time": "30"}, ("abcdefghijk", 30.0, 40.0)),
        ({"url": "https://youtu.be/abcdefghijk", "timestamp": "01:02:03,01:02:13.5"}, (3723.0, 3733.5)),
        ({"url": "https://youtu.be/abcdefghijk", "timestamp": "all"}, (None, None)),
        ({"timestamp": "00:01,00:02"}, ("", None, None)),
    ],
)
def test_times_of_videos(extra, video):
    (one,) = _items_of("b", Item("1", extra=extra))
    assert (one.video, one.video_start, one.video_end)[-len(video) :] == video


def test_what_is_missing_is_said(tmp_path, capsys):
    parser = ArgumentParser()
    add_curate_benchmarks(parser)
    given = ["--data", str(tmp_path), "--suite", "mmar,gtzan", "--out", str(tmp_path / "index")]
    assert curate_benchmarks(parser.parse_args(given)) == 3
    said = capsys.readouterr()
    assert "afn: mmar: " in said.err
    assert "afn: gtzan: " in said.err
    assert "0 items with 0 recordings" in said.out
    assert read_index(tmp_path / "index").items == []
