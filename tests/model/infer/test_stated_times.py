"""Times in prose: written sentences with what they state, a third of them nothing, and texts that are slow to read."""

import json
import re
import time
from pathlib import Path

import pytest

from afn_model.infer.stated_times import stated_times

# The second file was written before the parser; what it found in it then is in docs/lab-notes.md.
FILES = ("stated_times.jsonl", "stated_times_heldout.jsonl")


def sentences(name):
    """(text, [[start, end or None], ...], seconds of the recording or None)."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [(*row, None)[:3] for row in map(json.loads, lines)]


@pytest.mark.parametrize("name", FILES)
def test_what_sentences_state_is_found_and_nothing_else(name):
    right = found = wanted = 0
    for text, truth, seconds in sentences(name):
        times = stated_times(text, seconds)
        left = [tuple(one) for one in truth]
        for one in times:
            match = [x for x in left if x[0] == pytest.approx(one.start) and x[1] == pytest.approx(one.end)]
            right += bool(match)
            for x in match[:1]:
                left.remove(x)
        found, wanted = found + len(times), wanted + len(truth)
        assert all(text[slice(*one.span)] == one.text for one in times), text
        places = [place for one in times for place in one.span]
        assert places == sorted(places), text
    assert found > 90
    assert right / found >= 0.98, "precision"
    assert right / wanted >= 0.98, "recall"


def test_sentences_are_as_many_and_as_different_as_they_are_said_to_be():
    rows = [row for name in FILES for row in sentences(name)]
    assert len({text for text, *_ in rows}) >= 300
    assert sum(not truth for _, truth, _ in rows) >= 80


THOUGHT = [
    ("At 0:05.", "a", False),
    ("<think>At 0:05.</think>At 0:06.", "ta", False),
    ("<think>At 0:05.</think>No, 0:06.</think>At 0:07.", "tta", False),
    ("<think>At 0:05.", "t", False),
    ("<think>At 0:05.</think>At 0:06. <think>Or at 0:07", "ttt", False),
    ("At 0:05.</think>At 0:06.", "ta", True),
    ("At 0:05.", "t", True),
    ("<think>0:05</think><answer>0:06</answer> (0:07)", "tat", False),
]


@pytest.mark.parametrize(("text", "where", "thinking"), THOUGHT)
def test_what_is_thought_and_what_is_answered(text, where, thinking):
    assert "".join(one.where[0] for one in stated_times(text, thinking=thinking)) == where


SLOW = ["1, ", "1:", "0:12 - ", "1 min ", "one hundred and ", "a minute and a ", "twenty-", "[1.2 ", '"start": ', "1.1"]
SLOW += ["<think>", "<answer>", "0:12 ~ ", "first 5 seconds ", " ", "9", "one minute ten ", "12s/", "at second "]


def test_no_text_takes_more_than_time_in_its_length():
    """Ten times the text takes at most twenty times as long; squares would take a hundred times."""
    whole = "\n".join(text for name in FILES for text, *_ in sentences(name))
    for piece in [*SLOW, whole]:
        took = []
        for size in (1_000, 10_000):
            text = (piece * (size // len(piece) + 1))[:size]
            runs = []
            for _ in range(2):
                began = time.process_time()
                stated_times(text)
                runs.append(time.process_time() - began)
            took.append(min(runs))
        assert took[1] < 20 * took[0] + 0.02, piece


def test_times_told_from_the_end_need_the_length_of_the_recording():
    text = "In the last 5 seconds a bell rings; the final one is two seconds before the end."
    assert stated_times(text) == []
    assert [(one.start, one.end) for one in stated_times(text, 30.0)] == [(25.0, 30.0), (28.0, None)]


def test_clocks_of_a_text_have_one_unit():
    def starts(text):
        return [one.start for one in stated_times(text)]

    assert starts("A bell at 2:59 and at 3:10.") == [179, 190]
    assert starts("A bell at 2:75 and at 3:10.") == [2.75, 3.1], "no minute has 75 seconds"
    assert starts("A bell at 2:75 and at 1:03:10.") == [3790], "hours are there: 2:75 is a slip"


def test_times_in_the_timelines_of_the_world():
    text = "<think>0.4 s bell, 1.9 s seven, 12.0 s dog.</think><answer>dog</answer>"
    assert [one.start for one in stated_times(text)] == [0.4, 1.9, 12.0]
    parts = stated_times("0 to 10 seconds: bell, dog. 10 to 20 seconds: seven.")
    assert [(one.start, one.end) for one in parts] == [(0, 10), (10, 20)]


def test_a_clock_may_have_a_unit():
    found = stated_times("At 00:15s the piano begins, from 1:02.5s to 1:04 s, but not in 3:10st.")
    assert [(one.start, one.end, one.text) for one in found][:2] == [
        (15, None, "00:15s"),
        (62.5, 64, "1:02.5s to 1:04"),
    ]


def test_any_text_at_all_is_read():
    for seed in range(200):
        pieces = re.findall(r"\w+|\W+", " ".join(text for text, *_ in sentences(FILES[0])))
        text = "".join(pieces[(seed * 7919 + step * (seed + 3)) % len(pieces)] for step in range(60))
        for one in stated_times(text, 60.0):
            assert text[slice(*one.span)] == one.text
