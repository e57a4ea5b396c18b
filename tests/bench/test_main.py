"""``python -m bench``: what it runs, where the results go, and what it takes to commit them."""

import importlib
from pathlib import Path

import pytest

from bench import __main__ as bench


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    (tmp_path / "results" / "cpu").mkdir(parents=True)
    return tmp_path


def fake(monkeypatch, fails=()):
    """Commands that append a line to what --out names, or draw, instead of measuring."""
    calls = []

    class Done:
        returncode = 0

    def called(words, check):
        calls.append(words[2:])
        done = Done()
        done.returncode = int(words[2] in fails)
        if "--out" in words:
            with Path(words[-1]).open("a") as file:
                file.write("new\n")
        else:
            (Path(words[-1]) / "ops.md").write_text("drawn")
        return done

    monkeypatch.setattr(bench.subprocess, "run", called)
    return calls


def test_every_benchmark_of_the_list_is_a_module_and_its_results_are_committed():
    for one in bench.BENCHMARKS.values():
        for module in filter(None, (one.command.split()[0], one.draw)):
            assert callable(importlib.import_module(f"bench.{module}").main)
        assert (bench.RESULTS / one.folder / one.files[0]).is_file()


def test_results_are_looked_at_before_they_are_accepted(folders, monkeypatch):
    committed = folders / "results" / "cpu" / "log_mel.jsonl"
    committed.write_text("old\n")
    calls = fake(monkeypatch)
    assert bench.main(["log_mel", "ops"]) == 0
    assert [call[0] for call in calls] == ["bench.log_mel", "bench.run", "bench.report"]
    assert committed.read_text() == "old\n"
    assert (folders / "runs" / "cpu" / "log_mel.jsonl").read_text() == "old\nnew\n"
    assert bench.main(["log_mel", "ops", "--accept"]) == 0
    assert committed.read_text() == "old\nnew\n"
    assert (folders / "results" / "cpu" / "ops.md").read_text() == "drawn"


def test_one_that_fails_stops_no_other(folders, monkeypatch, capsys):
    calls = fake(monkeypatch, fails=("bench.log_mel",))
    assert bench.main(["log_mel", "packing"]) == 1
    assert [call[0] for call in calls] == ["bench.log_mel", "bench.packing"]
    assert "failed: log_mel" in capsys.readouterr().err
    assert bench.main(["grpo", "--accept"]) == 1
    assert "grpo: nothing to accept" in capsys.readouterr().err
