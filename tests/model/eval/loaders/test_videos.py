"""Clips of videos."""

import pytest

from afn_model.eval.loaders.videos import Videos
from tests.model.eval.loaders.written import put


@pytest.mark.parametrize("video", ["abcdefghijk", "Ybcdefghijk", "-bcdefghij_", "a-c_e-12_34"])
@pytest.mark.parametrize(
    "form", ["{}.wav", "Y{}.flac", "{}_30.mp3", "Y{}_30_40.ogg", "[{}]-[30-40].wav", "{}_30.0-40.0.m4a"]
)
def test_a_clip_is_found_by_its_video_whatever_was_put_around_it(tmp_path, video, form):
    here = put(tmp_path / "deep" / "down" / form.format(video))
    put(tmp_path / f"{form.format('zzzzzzzzzzz')}")
    assert Videos(tmp_path).path(video) == here


def test_a_name_in_full_comes_before_a_name_with_times_and_nothing_else_is_taken(tmp_path):
    exact = put(tmp_path / "test" / "abcdefghijk.wav")
    put(tmp_path / "abcdefghijk_30.wav")
    named = put(tmp_path / "103549.flac")
    put(tmp_path / "lmnopqrstuv.json")
    put(tmp_path / "lmnopqrstuvw.wav")
    videos = Videos(tmp_path)
    assert videos.path("abcdefghijk") == exact
    assert videos.path("lmnopqrstuv", "1", "103549") == named
    assert videos.path("lmnopqrstuv") == str(tmp_path / "lmnopqrstuv.wav")
