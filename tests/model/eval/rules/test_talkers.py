"""cpWER and diarisation errors against values found by hand, and how answers with speakers and times are read."""

import pytest

from afn_model.eval.items import AnsweredItem, Item
from afn_model.eval.rules.talkers import Span, cpwer, der, diarisation_errors, spans_in, turns_in
from afn_model.eval.score import Tools

WHOLE = [(0.0, 10.0)]


def spans(text):
    """``"A 0 3, B 2 5"``."""
    rows = [row.split() for row in text.split(",") if row.strip()]
    return [Span(who, float(start), float(end)) for who, start, end in rows]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "regions", "collar", "expected"),
    [
        ("A 0 10", "x 0 10", WHOLE, 0, (0, 0, 0, 10)),
        ("A 0 10", "", WHOLE, 0, (10, 0, 0, 10)),
        ("", "x 2 5", WHOLE, 0, (0, 3, 0, 0)),
        ("A 0 4, B 4 10", "x 0 10", WHOLE, 0, (0, 0, 4, 10)),  # x is B, with whom it shares more
        ("A 0 4, B 4 10", "x 0 5, y 5 9", WHOLE, 0, (1, 0, 1, 10)),
        ("A 0 6, B 4 10", "x 0 10", WHOLE, 0, (2, 0, 4, 12)),  # of two at once one is missed
        ("A 0 6, B 4 10", "x 0 6, y 4 10, z 9 10", WHOLE, 0, (0, 1, 0, 12)),
        # x with B and y with A have 3 + 3 s in common; greedily x would be A's, with 4 + 0.
        ("A 0 4, A 7 10, B 4 7", "x 0 4, x 4 7, y 7 10", WHOLE, 0, (0, 0, 4, 10)),
        ("A 2 6", "x 1.9 6.3", WHOLE, 0, (0, 0.4, 0, 4)),
        ("A 2 6", "x 1.9 6.3", WHOLE, 0.25, (0, 0.05, 0, 3.5)),
        ("A 2 6", "x 2 5", WHOLE, 0.25, (0.75, 0, 0, 3.5)),
        ("A 2 6, B 6 8", "x 2 8", WHOLE, 0.25, (0, 0, 1.5, 5)),
        ("A 2 6", "x 0 10", [(0, 3), (5, 7)], 0, (0, 3, 0, 2)),
        ("A 2 5, A 4 6", "x 2 6", WHOLE, 0, (0, 0, 0, 4)),  # one speaker counts once
        ("A 1 1.4", "", WHOLE, 0.25, (0, 0, 0, 0)),
    ],
)
def test_errors_are_those_found_by_hand(reference, hypothesis, regions, collar, expected):
    found = diarisation_errors(spans(reference), spans(hypothesis), regions, collar)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Speaker 1] 0.0-3.2 hello\n[Speaker 2] 3.5 - 4.0 hi", "1 0 3.2, 2 3.5 4"),
        ("[Speaker 1] [0:00 - 0:03] hello [Speaker 2] [0:03 - 0:05] hi", "1 0 3, 2 3 5"),
        ("[0:00 - 0:03] Speaker 1: hello\n[0:03 - 0:05] Speaker 2: hi", "1 0 3, 2 3 5"),
        ("0:00 Speaker 1: hello\n0:03 Speaker 2: hi", "1 0 3, 2 3 10"),  # up to the next time, or the end
        ("**Speaker 1:** [0:00-0:03], [0:05-0:07]\n**Speaker 2:** [0:03-0:05]", "1 0 3, 1 5 7, 2 3 5"),
        ("Speaker 1: 0.0 s to 3.0 s and from 5.0 s to 7.0 s; [Speaker 2] from 3 s to 5 s", "1 0 3, 1 5 7, 2 3 5"),
        ("[3.5 - 4.0] [S2] a\n[0.0 - 3.2] [S1] b", "2 3.5 4, 1 0 3.2"),  # in any order
        ("[0.0 - 1.0] Speaker 2: hi [1.5 - 2.0] there", "2 0 1, 2 1.5 2"),
        ("[Speaker 1] 0.0-3.2 hello [Speaker 2] hi", "1 0 3.2"),  # when the second speaks is not said
        ("[Speaker 1] seven [Speaker 2] stop", ""),
        ("[Speaker 1] 3 to 4 people came", ""),
    ],
)
def test_speakers_and_times_are_read(text, expected):
    assert spans_in(text, 10.0) == spans(expected)


def item(segments, seconds=10.0):
    rows = [
        {"speaker": who, "start_time": start, "end_time": start + 1.0, "words": words} for who, start, words in segments
    ]
    return Item("i", extra={"segments": rows, "seconds": seconds})


TALK = item([("A", 0.0, "one two"), ("B", 1.0, "Three!"), ("A", 2.0, "four")])


@pytest.mark.parametrize(
    ("text", "errors", "in_order"),
    [
        ("[Speaker 1] one two [Speaker 2] three [Speaker 1] four", 0, 0),
        ("[Speaker 2] One, two. [Speaker 1] three [Speaker 2] four", 0, 0),  # names of speakers are free
        ("[Speaker 1] one two three four", 2, 0),  # one inserted, and B's word deleted
        ("[Speaker 1] three [Speaker 2] one two four", 0, 2),
        ("[Speaker 1] one two [Speaker 2] three [Speaker 3] four", 2, 0),  # deleted in A, inserted in a third stream
        ("[Speaker 1] 0.0-1.0 one two [Speaker 2] 1.0-2.0 three [Speaker 1] 2.0-3.0 four", 0, 0),  # times are no words
        (None, 4, 4),
        ("", 4, 4),
    ],
)
def test_words_are_counted_under_the_best_assignment(text, errors, in_order):
    found, serial = (cpwer([AnsweredItem(TALK, text)], Tools(), sot=sot) for sot in (False, True))
    assert found.parts == [(errors, 4)]
    assert found.value == 25 * errors
    assert serial.parts == [(in_order, 4)]
    assert found.unparsed == (not text)


def test_words_in_silence_are_insertions_and_hidden_answers_are_left_out():
    silence, hidden = item([]), Item("h")
    answers = [AnsweredItem(silence, "seven"), AnsweredItem(hidden, "seven"), AnsweredItem(TALK, None)]
    found = cpwer(answers, Tools())
    assert found.parts == [(1, 0), None, (4, 4)]
    assert found.value == 125
    assert turns_in("seven", 2.0) == ([(Span("1", 0.0, 2.0), "seven")], False)
    assert der(answers, Tools()).parts == [(0, 0), None, (3, 3)]
    assert [rule([AnsweredItem(silence, None)], Tools()).unparsed for rule in (cpwer, der)] == [0, 0]


def test_times_are_estimated_only_where_that_is_asked_for():
    talk = item([("A", 0.0, ""), ("B", 5.0, "")])
    said = [AnsweredItem(talk, "[Speaker 1] aaaa [Speaker 2] bbbb")]
    strict = der(said, Tools())
    assert (strict.value, strict.unparsed) == (100, 1)
    found = der(said, Tools(), estimate=True)
    # Labels and words share ten seconds by their characters, so each speaker has five: four of them too many.
    assert found.parts == [(pytest.approx(8), 2)]
    assert found.notes == [
        "missed 0.0 %, false alarm 400.0 %, confusion 0.0 % of 2.0 s of speech that are scored",
        "1 answers state no times: theirs are estimated from the length of the text",
    ]
