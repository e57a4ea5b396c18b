"""Whatever orders memory in csrc/cuda is needed: without any one of it some case fails."""

from pathlib import Path

import pytest

from tests.cuda import compiler, mutants

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")


def rows() -> set[tuple[str, ...]]:
    """Of the table that is kept: file, statement, change and what is said."""
    lines = mutants.TABLE.read_text().splitlines()
    return {tuple(cell.strip() for cell in line[1:-1].split(" | ")) for line in lines if line.startswith("| ")}


@pytest.mark.slow
def test_each_is_noticed():
    """Those that only a case of seconds notices are in the table: python -m tests.cuda.mutants asks that one too."""
    kept = {row[:4]: row[4] for row in rows()}
    verdicts = mutants.judge(long=False)
    unnoticed = [place for place, verdict in verdicts if not verdict]
    assert [p for p in unnoticed if not kept.get(p.row("")[:4], "").startswith(mutants.IN_LONG)] == []
    assert len(unnoticed) < len(verdicts) / 10


def test_the_table_is_of_these_sources(tmp_path):
    places = mutants.mutate(tmp_path)
    kept = {row[:4] for row in rows()} - {("file", "function", "statement", "change")}
    assert {p.row("")[:4] for p in places} == kept, "python -m tests.cuda.mutants --write"
    assert len(kept) == len(places)
    assert "nothing" not in " ".join(row[4] for row in rows() if row[4].startswith("**"))


def test_a_source_becomes_choices(tmp_path):
    text = "AFN_DEVICE void f(int i) {\n    copy_wait<kStages - 2>();  // sync_block() later\n"
    text += "    x = load_global(g(i) + 1);\n}\ntemplate <class T>\nAFN_DEVICE T g(int i) {\n"
    text += "    fence();\n    fence();\n}\n"
    places: list[mutants.Place] = []
    found = mutants.rewrite("any.cu", text, places)
    assert [(p.function, p.change) for p in places[:3]] == [
        ("f", "left out"), ("f", "one group fewer"), ("f", "through L1")
    ]  # fmt: skip
    assert [(p.function, p.text) for p in places[3:]] == [("g", "fence();"), ("g", "fence(); (2)")]
    outer = "host::omitted(2) ? copy_wait<(kStages - 2) + 1>() : (host::omitted(1) ? void() : copy_wait<kStages - 2>())"
    assert f"    ({outer});  // sync_block() later\n" in found
    assert "x = (host::omitted(3) ? *(g(i) + 1) : load_global(g(i) + 1));" in found
    assert Path(mutants.TABLE).is_file()
