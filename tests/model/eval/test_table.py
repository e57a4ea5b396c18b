"""The table against the paper's Tables 1 and 2, typed a second time."""

import pytest

from afn_model.eval.copies import COPIES
from afn_model.eval.loaders import LOADERS
from afn_model.eval.prompts import PROMPTS
from afn_model.eval.rules import RULES
from afn_model.eval.table import VARIANTS, benchmarks, chosen

# Row number -> who -> numbers in the paper's order.
PAPER = {
    1: {
        "instruct": (78.80, 74.23, 69.57, 74.20),
        "think": (78.70, 74.73, 71.5, 75.01),
        "captioner": (79.87, 75.3, 72.13, 75.76),
        "af3": (75.83, 74.47, 66.97, 72.42),
    },
    2: {"instruct": (59.7,), "think": (61.0,), "captioner": (63.0,), "af3": (58.5,)},
    3: {"instruct": (59.4,), "think": (61.2,), "captioner": (63.3,), "other": (66.1,)},
    4: {"instruct": (56.9,), "think": (58.7,), "other": (57.4,)},
    5: {"instruct": (0.52,), "af3": (0.50,)},
    6: {"instruct": (0.74,), "af3": (0.70,)},
    7: {"instruct": (94.2,), "af3": (93.3,)},
    8: {"instruct": (96.0,), "af3": (95.0,)},
    9: {"instruct": (86.2,), "af3": (85.7,)},
    10: {"instruct": (87.0,), "af3": (86.5,)},
    11: {"instruct": (98.7,), "af3": (98.0,)},
    12: {"instruct": (9.3,), "af3": (8.7,)},
    13: {"instruct": (66.7, 81.7), "other": (62.0, 78.8)},
    14: {"instruct": (92.13,), "other": (85.80,)},
    15: {"instruct": (75.6,), "other": (74.5,)},
    16: {"instruct": (8.8, 8.9), "af3": (6.7, 6.2)},
    17: {"instruct": (73.9, 81.2), "af3": (68.6, 72.9), "other": (60.4, 66.2)},
    18: {"instruct": (1.54, 2.76), "af3": (1.57, 3.13), "other": (1.67, 3.4)},
    19: {"instruct": (1.91,), "af3": (1.86,), "other": (3.0,)},
    20: {"instruct": (3.3,), "af3": (3.5,), "other": (2.9,)},
    21: {"instruct": (9.8,), "af3": (10.2,), "other": (9.8,)},
    22: {"instruct": (7.2,), "af3": (7.4,), "other": (7.6,)},
    23: {"instruct": (5.4,), "af3": (5.6,), "other": (5.9,)},
    24: {
        "instruct": (98.84, 4.43, 3.96, 80.9),
        "af3": (98.26, 4.19, 3.40, 66.81),
        "other": (99.62, 4.33, 3.84, 79.12),
    },
    25: {
        "instruct": (38.2, 29.6, 21.9, 31.4, 25.6, 27.2, 29.4, 33.0),
        "other": (38.0, 31.9, 9.9, 35.3, 24.9, 33.3, 5.5, 37.9),
    },
}


def numbers(found):
    if isinstance(found, dict):
        return [number for name, value in found.items() if name != "who" for number in numbers(value)]
    return [found]


@pytest.mark.parametrize("row", PAPER)
def test_targets_are_those_of_the_paper(row):
    parts = [one for one in benchmarks().values() if one.row == row and "paper" in one.suites and one.targets]
    for who, wanted in PAPER[row].items():
        found = [number for one in parts for number in numbers(one.targets.get(who, {}))]
        assert sorted(found) == sorted(wanted), who
    assert all(set(one.targets) <= {*VARIANTS, "af3", "other"} for one in parts)


def test_every_row_names_what_there_is():
    rows = benchmarks()
    assert {one.row for one in rows.values() if one.row} == set(range(1, 26))
    for one in rows.values():
        assert one.loader in LOADERS
        assert one.loader in COPIES
        assert {one.prompt, one.official_prompt or one.prompt} <= set(PROMPTS), one.name
        assert one.scorers, one.name
        for scorer in one.scorers:
            assert scorer["rule"] in RULES, one.name
        assert one.licence, one.name
        assert one.where, one.name
        assert one.source, one.name


def test_counts_of_speech_name_the_document_that_has_them():
    spoken = [one for one in benchmarks().values() if one.row and (18 <= one.row <= 23 or one.row == 25)]
    assert len(spoken) == 15
    for one in spoken:
        assert (one.items is not None) == ("items " in one.source), one.name  # its files cannot be had without terms


def test_names_of_suites_rows_and_parts_are_found():
    assert [row.name for row in chosen(["librispeech-clean"])] == ["librispeech-clean"]
    assert {row.row for row in chosen(["librispeech"])} == {18}
    assert {row.row for row in chosen(["row-25", "row-1"])} == {1, 25}
    assert all("demo" in row.suites for row in chosen(["demo"]))
    with pytest.raises(ValueError, match="nosuch: no such suite or benchmark"):
        chosen(["nosuch"])
