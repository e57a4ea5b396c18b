"""Scenes whose truth is exact."""

import itertools

import numpy as np
import pytest

from afn_model.curate.stand_ins.scenes import EFFECTS, HeardScene, cast, mixed, sounds, talk, word_times
from afn_model.curate.stand_ins.spoken import SENTENCES
from afn_model.world.espeak import Espeak
from afn_model.world.words import voice_of

RATE = 16_000


@pytest.fixture(scope="module")
def espeak():
    with Espeak() as engine:
        yield engine


def loud(pcm):
    """Which tenths of a second are loud."""
    frames = pcm[: len(pcm) // 1600 * 1600].reshape(-1, 1600)
    return (frames * frames).mean(1) > 1e-5


def test_a_talk_is_heard_where_its_words_are(espeak):
    scene = HeardScene(espeak, np.random.default_rng(1))
    voices = cast(scene.rng, "en", set(), 1)
    talk(scene, voices, SENTENCES["en"][:2], "en")
    words = scene.truth()
    assert [one["label"] for one in words] == " ".join(SENTENCES["en"][:2]).split()
    assert all(one["end"] <= two["start"] + 0.001 for one, two in itertools.pairwise(words))
    said, pcm = np.zeros(len(loud(scene.samples())), bool), scene.samples()
    for one in words:
        said[int(one["start"] * 10) : int(np.ceil(one["end"] * 10))] = True
    assert not (loud(pcm) & ~said).any()
    assert np.abs(pcm).max() <= 1


def test_every_fourth_sentence_of_several_voices_interrupts(espeak):
    scene = HeardScene(espeak, np.random.default_rng(2))
    voices = cast(scene.rng, "en", set(), 2)
    assert {voice_of(one) for one in voices} == {"man", "woman"}
    talk(scene, voices, SENTENCES["en"][:4], "en")
    words = scene.truth()
    names = [f"{one.accent} {one.variant}" for one in voices]
    fourth = [one for one in words if one["speaker"] == names[1]][-len(SENTENCES["en"][3].split()) :]
    last = max(one["end"] for one in words if one["speaker"] == names[0])
    assert last == pytest.approx(fourth[0]["start"] + 0.4, abs=0.002)


def test_sounds_are_told_and_one_cast_has_nobody_of_another(espeak):
    scene, used = HeardScene(espeak, np.random.default_rng(3)), set()
    mixed(scene, cast(scene.rng, "de", used, 1), SENTENCES["de"][:2], "de")
    sounds(scene, 3)
    kinds = [one["kind"] for one in scene.truth()]
    assert (kinds.count("sound"), kinds.count("note")) == (4, 1)
    assert {one["label"] for one in scene.truth() if one["kind"] == "sound"} <= set(EFFECTS)
    others = cast(scene.rng, "de", used, 3)
    assert len(used) == 4
    assert len(set(others)) == 3


def test_words_share_the_time_of_their_sentence():
    assert word_times("I am here.", 10.0) == [("i", 0.0, 2.0), ("am", 2.0, 5.0), ("here", 5.0, 10.0)]
