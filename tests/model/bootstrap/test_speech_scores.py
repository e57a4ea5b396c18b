"""Word errors by talker: the best assignment, a talker who is missing, and what chance would give."""

import pytest

from afn_model.bootstrap.speech_scores import asked_to, by_language, cp_rate, permuted, rate, target_scores

TRUE = ["one two three", "uno dos"]


def test_talkers_may_come_in_any_order():
    assert permuted(["uno dos", "one two three"], TRUE) == (0, 5)
    assert permuted(["uno", "one two four"], TRUE) == (2, 5)
    assert cp_rate([("one two three<|speaker|> uno dos", TRUE), ("uno dos", ["uno dos"])]) == 0


def test_a_talker_who_is_missing_or_too_many_costs_all_of_its_words():
    assert permuted(["one two three uno dos"], TRUE) == (4, 5)
    assert permuted(["one two three", "uno dos", "stop stop"], TRUE) == (2, 5)
    assert cp_rate([("", TRUE)]) == 1


def test_a_target_is_nearer_than_the_other_or_it_is_chance():
    records = [{"truth": {"texts": ["one two", "five six"]}}] * 2
    assert target_scores(records, ["one two", "one two"])["nearer"] == 1
    found = target_scores(records, ["one two", "five six"])
    assert found == {"wer": 0.5, "wer_of_other": 0.5, "chance": 0.5, "nearer": 0.5}
    assert target_scores(records, ["one two", ""])["nearer"] == 0.75


def test_rates_are_over_words_and_by_language():
    assert rate([("one", "one two three"), ("uno", "uno")]) == pytest.approx(0.5)
    records = [{"truth": {"language": one, "answer": text}} for one, text in (("en", "one two"), ("es", "uno dos"))]
    assert by_language(records, [" one two", "uno tres"]) == {"en": 0.0, "es": 0.5, "all": 0.25}


def test_the_same_recordings_with_another_task():
    asked = {"role": "user", "content": "<sound>\n<|fr|><|speakers|><|notimestamps|>"}
    record = {"truth": {"language": "fr"}, "messages": [asked, {"role": "assistant", "content": "un"}]}
    found = asked_to(record, "transcribe")["messages"]
    assert found[0]["content"] == "<sound>\n<|fr|><|transcribe|><|notimestamps|>"
    assert found[1] == record["messages"][1]
