"""Texts as word error rates compare them: golden vectors worked out by hand from the rules."""

import pytest

from afn_model.eval.rules import normalisers
from afn_model.eval.rules.normalisers import NORMALISERS, OPENASR_NAMES, acronyms, normaliser
from afn_model.eval.score import RuleError

pytest.importorskip("whisper_normalizer", reason="whisper_normalizer (the eval extra) is not installed")
WHISPER, OPENASR, GIGASPEECH = "whisper@0.1.15", "openasr@d1e99b2", "gigaspeech-official@44289e4"


def said(name: str, text: str, language: str = "en") -> str:
    return " ".join(normaliser(name, language)(text).split())


@pytest.mark.parametrize(
    ("text", "openasr", "whisper"),
    [
        # What both do.
        ("It's twenty-one dollars.", "it is $21", "it is $21"),
        ("I WON'T, she said [laughs] (twice).", "i will not she said", "i will not she said"),
        ("Mr. Jones's colour", "mister jones s color", "mister jones is color"),
        ("the 1,000th café", "the 1000th cafe", "the 1000th cafe"),
        ("it 's here", "it is here", "it is here"),
        # Fillers: more of them.
        ("um, uh-huh, aha eh em yes", "yes", "huh aha eh em yes"),
        # Contractions: 's is "is" after some words only, and four words stay as they are.
        ("John's cat, and what's that", "john s cat and what is that", "john is cat and what is that"),
        ("kinda sorta dunno cause", "kinda sorta dunno cause", "kind of sort of do not know because"),
        # Compounds, before numbers and acronyms.
        ("the e-mail on my Wi-Fi", "the email on my wifi", "the e mail on my wi fi"),
        ("all right, O.K., how ever", "alright okay however", "all right 0 k how ever"),
        ("at 5 p.m.", "at 5 pm", "at 5 p m"),
        # Names.
        ("Stephen and Kathryn MacDonald", "steven and catherine mcdonald", "stephen and kathryn macdonald"),
        # Acronyms: letters and digits that stand alone.
        ("the B.B.C. on 5G", "the bbc on 5g", "the b b c on 5 g"),
        ("my U.S. car", "my us car", "my u s car"),
        ("I have a U.S. car", "i have aus car", "i have a u s car"),  # the rule takes the article, too
        ("a b", "a b", "a b"),
        ("an a b c", "an abc", "an a b c"),
        # Spellings.
        (
            "OK, a cancellation of archaeology",
            "okay a cancelation of archeology",
            "ok a cancellation of archeology</span>",
        ),
    ],
)
def test_the_leaderboard_s_rule_beside_that_of_whisper(text, openasr, whisper):
    assert said(OPENASR, text) == openasr
    assert said(WHISPER, text) == whisper


def test_every_spelling_of_a_name_becomes_one():
    names = OPENASR_NAMES.replace("|", " ").split()
    assert len(names) == len(set(names))
    assert said(OPENASR, "Muhammad Muhamed Mohamad Mahomet") == "mohammed muhamed mohammed mohammed"
    assert said(OPENASR, "walther WALTHER Walter") == "walter walter walter"


def test_single_letters_that_have_an_a_or_an_i_among_them_need_a_third():
    for words, expected in (("x y", "xy"), ("a x", "a x"), ("i 5", "i 5"), ("a i x", "aix"), ("to x y to", "to xy to")):
        assert " ".join(acronyms(words.split())) == expected
    assert acronyms([]) == []


def test_gigaspeech_scores_upper_case_words_without_fillers_and_tags():
    text = "um it's <COMMA> state-of-the-art <music> Yeah <period>"
    assert said(GIGASPEECH, text) == "IT'S STATE OF THE ART YEAH"
    assert said(GIGASPEECH, "<SIL>") == ""


def test_other_languages_lose_case_and_punctuation_and_marks_may_stay():
    assert said(WHISPER, "Grüß Gott, Straße (leise)!", "de") == "grüß gott straße"
    assert said(WHISPER, "他说：“早上好。”", "zh") == "他说 早上好"
    assert said("whisper-marks@0.1.15", "ที่นี่", "th") == "ที่นี่" != said(WHISPER, "ที่นี่", "th")
    assert said("none", "  As It Is!") == "As It Is!"


def test_a_rule_says_its_version_and_what_it_cannot_do(monkeypatch):
    for name in NORMALISERS:
        assert normaliser(name).name == name
    with pytest.raises(RuleError, match="openasr@d1e99b2 is for English, got 'de'"):
        normaliser(OPENASR, "de")
    with pytest.raises(RuleError, match=r"whisper@2: no such normaliser; there are whisper@0.1.15"):
        normaliser("whisper@2")
    fresh = normaliser.__wrapped__
    monkeypatch.setattr(normalisers, "version", lambda package: "0.2.0")
    assert fresh(WHISPER).name == "whisper@0.2.0"
    assert fresh(OPENASR).name == "openasr@d1e99b2 (whisper_normalizer 0.2.0, not 0.1.15)"


def test_numbers_too_long_for_the_library_are_words():
    digits = "9" * 5000  # beyond what Python makes an integer of
    assert said("whisper@0.1.15", f"A {digits}") == f"a {digits}"
