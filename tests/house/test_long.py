"""The list of long tests names tests that exist."""

from pathlib import Path

from tests.long import DAILY, function, listed

ROOT = Path(__file__).parents[2]


def test_every_name_is_a_test():
    assert listed()
    for name in listed() | DAILY:
        file, _, test = name.partition("::")
        assert f"def {test.rpartition('::')[2]}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_a_case_counts_for_its_function():
    assert function("tests/a.py::test_b[x[1]-y]") == "tests/a.py::test_b"
    assert "tests/kernels/test_every_op.py::test_within_budget" not in listed()
