"""Copies of captions hold what is odd about the real files."""

from itertools import pairwise

from afn_model.eval.copies.captions import audiocaps
from afn_model.eval.copies.sounds import Sounds


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
