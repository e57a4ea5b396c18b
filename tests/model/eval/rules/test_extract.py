"""Options that answers name, read by rules, against tables made by hand."""

import json
from cProfile import Profile
from pathlib import Path

import pytest

from afn_model.eval.loaders.files import LETTERS
from afn_model.eval.rules import extract
from afn_model.eval.rules.extract import chosen, same
from afn_model.scoring.text import final_answer

TEXTS = ("Dog", "Cat", "Bird", "Rain")


def table(name):
    lines = Path(__file__).with_name(f"extract_{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Tables in the order in which they were written: the first before the rules, the second after they were made to fit it,
# the last after what the second had shown was repaired. What a rule cannot read counts as missed, never as misread.
@pytest.mark.parametrize(
    ("name", "least", "none", "missed"),
    [
        ("cases", 120, 25, ["The answer is not B but C.", "The second option."]),
        ("held_out", 40, 10, ["Options A and B can be ruled out, leaving C."]),
        ("last", 40, 10, ["The low brass sound suggests a tuba rather than a trombone.", "Presto? No, Andante."]),
    ],
)
def test_tables_made_by_hand(name, least, none, missed):
    rows = table(name)
    assert len(rows) >= least
    assert sum(row["expected"] is None for row in rows) >= none
    lost, wrong = [], []
    for row in rows:
        found = chosen(row["answer"], row["choices"])
        letter = None if found.choice is None else LETTERS[found.choice]
        if letter is None and row["expected"] is not None:
            lost.append(row["answer"])
        elif letter != row["expected"]:
            wrong.append((row, found))
    assert not wrong
    assert lost == missed


@pytest.mark.parametrize(
    ("output", "rule"),
    [
        ("Cat", "exact"),
        ("so [[B]]", "boxed"),
        ("The answer is (B)", "phrase"),
        ("Clearly option B here", "option"),
        ("B", "letter"),
        ("(B) since it meows", "leading"),
        ("Cat. It is no bird.", "first"),
        ("It may be a cat", "text"),
        ("(A) or (B)", "several"),
        ("Nothing", "none"),
    ],
)
def test_the_rule_that_fired_is_named(output, rule):
    assert chosen(output, TEXTS).rule == rule


def test_letters_are_those_of_the_choices_and_only_where_the_question_had_them():
    for count in range(1, 27):
        texts = [f"text{LETTERS[place]}" for place in range(count)]
        assert [chosen(f"({letter})", texts).choice for letter in LETTERS] == [*range(count), *[None] * (26 - count)]
    assert chosen("B", ("yes", "no"), lettered=False).choice is None
    assert chosen("(B) or (A)", TEXTS, lettered=False).rule == "none"
    assert chosen("A cat", TEXTS, lettered=False).choice == 1
    assert chosen("B", ()).choice is None
    assert chosen("B.B. King plays", ("Dog", "Cat")).rule == "none"


@pytest.mark.parametrize(
    ("output", "choice"),
    [("I hear it", None), ("and e in the end", None), ("The note is A.", 3), ("It is E, I hear", 1), ("(A)", 0)],
)
def test_options_that_are_letters_are_capital_and_no_article(output, choice):
    assert chosen(output, ("C", "E", "I", "A")).choice == choice


@pytest.mark.parametrize(
    ("output", "choices", "choice"),
    [
        ("I would choose option C.", ("C", "Gm", "D", "E"), 2),
        ("[[A]]", ("C", "D", "G", "A"), 0),
        ("A", ("C", "D", "G", "A"), 3),
        ("D. a", ("one", "two", "said", "a"), 3),
        ("The answer is: a", ("one", "two", "said", "a"), 3),
        ("dog", ("Cat.", "dog.", "dog."), 1),
        ("It is a dog", ("Cat", "dog", "dog"), 1),
        ("The correct answer is: Son Cubano", ("Son cubano", "Son Cubano"), 1),
        ("(A) Mixing\n\nThe recording makes this clear.", ("Mixing", "Recording"), 0),
        ("(A) Mixing\n(B) Recording", ("Mixing", "Recording", "Lyrics"), None),
    ],
)
def test_options_as_mmau_mmar_and_rulistening_have_them(output, choices, choice):
    assert chosen(output, choices).choice == choice


def test_a_text_is_the_choice_that_equals_it_but_for_case_and_articles():
    assert same("a dog", TEXTS) == 0
    assert same("dog", ("Dog", "dog")) == 1
    assert same("DOG", ("Dog", "dog")) is None
    assert same("dogs", TEXTS) is None
    assert same("dog", ("dog", "dog")) == 0


def test_reasoning_is_not_the_answer():
    assert final_answer("<think>B</think> C ") == "C"
    assert final_answer("<think>The answer is B") == ""
    assert final_answer("<think>B</think><answer>C</answer>") == "C"


@pytest.mark.parametrize("repeated", ["dog ", "the answer is dog. ", "not a dog, ", "a barking dog in the yard "])
def test_repetitions_are_read_in_calls_that_grow_with_their_length(repeated):
    def calls(times):
        with Profile() as profile:
            chosen(repeated * times, ("dog", "a barking dog in the yard", "cat"))
        return sum(entry.callcount for entry in profile.getstats())

    calls(1)  # compiles what is compiled once
    assert calls(200) < 3 * calls(100)


def test_a_denial_reaches_to_the_end_of_its_clause():
    words = extract._words("not a dog or cat but a bird, a cow; no cat rather dog. dog")
    said = [word.text for word, denied in zip(words, extract._denied(words), strict=True) if denied]
    assert said == ["dog", "or", "cat", "but", "cat", "rather"]
