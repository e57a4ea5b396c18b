"""Copies of captions and open answers hold what is odd about the real files."""

from itertools import pairwise
from pathlib import Path

import pytest

from afn_model.eval.copies import write_copies
from afn_model.eval.copies.captions import audiocaps
from afn_model.eval.copies.sounds import Sounds
from afn_model.eval.loaders import load
from afn_model.eval.table import benchmarks

LOADERS = ("clotho", "audiocaps", "songcaps", "longaudiobench", "musicinstruct")
ROWS = [row for row in benchmarks().values() if row.loader in LOADERS]


def test_copies_are_a_function_of_the_seed(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_copies(ROWS, tmp_path / name, seed=seed)
    held = [
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two", "three")
    ]
    assert held[0] == held[1]
    assert held[0].keys() == held[2].keys()
    assert held[0] != held[2]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_items_have_their_recordings(tmp_path, row):
    write_copies([row], tmp_path)
    items = load(row, tmp_path)
    assert len(items) == 5
    assert all(Path(clip.path).is_file() for item in items for clip in item.clips)


def test_audiocaps_has_each_name_of_recordings_and_captions_that_are_apart(tmp_path):
    audiocaps(tmp_path, Sounds())
    lines = (tmp_path / "test.csv").read_text().splitlines()
    videos = [line.split(",")[1] for line in lines[1:]]
    assert len(videos) == 25
    assert all(one != other for one, other in pairwise(videos))
    names = sorted(path.name for path in (tmp_path / "test").iterdir())
    assert names[0].startswith("-video_0000_30.flac")
    assert "104.wav" in names
    assert len(names) == 5
