import numpy as np

from afn_model.curate.texts import GRAM, Grams, grams, place_of, runs_of, texts_in, words_of

SENTENCE = "the quick brown fox jumps over the lazy dog while seven old men watch from afar"


def test_words_have_no_case_and_no_punctuation():
    assert words_of("Don’t STOP, the ﬁsh!") == ["don't", "stop", "the", "fish"]


def test_texts_are_found_wherever_they_are():
    nested = {"segments": [{"start": 0.0, "kind": "speech", "text": "one"}, {"text": "two"}], "question": "three"}
    assert list(texts_in(nested)) == ["three", "one", "two"]
    assert list(texts_in([nested["question"], ("four",), None, 5])) == ["three", "four"]


def test_a_sequence_is_the_same_in_every_text_and_no_other_is():
    words = SENTENCE.split()
    inside = grams(["before", *words, "after"])
    assert np.array_equal(inside[1:-1], grams(words))
    assert len(grams(words)) == len(words) - GRAM + 1
    assert len(grams(words[: GRAM - 1])) == 0
    for place in range(GRAM):  # each word counts, and so does their order
        assert grams([*words[:place], "cat", *words[place + 1 : GRAM]])[0] != grams(words)[0]
    assert grams([words[1], words[0], *words[2:GRAM]])[0] != grams(words)[0]


def test_where_words_follow_one_another():
    text = words_of("A dog, then a bell, then a bell.")
    assert place_of(["a", "bell"], text) == range(3, 5)
    assert [place_of(words, text) for words in (["bell", "a"], [], [*text, "a"])] == [None] * 3
    assert runs_of("abc", 2) == [("a", "b"), ("b", "c")]
    assert runs_of("abc", 4) == []


def test_thirteen_words_in_common_are_found_and_twelve_are_not():
    words = SENTENCE.split()
    found = Grams([(3, "something else"), (7, SENTENCE.upper() + "?")])
    assert found.shared(["nothing", "So, " + " ".join(words[2 : 2 + GRAM])]) == (7, " ".join(words[2 : 2 + GRAM]))
    assert found.shared([" ".join(words[: GRAM - 1]), " ".join(words[GRAM - 1 :])]) is None
    assert Grams([]).shared([SENTENCE]) is None


def test_the_form_of_many_questions_is_nobodys():
    form = "which of the following options best describes the sound that is heard in the recording "
    texts = [(number, f"{form} {number}") for number in range(11)]
    assert Grams(texts, common=10).shared([form]) is None
    assert Grams(texts, common=11).shared([form]) == (0, " ".join(words_of(form)[:GRAM]))
    again = Grams([(0, SENTENCE)] * 20, common=1)  # the same item may say it often
    assert again.shared([SENTENCE]) is not None
