"""Checks of instructions, by hand from the rules."""

import pytest

from afn_model.eval.rules.instructions import CHECKS, follows, sentences

ROWS = [  # identifier, arguments, outputs that follow, outputs that do not
    ("Include Keywords", {"keywords": "dog, rain"}, ["Rainy dogs"], ["dog"]),
    ("Keyword Frequency", {"keyword": "dog", "N": 2}, ["Dog, dog. Dogs"], ["dog", "dog dog dog"]),
    ("Forbidden Words", {"forbidden_words": "cat, hat"}, ["dog"], ["that"]),
    ("Number Paragraphs", {"N": 2}, ["a *** b", "a***b***"], ["a\n\nb"]),
    ("Number Words (at least)", {"N": 2}, ["one two"], ["one"]),
    ("Number Words (at most)", {"N": 2}, ["one two", ""], ["one two three"]),
    ("Number Words (range)", {"N1": 2, "N2": 3}, ["one two", "one two three"], ["one", "one two three four"]),
    ("Number Sentences (at least)", {"N": 2}, ["One. Two."], ["Dr. One."]),
    ("Number Sentences (at most)", {"N": 1}, ["It is 3.5 m."], ["One. Two."]),
    ("Number Sentences (range)", {"N1": 2, "N2": 2}, ["One! Two?"], ["One", "A b. C d. E f."]),
    ("Postscript", {"postscript_marker": "P.S."}, ["Bye. PS: more", "maps"], ["Bye"]),
    ("Number Placeholder", {"N": 2}, ["[a] [b]", "[a][b][c]"], ["[a] []"]),
    ("Number Bullets", {"N": 2}, ["* a\n  * b"], ["- a\n- b", "* a\n* b\n* c", "*a\n*b"]),
    ("Title", {}, ["<<T>> x"], ["<T>", "<<>>"]),
    ("Minimum Number Highlighted Section", {"N": 1}, ["a *b* c"], ["a * b"]),
    ("Multiple Sections", {"N": 2, "section_splitter": "PART"}, ["PART 1\nPART 2", "a PART b"], ["PART 1"]),
    ("Repeat Prompt", {}, ["what is it? a dog"], ["a dog. What is it?"]),
    ("Two Responses", {}, ["a ****** b"], ["a ****** A", "a", "a******b******c"]),
    ("All Uppercase", {}, ["DOG 2"], ["Dog", "2"]),
    ("All Lowercase", {}, ["dog 2"], ["Dog", ""]),
    ("All-capital Words (at least)", {"N": 1}, ["a DOG"], ["a Dog"]),
    ("All-capital Words (at most)", {"N": 1}, ["a DOG"], ["I DO"]),
    ("All-capital Words (range)", {"N1": 1, "N2": 2}, ["I DO"], ["no", "I DO SO"]),
    ("Start Checker", {"start_phrase": "Well, now"}, ['"Well now, yes'], ["- Well, now", "Now"]),
    ("End Checker", {"end_phrase": "the end."}, ["It is The End!"], ["The end, I say"]),
    ("Quotation", {}, [' "a" '], ['"a', "'a'"]),
    ("No Commas", {}, ["a b", ""], ["a, b"]),
]


@pytest.mark.parametrize(("identifier", "given", "good", "bad"), ROWS)
def test_outputs_that_follow_and_that_do_not(identifier, given, good, bad):
    for output in good:
        assert follows(output, identifier, given, "What is it?"), output
    for output in bad:
        assert not follows(output, identifier, given, "What is it?"), output


def test_every_check_is_tried_and_no_other_is_known():
    assert {row[0] for row in ROWS} == set(CHECKS)
    assert not follows("a", "Haiku", {}, "")
    assert not follows("one two", "Number Words (at most)", {}, "")  # without a number it is 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two", 2),
        ("One... Two!? Three", 3),
        ("Mr. Smith met J. Doe at 3.30 p.m. today.", 1),
        ("It ends with etc.", 1),
        ('He said "no." Then he left.', 2),
        ("See e.g. the dog. And i.e. the cat.", 2),
        ("www.dog.com is it", 1),
        ("lower. case too.", 2),
    ],
)
def test_sentences(text, count):
    assert sentences(text) == count
