"""Recordings in which a run must find things."""

import json
from collections import Counter

import pytest

from afn_model.audio.decode import load_audio
from afn_model.audio.encode import flac
from afn_model.curate.stand_ins.recordings import COPIES, PLANTED, RECORDINGS, read_made, write_recordings
from afn_model.curate.stand_ins.truth import read_truth

FEW = {"mp3": 1, "vorbis": 1, "bytes": 1, "benchmark": 1, "broken": 1, "silent": 1, "denied": 1, "private": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import numpy as np

    folder = tmp_path_factory.mktemp("world")
    clip = folder / "clip.flac"
    clip.write_bytes(flac((3000 * np.random.default_rng(0).standard_normal(16_000)).astype("int16")))
    write_recordings(folder, plain=6, planted=FEW, long=0, clips=[clip])
    return folder


def test_each_kind_is_there_with_its_side_file_and_truth(world):
    made = read_made(world)
    assert Counter(one["kind"] for one in made) == Counter(FEW) + Counter(plain=6)
    truth = read_truth(str(world / "truth.jsonl"))
    for one in made:
        path = world / RECORDINGS / one["url"]
        told = json.loads(path.with_suffix(".info.json").read_text())
        assert told["license"] == one["licence"]
        if one["kind"] == "broken":
            with pytest.raises(ValueError, match="not audio"):
                load_audio(path)
        else:
            assert len(load_audio(path)) / 16_000 == pytest.approx(one["seconds"], abs=0.1)
            assert truth[one["source_id"]] == sorted(one["events"], key=lambda event: event["start"])
    by_url = {one["url"]: one for one in made}
    copies = {one["kind"]: (one, by_url[one["of"]]) for one in made if one["kind"] in COPIES}
    assert [one["source_id"] == of["source_id"] for one, of in copies.values()] == [kind == "bytes" for kind in copies]
    (private,) = (one for one in made if one["kind"] == "private")
    assert [event["label"] for event in private["events"]].count("five") == 3


def test_the_same_seed_gives_the_same_bytes(world, tmp_path):
    again = write_recordings(tmp_path, plain=4, planted={}, long=0)
    assert again == read_made(world)[:4]


def test_what_cannot_be_made(tmp_path):
    with pytest.raises(ValueError, match="clips of a benchmark are planted, and none is given"):
        write_recordings(tmp_path, planted=PLANTED)
    with pytest.raises(ValueError, match="3 plain recordings are fewer"):
        write_recordings(tmp_path, plain=3, planted=PLANTED, clips=["x"])
    with pytest.raises(ValueError, match="no recordings were made there"):
        read_made(tmp_path / "none")
