"""How the times of three ways to ask become claims."""

import json

import pytest

from afn_model.eval.loaders import load
from afn_model.eval.table import benchmarks
from bench import evaluation


def test_claims_from_times():
    spent = {
        "run": [(2.0, 4.0, 1.0), (2.0, 4.0, 1.0), (4.0, 4.0, 2.0)],
        "loop": [(4.0, 6.0, 3.0), (2.0, 4.0, 2.0), (4.0, 2.0, 1.0)],
        "ask": [(20.0, 40.0), (16.0, 40.0), (20.0, 40.0)],
    }
    rows = evaluation.rows_of(spent, 100, 0, 300)
    assert [(one["value"], one["lowest"], one["holds"]) for one in (rows[0], rows[1], rows[3])] == [
        (8.0, 5.0, True),
        (1.0, 1.0, True),
        (2.0, 0.5, True),
    ]
    assert (rows[0]["of_cpu_seconds"], rows[0]["run_per_second"], rows[0]["ask_per_second"]) == (10.0, 50.0, 5.0)
    assert (rows[3]["run_per_second"], rows[3]["loop_per_second"]) == (100.0, 50.0)
    assert (rows[2]["value"], rows[2]["holds"]) == (0, True)
    spent["ask"][1] = (9.9, 40.0)
    slow, _, wrong, _ = evaluation.rows_of(spent, 100, 3, 300)
    assert (slow["holds"], wrong["holds"], wrong["value"]) == (False, False, 3)
    text = evaluation.table({"rows": [slow, wrong], "date": "2026-11-30T"})
    assert text.count("**no**") == 2


def test_the_questions_are_a_benchmark(tmp_path):
    pytest.importorskip("espeakng_loader")
    paths = evaluation.write_questions(tmp_path, 3)
    items = load(benchmarks()[evaluation.BENCHMARK], tmp_path)
    assert [clip.path for item in items for clip in item.clips] == [path.replace("/./", "/") for path in paths]
    assert {item.question for item in items} == {evaluation.QUESTION}
    assert all(item.answer in item.choices for item in items)
    assert json.loads((tmp_path / evaluation.BENCHMARK / "mmau-test-mini.json").read_text())[2]["id"] == "2"
