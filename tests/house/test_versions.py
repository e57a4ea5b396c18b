"""The versions that are declared and tested are the same, and the table of a run says all of it."""

import re

from afn_kernels._versions import TESTED, number
from tests.versions.__main__ import bounds
from tests.versions.results import table


def test_the_declared_bounds_are_the_lowest_tested():
    assert {name: number(version) for name, version in bounds().items()} == {
        name: number(lowest) for name, (lowest, _) in TESTED.items() if name != "triton"
    }


def test_the_table_gives_reasons_and_what_was_not_tried():
    versions = {"torch": "2.8.0", "triton": None, "numpy": "1.24.0", "transformers": "5.5.0"}
    why = {"test": "test_x[a]", "outcome": "failed", "reason": "ValueError: no"}
    row = {"set": "lowest", "python": "3.10.13", "versions": versions, "date": "2026-01-01T00:00:00+00:00"}
    found = table([row | {"passed": 3, "failed": 1, "skipped": 0, "reasons": [why]}])
    assert "| lowest | 3.10.13 | 2.8.0 | – | 1.24.0 | 5.5.0 | 3 | 1 | 0 | 2026-01-01 |" in found
    assert "- lowest, Python 3.10.13: failed test_x[a]: ValueError: no" in found
    assert re.search(r"Not tried: Python 3\.11, 3\.12, 3\.13, 3\.14\.", found)
