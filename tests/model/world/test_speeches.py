"""Phrases to learn to speak from: apart by split, the same on any number of processes, each behind its own voice."""

import json

import numpy as np
import pytest

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.recording import load
from afn_model.data import records
from afn_model.data.records import audios_of, parse_sample
from afn_model.world import speeches
from afn_model.world.speeches import MOST_WORDS, SPOKEN, TALKERS, phrase, spoken_words, write_speeches
from afn_model.world.words import VARIANTS

pytest.importorskip("espeakng_loader", reason="speech synthesis (the demo extra) is not installed")
SIZES = {"train": {"spoken": 6, "voices": 10}, "heldout": {"spoken": 3, "known": 3, "new": 3}}


def written(folder, monkeypatch, **options):
    """By split and axis, the records of a small world."""
    monkeypatch.setattr(speeches, "PROMPTS", 2)
    monkeypatch.setattr(speeches, "CHUNK", 4)
    write_speeches(folder, **SIZES, seed=2, **options)
    files = sorted(folder.glob("*/*.jsonl"))
    return {(f.parent.name, f.stem): [json.loads(line) for line in f.read_text().splitlines()] for f in files}


def test_what_is_heard_of_a_text():
    assert spoken_words("2.4 s") == ("two", "point", "four", "seconds")
    assert spoken_words(" Seven bell.") == ("seven", "bell")
    assert spoken_words("arriba") == spoken_words("24 s") == spoken_words("seven, bell") == ()


def test_no_sequence_is_in_both_splits():
    found = {}
    for split, least in (("train", 1), ("heldout", 2)):
        rng = np.random.default_rng(0)
        found[split] = {phrase(rng, split, least).words for _ in range(1500)}
    assert {len(words) for words in found["train"]} == {1, 2, 3, 4}
    assert {len(words) for words in found["heldout"]} == {2, 3, 4}
    assert not found["train"] & found["heldout"]
    assert {word for words in found["train"] for word in words} == set(SPOKEN)
    assert {len(phrase(rng, "heldout", MOST_WORDS).words) for _ in range(50)} == {MOST_WORDS}


def test_records(tmp_path, monkeypatch):
    steps = []
    found = written(tmp_path, monkeypatch, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(n + 1, 33) for n in range(33)]
    assert {key: len(of) for key, of in found.items() if key[1] != "prompts"} == {
        (split, axis): count for split, sizes in SIZES.items() for axis, count in sizes.items()
    }
    for (split, axis), several in found.items():
        for record in several:
            records.check(record)
            sounds = [load(audio) for audio in audios_of(parse_sample(record, tmp_path / split))]
            lengths = record["duration"] if axis == "spoken" else [record["duration"]]
            assert [len(pcm) / SAMPLE_RATE for pcm in sounds] == pytest.approx(lengths)
            assert 0.3 < sounds[-1].abs().max() < 1
            said = spoken_words(record["messages"][-1]["content"])
            assert said == tuple(record["truth"]["words"].split())
    for split in SIZES:
        prompts = {one["audios"][0]["path"]: one["truth"]["voice"] for one in found[split, "prompts"]}
        spoken = found[split, "spoken"]
        assert {one["truth"]["voice"] for one in spoken} == set(TALKERS)
        assert all(prompts[one["audios"][0]["path"]] == one["truth"]["voice"] for one in spoken)
    variants = {
        axis: {one["truth"]["speaker"]["variant"] for one in found["heldout", axis]} for axis in ("known", "new")
    }
    assert variants["known"] <= set(VARIANTS["train"])
    assert variants["new"] <= set(VARIANTS["heldout"])
    assert {one["truth"]["voice"] for one in found["train", "voices"]} > {""}, "some are by the two talkers"


@pytest.mark.slow
def test_two_processes_write_the_same(tmp_path, monkeypatch):
    assert written(tmp_path / "1", monkeypatch) == written(tmp_path / "2", monkeypatch, processes=2)
    for shard in (tmp_path / "1").rglob("*.tar"):
        assert shard.read_bytes() == (tmp_path / "2" / shard.relative_to(tmp_path / "1")).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"known": 1}}, "train has spoken, voices, not known"),
        ({"heldout": {"new": -1}}, "numbers must not be negative"),
        ({"seed": -1}, "numbers must not be negative"),
    ],
)
def test_what_cannot_be_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_speeches(tmp_path, **{**SIZES, "seed": 0, **change})
    assert not list(tmp_path.iterdir())
