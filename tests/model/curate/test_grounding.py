"""Captions that stand on annotations, sentence by sentence."""

import pytest

from afn_model.curate.grounding import grounded, stem, stems

HEARD = ["sound: A dog is barking while rain falls on a roof.", "speech: hello there", "voice: A young man talks fast."]
SEEN = ["A dog in a blue coat next to a bicycle."]


@pytest.mark.parametrize(
    ("sentence", "why"),
    [
        ("A dog barks in the rain.", ""),
        ("Someone says hello, and a man talks.", ""),
        ("It then fades.", "no annotation has"),
        ("Dogs bark as a train passes over a bridge made of steel.", "no annotation has"),
        ("A trumpet plays.", "no annotation has"),
        ("A dog in a blue coat barks.", "only seen"),
        ("A dog barks at the camera.", "only seen"),
        ("A dog barks beside a bicycle.", "only seen"),
        ("A dog barks at 12 seconds.", ""),
        ("A dog barks at 0:31.", "times outside"),
        ("Rain falls from 5 to 40 seconds.", "times outside"),
        ("The rain lasts 40 seconds.", ""),
    ],
)
def test_sentences(sentence, why):
    found = grounded(f"A dog barks. {sentence}", [], HEARD, SEEN, seconds=30.0)
    assert found.text == ("A dog barks." if why else f"A dog barks. {sentence}")
    assert sum(found.tally.values()) == bool(why)
    assert all(why in told for told in found.tally)


def test_events():
    told = ["a dog barks", "a cat meows", "rain on a roof"]
    found = grounded("A dog barks while a cat meows. The dog barks again.", told, HEARD, seconds=30.0)
    assert found.text == "The dog barks again."  # no annotation has the cat, which is in the other sentence
    assert found.events == ("a dog barks",)  # and the rain is in no sentence
    assert found.tally == {"events that no annotation has": 1, "sentences that no annotation has": 1}
    heard_of = grounded("The screen is red.", [], ["sound: He says: the screen is red."], SEEN, seconds=30.0)
    assert heard_of.text  # somebody says so


def test_forms_of_a_word_are_one():
    assert {stem(word) for word in ("bark", "barks", "barking", "barked")} == {"bark"}
    assert len({stem(word) for word in ("ring", "rings", "ringing")}) == 1
    assert len({stem(word) for word in ("running", "runs", "run")}) == 1
    assert len({stem(word) for word in ("cry", "cries", "cried")}) == 1
    assert stems("A man says the words") == ["man", "speak", "speak"]
