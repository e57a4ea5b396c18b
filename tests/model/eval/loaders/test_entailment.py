"""Audio entailment."""

import pytest

from afn_model.eval.prompts import PROMPTS
from tests.model.eval.loaders.written import loaded, put

COLUMNS = "Dataset,Audio file,Caption,Entailment,Neutral,Contradiction\n"
CLOTHO = (
    COLUMNS
    + """ClothoV2,"one, two.wav","['It\\'s a dog.', 'A dog, barking.']",A dog barks.,"A ""pet"" barks.",A cat.
"""
)
AUDIOCAPS = (
    COLUMNS
    + """Audiocaps,Y-bcdefghij1,A dog barks,A dog.,A big dog.,No dog.
Audiocaps,Y-bcdefghij1,['barks'],A bark.,A park.,No park.
"""
)


def test_a_row_is_three_items_with_the_relation_as_the_answer(tmp_path):
    here = put(tmp_path / "clotho-entailment" / "evaluation" / "one, two.wav")
    items = loaded("clotho-entailment", tmp_path, hypotheses=CLOTHO)
    assert [(item.question, item.answer) for item in items] == [
        ("A dog barks.", "entailment"),
        ('A "pet" barks.', "neutral"),
        ("A cat.", "contradiction"),
    ]
    assert {item.choices for item in items} == {("entailment", "neutral", "contradiction")}
    assert {item.clips[0].path for item in items} == {here}
    assert items[0].extra["captions"] == ("It's a dog.", "A dog, barking.")
    assert items[1].groups == {"relation": "neutral"}
    asked = PROMPTS["entail"](items[1], "")
    assert asked.startswith('Hypothesis: A "pet" barks.\n')
    assert asked.endswith("(B) neutral\n(C) contradiction")


def test_rows_about_one_recording_have_ids_of_their_own_and_its_file_has_any_name(tmp_path):
    here = put(tmp_path / "audiocaps-entailment" / "test" / "-bcdefghij1_30.flac")
    items = loaded("audiocaps-entailment", tmp_path, hypotheses=AUDIOCAPS)
    assert [item.id for item in items[2:4]] == ["Y-bcdefghij1/contradiction", "Y-bcdefghij1/entailment#2"]
    assert len({item.id for item in items}) == 6
    assert {item.clips[0].path for item in items} == {here}
    assert [item.extra["captions"] for item in items[::3]] == [("A dog barks",), ("barks",)]


def test_recordings_that_are_absent_keep_a_path_and_a_column_that_has_changed_is_named(tmp_path):
    items = loaded("audiocaps-entailment", tmp_path, hypotheses=AUDIOCAPS)
    assert items[0].clips[0].path == str(tmp_path / "audiocaps-entailment" / "-bcdefghij1.wav")
    with pytest.raises(ValueError, match=r"evaluation.csv, row 1: no field 'Neutral'; there are Dataset, .*Neutrality"):
        loaded("clotho-entailment", tmp_path, hypotheses=CLOTHO.replace("Neutral,", "Neutrality,"))
