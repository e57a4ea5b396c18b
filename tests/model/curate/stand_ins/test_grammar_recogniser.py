"""The recogniser of the world's phrases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from afn_model.curate.stand_ins.grammar_recogniser import PocketSphinx
from afn_model.eval.copies.sounds import save
from tests.model.curate.scenes import SENTENCES, VARIANTS, sounds

pytest.importorskip("pocketsphinx")


@pytest.fixture(scope="module")
def recogniser() -> PocketSphinx:
    return PocketSphinx([sentence.capitalize() + "." for sentence in SENTENCES])


def test_sentences_and_their_times(recogniser, tmp_path):
    said = [(f"{SENTENCES[at]}. {SENTENCES[3 - at]}", VARIANTS[at]) for at in range(2)]
    paths = []
    for at, (text, variant) in enumerate(said):
        sounds().begin(at)
        paths.append(save(tmp_path / f"{at}.wav", sounds().speech(text, variant=variant, around=1.0)))
    found = [recogniser(path) for path in paths]
    for (text, _), words in zip(said, found, strict=True):
        assert [word["word"] for word in words] == text.replace(".", "").split()
        assert words[0]["start"] == pytest.approx(1.0, abs=0.15), "a second of silence comes first"
        assert all(a["end"] <= b["start"] + 0.01 and b["start"] < b["end"] for a, b in itertools.pairwise(words))
    loud = save(tmp_path / "loud.wav", np.random.default_rng(0).uniform(-1, 1, 32_000))
    scores = set()
    for before in (paths[1], loud):
        recogniser(before)
        assert recogniser(paths[0]) == found[0]
        scores.add(recogniser.decoder.hyp().best_score)
    assert len(scores) == 1, "it forgets"
    middle = found[0][8]["start"] - 0.1
    assert [word["word"] for word in recogniser(paths[0], middle)] == SENTENCES[3].split()
    assert recogniser(paths[0], middle)[0]["start"] == pytest.approx(found[0][8]["start"], abs=0.1)


def test_what_it_cannot_know():
    with pytest.raises(ValueError, match="a grammar needs phrases"):
        PocketSphinx(["?"])
    with pytest.raises(ValueError, match="dictionary has no xyzzyx"):
        PocketSphinx(["open xyzzyx"])
