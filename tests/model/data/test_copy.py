"""A copy of a corpus: the same records and samples, whatever it was copied from, or nothing."""

import json

import pytest
import torch

from afn_model.audio.recording import load
from afn_model.data.copy import copy
from afn_model.data.index import Corpus, build
from afn_model.data.records import audios_of, check, parse_sample
from tests.corpora import clip, tar

CLIPS = [clip(0.5, seed=1), clip(0.75, "WAV", seed=2)]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "src" / "clips").mkdir(parents=True)
    (tmp_path / "src" / "clips" / "a.flac").write_bytes(CLIPS[0])
    tar(tmp_path / "src" / "x.tar", {"b.wav": CLIPS[1]})
    said = [{"role": "user", "content": "<sound>What is said?"}, {"role": "assistant", "content": "One."}]
    both = [{"role": "user", "content": "<sound><sound>Which?"}, {"role": "assistant", "content": "Two."}]
    rows = [
        {"id": "1", "audios": [{"path": "clips/a.flac", "start": 0.25}], "messages": said},
        {"id": "2", "audios": ["clips/a.flac", "x.tar#b.wav"], "messages": both, "duration": [0.5, 0.75]},
        {"id": "3", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    ]
    path = tmp_path / "src" / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(path, check=check, measure=True)
    return Corpus(path)


def samples(corpus):
    parsed = [parse_sample(corpus[number], corpus.folder) for number in range(len(corpus))]
    return [(sample.id, [turn.text for turn in sample.turns]) for sample in parsed], [
        load(audio) for sample in parsed for audio in audios_of(sample)
    ]


def test_a_copy_holds_the_same_and_each_recording_once(corpus, tmp_path):
    seen = []
    assert copy(corpus.path, tmp_path / "out.jsonl", max_bytes=20_000, progress=seen.append) == sum(seen) == 3
    build(tmp_path / "out.jsonl", check=check)
    found = Corpus(tmp_path / "out.jsonl")
    assert [found.seconds(number) for number in range(3)] == [0.25, 1.25, 0.0] == list(next(corpus.all_seconds()))
    (texts, heard), (like, expected) = samples(found), samples(corpus)
    assert texts == like
    assert all(torch.equal(one, other) for one, other in zip(heard, expected, strict=True))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["part-00000.tar", "part-00001.tar"]
    paths = [audio for number in range(2) for audio in found[number]["audios"]]
    assert paths[0]["path"] == paths[1] == "out/part-00000.tar#000000000-0.flac"


def test_nothing_is_left_of_a_copy_that_fails_or_written_over(corpus, tmp_path):
    tar(tmp_path / "src" / "x.tar", {"c.wav": CLIPS[1]})
    build(corpus.path)
    with pytest.raises(ValueError, match=r"c\.jsonl\[1\]: .*x\.tar: no member 'b\.wav' among its 1$"):
        copy(corpus.path, tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]
    (tmp_path / "out").mkdir()
    for name, problem in [("out.jsonl", "out: is there already"), ("no/out.jsonl", "no such folder"), ("c", "ends in")]:
        with pytest.raises(ValueError, match=problem):
            copy(corpus.path, tmp_path / name)
    assert (tmp_path / "out").is_dir()
