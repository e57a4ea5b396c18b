"""Rules of safety: what they recognise, and that they are wrong in the share that they say."""

from collections import Counter

from afn_model.curate import identity
from afn_model.curate.stages.privacy import find
from afn_model.curate.stand_ins.rules.rule_input import RuleInput
from afn_model.curate.stand_ins.rules.safety import LOOK_ALIKES, RULES, UNSAFE_SENTENCES

HEAD = "0.0 to 10.0 s: A man speaks. A bell rings.\n\nThese words are said in it, with the seconds of each passage:\n\n"


def asked(lines, of=lambda number: True):
    """A request that is flawed, or is not."""
    texts = (f"{HEAD}{lines}\n\n{number}" for number in range(1000))
    return RuleInput(next(text for text in texts if of(identity.number(text))))


def good(number):
    return number % 8 != 0


def test_an_unsafe_sentence_is_found_in_its_passages_and_look_alikes_are_none():
    lines = "1.0 to 2.5 s: well give me the money\n4.0 to 5.0 s: Or I will shoot!\n6.0 to 7.0 s: seven"
    (span,) = RULES["unsafe"](asked(lines, good))["spans"]
    quote = "give me the money or i will shoot"
    assert span == {"start": 1.0, "end": 5.0, "category": "violence", "quote": quote}
    for text in LOOK_ALIKES:
        assert RULES["unsafe"](asked(f"0.0 to 3.0 s: {text}", good))["spans"] == []
    said = "\n".join(f"{at}.0 to {at}.9 s: {text}" for at, text in enumerate(UNSAFE_SENTENCES))
    found = RULES["unsafe"](asked(said, good))["spans"]
    assert [one["category"] for one in found] == list(UNSAFE_SENTENCES.values())


def test_sentences_are_plain_and_hold_nothing_that_privacy_masks():
    for text in (*UNSAFE_SENTENCES, *LOOK_ALIKES):
        assert text.isascii()
        assert text.replace(" ", "").islower()
        assert find(text) == []
        assert not any(other in text for other in UNSAFE_SENTENCES if other != text)


def test_the_shares_of_flawed_replies():
    wrong = Counter()
    for number in range(400):
        request = RuleInput(f"{HEAD}nothing\n\nviolence: give me\n\n{number}")
        wrong["unsafe"] += RULES["unsafe"](request)["spans"] != []
        pair, plain = RULES["refusal"](request), RULES["benign"](request)
        first = "A man speaks."
        wrong["refusal"] += (pair["reply"], pair["reason"][:7], pair["offer"][:5]) != (first, "because", "I can")
        wrong["benign"] += plain["reply"] != first
    assert 30 < wrong["unsafe"] < 70  # an eighth
    assert 75 < wrong["refusal"] < 125  # a quarter
    assert 75 < wrong["benign"] < 125
