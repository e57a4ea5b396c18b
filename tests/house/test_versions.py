"""The versions that are declared, written down, tested and documented are the same."""

import re

from afn_kernels._versions import TESTED, number
from tests.versions.__main__ import SETS, bounds
from tests.versions.results import BEGIN, DOCUMENT, END, RESULTS, read, table


def test_the_declared_bounds_are_the_lowest_tested():
    assert {name: number(version) for name, version in bounds().items()} == {
        name: number(lowest) for name, (lowest, _) in TESTED.items() if name != "triton"
    }


def test_every_set_passed():
    rows = read()
    assert {row["set"] for row in rows} == set(SETS)
    for row in rows:
        assert row["passed"] > 50, row
        assert row["failed"] == 0, row["reasons"]


def test_the_bounds_are_what_was_run():
    rows = read()
    for name, bound in TESTED.items():
        found = [number(row["versions"][name]) for row in rows]
        assert (min(found), max(found)) == tuple(map(number, bound)), name


def test_the_tables_are_those_of_the_results():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table(read()).strip()
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8").endswith(table(read()))


def test_the_table_gives_reasons_and_what_was_not_tried():
    versions = {"torch": "2.8.0", "triton": None, "numpy": "1.24.0", "transformers": "5.5.0"}
    why = {"test": "test_x[a]", "outcome": "failed", "reason": "ValueError: no"}
    row = {"set": "lowest", "python": "3.10.13", "versions": versions, "date": "2026-01-01T00:00:00+00:00"}
    found = table([row | {"passed": 3, "failed": 1, "skipped": 0, "reasons": [why]}])
    assert "| lowest | 3.10.13 | 2.8.0 | – | 1.24.0 | 5.5.0 | 3 | 1 | 0 | 2026-01-01 |" in found
    assert "- lowest, Python 3.10.13: failed test_x[a]: ValueError: no" in found
    assert re.search(r"Not tried: Python 3\.11, 3\.12, 3\.13, 3\.14\.", found)
