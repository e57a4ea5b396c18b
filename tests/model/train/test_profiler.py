"""The profiler's window writes what ran inside it; a GPU without memory leaves a snapshot and advice."""

import gzip
import json

import pytest
import torch

from afn_model.train import profiler as watch


def run(folder, first, last, steps) -> list[str]:
    """Steps, each with an operator of its own, in a window; names of all that was traced."""
    operators = [torch.sin, torch.cos, torch.tanh, torch.erf, torch.exp]
    x = torch.rand(1000)
    with watch.profile_window(folder, first, last) as window:
        for step in range(steps):
            operators[step](x)
            window.step()
    with gzip.open(folder / f"trace-{first}-{last}.json.gz", "rt") as file:
        return [event.get("name", "") for event in json.load(file)["traceEvents"]]


@pytest.mark.parametrize(
    ("first", "last", "inside", "outside"),
    [(1, 2, {"cos", "tanh"}, {"sin", "erf", "exp"}), (0, 0, {"sin"}, {"cos", "exp"}), (3, 9, {"erf", "exp"}, {"tanh"})],
)
def test_only_the_window_is_traced(tmp_path, capsys, first, last, inside, outside):
    traced = run(tmp_path / "profile", first, last, 5)
    assert {f"aten::{name}" for name in inside} <= set(traced)
    assert not {f"aten::{name}" for name in outside} & set(traced)
    text = (tmp_path / "profile" / f"kernels-{first}-{last}.txt").read_text()
    assert all(f"aten::{name}" in text for name in inside)
    assert "ms/step" in text
    assert str(tmp_path / "profile") in capsys.readouterr().out


def test_kernels_are_ordered_and_add_up():
    x = torch.rand(300, 300)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as found:
        for _ in range(3):
            (x @ x).sin()
    rows = watch.kernels(found)
    assert {"aten::mm": 3, "aten::sin": 3}.items() <= {row["name"]: row["calls"] for row in rows}.items()
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)


def test_a_window_that_ends_before_it_begins(tmp_path):
    with pytest.raises(ValueError, match="from step 5 to 3"), watch.profile_window(tmp_path, 5, 3):
        pass


def test_out_of_memory_leaves_a_snapshot_and_advice(tmp_path, monkeypatch):
    history = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1e9, 80e9))
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *a, **k: history.append(k))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda file: open(file, "w").close())
    with pytest.raises(torch.OutOfMemoryError, match="recompute") as caught, watch.snapshot_on_oom(tmp_path / "pre-1"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    file = tmp_path / "pre-1" / "out-of-memory.pickle"
    assert file.exists()
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Tried to allocate 2.00 GiB" in str(caught.value)
    assert history[-1] == {"enabled": None}


def test_on_a_cpu_nothing_is_recorded(tmp_path):
    with pytest.raises(KeyError), watch.snapshot_on_oom(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
