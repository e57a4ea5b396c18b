"""Options of ``pytest bench``."""

import inspect

import pytest

from bench.conftest import WITHOUT_EFFECT, without_effect


def test_options_without_effect_say_so():
    (line,) = without_effect(["bench", "-k", "x", "--benchmark-min-rounds=3", "--benchmark-min-rounds=4"])
    assert line.startswith("--benchmark-min-rounds has no effect")
    assert line.endswith(": use --rounds")
    assert len(without_effect(["--benchmark-warmup", "on", "--benchmark-max-time", "3"])) == 2
    assert without_effect(["--benchmark-save=x", "--benchmark-json=y", "--device", "cpu"]) == []


def test_they_are_options_of_pytest_benchmark():
    source = inspect.getsource(pytest.importorskip("pytest_benchmark.plugin"))
    newer = {"--benchmark-precision", "--benchmark-confidence"}
    assert all(f"'{name}'" in source for name in WITHOUT_EFFECT if name not in newer)
