"""CIDEr-D and its tokeniser against pycocoevalcap 1.2, whose numbers cider_golden.json has."""

import math
import random

import numpy as np
import pytest

from afn_model.eval.rules.cider import SIGMA, cider_d, tokens
from tests.model.eval.rules.cider_golden import golden, scores_of, words_of

GOLDEN = golden()
# Scores of 0 to 10 are sums of at most 1,000 products in float64, rounded once each.
BUDGET = 10 * 1000 * 2.0**-52
# Where our tokeniser cuts otherwise than CoreNLP's, and at what.
DIFFERS = {
    "* starred # hash @ at ~ tilde ^ caret _ under <tag> |pipe| \\back": "tags",
    "www.example.com a@b.com": "addresses",
    "http://a.b/c": "addresses",
    "#1 hit @home 50/50": "addresses",
    "more'n whatcha gotcha": "'n",
    "C++ C# R&B AT&T B&W": "C++ and AT&T",
    ":) :-( ;) <3": "smileys",
    "20° outside ±3 §4 €5 ¥3 ©x ™": "signs",
    "9-1-1 24-hour 5.1-channel v2.0": "versions",
    "it''s  \"\" '' ``": "doubled apostrophes",
}


def split(words):
    return [text.split() for text in words]


def test_captions_are_cut_as_corenlp_cuts_them():
    assert len(GOLDEN["sets"]) >= 40
    for one in GOLDEN["sets"]:
        for caption, words in zip(one["captions"], one["words"], strict=True):
            assert tokens(caption) == words.split(), caption


def test_odd_texts_are_cut_as_corenlp_cuts_them_but_for_those_that_are_named():
    assert {text for text, words in GOLDEN["texts"] if tokens(text) != words.split()} == set(DIFFERS)
    assert len(GOLDEN["texts"]) > 10 * len(DIFFERS)


def test_scores_are_those_of_the_library():
    sets = [split(one["words"]) for one in GOLDEN["sets"]]
    found = cider_d([words[0] for words in sets], [words[1:] for words in sets])
    assert np.abs(found - [one["score"] for one in GOLDEN["sets"]]).max() <= BUDGET
    assert 0 == min(found) < 2 < max(found)


def test_the_formula_by_hand():
    """Two items. Each word is in one of them and weighs ln 2, but "a" is in both and weighs nothing."""
    found = cider_d([["a", "dog", "dog"], []], [[["a", "dog"], ["a", "cat", "sat", "down"]], [["a", "bird"]]])
    # n = 1: the second "dog" is clipped: ln 2 · ln 2 ÷ (2 ln 2 · ln 2). n = 2: "a dog" of "a dog", "dog dog".
    alike = (1 / 2 + 1 / math.sqrt(2)) / 4
    assert found == pytest.approx([10 * alike * math.exp(-1 / (2 * SIGMA**2)) / 2, 0], rel=BUDGET)


def test_a_set_of_one_has_nothing_rare_and_a_caption_equal_to_its_only_reference_has_ten():
    words = ["a", "dog", "barks", "at", "a", "car"]
    assert cider_d([words], [[words]]) == [0]
    assert cider_d([words, []], [[words], [["rain"]]]) == pytest.approx([10, 0], rel=BUDGET)
    assert cider_d([], []).shape == (0,)


@pytest.mark.parametrize(("references", "problem"), [([[]], "item 0 has no reference"), ([], "1 candidates for")])
def test_what_cannot_be_scored(references, problem):
    with pytest.raises(ValueError, match=problem):
        cider_d([["a"]], references)


def test_the_library_itself():
    """Live, where it is importable: what the file says, and captions of random words, clipping and lengths included."""
    pytest.importorskip("pycocoevalcap")
    draw = random.Random(7)
    sets = [
        [[draw.choice("abcdefgh") for _ in range(draw.randrange(12))] for _ in range(draw.randrange(2, 7))]
        for _ in range(40)
    ]
    found = cider_d([some[0] for some in sets], [some[1:] for some in sets])
    theirs = scores_of([[" ".join(words) for words in some] for some in sets])
    assert np.abs(found - theirs).max() <= BUDGET
    some = GOLDEN["sets"][:5]
    assert words_of([one["captions"] for one in some]) == [one["words"] for one in some]
