"""The benchmark of stated times: what it writes about scenes is true of them, and few scenes give what many do."""

import json

import pytest

from bench import pictures
from bench.stated_times import gaps, measure, precision_and_recall, right_times, scenes, wrong_times

EVENTS = [{"start": 2.0, "end": 3.0}, {"start": 2.5, "end": 2.6}, {"start": 6.0, "end": 6.1}]


def test_what_is_called_wrong_is_wrong():
    assert gaps(EVENTS, 8.0) == [pytest.approx(gap) for gap in ((0.0, 1.4), (3.6, 5.4), (6.7, 8.0))]
    wrong = wrong_times(EVENTS, 8.0)
    assert all(max(start, end or 0) > 8.5 for start, end in wrong["past_end"])
    assert wrong["reversed"] == [(3.0, 2.0)]
    for start, end in wrong["silent"]:
        first, last = (start - 0.5, start + 0.5) if end is None else (start, end)
        assert all(event["end"] <= first or event["start"] >= last for event in EVENTS)
    assert len(wrong["silent"]) == 4, "the middle of each gap, and the one that is long"
    assert right_times(EVENTS)[:2] == [(2.0, None), (2.0, 3.0)]


def test_the_precision_and_recall_of_rows():
    rows = [["At 0:05 and at 0:07.", [[5, None], [8, None], [8, None]]], ["None.", []]]
    found = precision_and_recall(rows)
    assert (found["sentences"], found["without_times"], found["times"]) == (2, 1, 3)
    assert (found["precision"], found["recall"]) == (0.5, 0.3333)


@pytest.mark.slow
def test_wrong_times_are_flagged_and_right_ones_are_not():
    """Eight scenes; of one in fifty of the silent places the noise is above the threshold."""
    found = measure("heldout", {"cot": 4, "long": 4})
    assert found["scenes"] == 8
    assert found["wrong"]["past_end"]["share"] == found["wrong"]["reversed"]["share"] == 1
    assert found["wrong"]["silent"]["stated"] > 12
    assert found["wrong"]["silent"]["share"] >= 0.9
    assert found["right"]["stated"] > 40
    assert found["right"]["flagged"] <= 1
    assert len(list(scenes("heldout", {"cot": 2}))) == 2


def test_the_committed_numbers_reach_their_bars():
    found = json.loads((pictures.RESULTS / "cpu" / "stated_times.json").read_text(encoding="utf-8"))
    for rows in found["sentences"].values():
        assert min(rows["precision"], rows["recall"]) >= 0.98
    for split in found["scenes"].values():
        assert all(split["wrong"][kind]["share"] >= 0.95 for kind in ("past_end", "silent", "reversed"))
        assert split["wrong"]["elsewhere"]["share"] > 0.3
        assert split["right"]["share"] <= 0.02
