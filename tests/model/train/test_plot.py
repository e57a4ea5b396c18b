"""Pictures of a run: which are drawn, in which order its stages come, and what is said without logs."""

import json
import math
import os

import pytest

from afn_model.train import plot as plots

pytest.importorskip("matplotlib", reason="plots need matplotlib")


def write(folder, stage: str, rows: list[dict], order: int = 0) -> None:
    (folder / stage).mkdir()
    file = folder / stage / "log.jsonl"
    file.write_text("".join(json.dumps({"stage": stage, **row}) + "\n" for row in rows))
    os.utime(file, (order, order))


def sft(step: int, **more) -> dict:
    axes = {"music": 3 / (step + 1), "multi_turn": 2 / (step + 1)}
    speed = {"tokens_per_s": 1e4, "audio_hours_per_s": 0.1, "mfu": None, "data_wait": 0.01, "memory_gb": 3.0}
    return {"step": step, "loss": 2.5 / (step + 1), "losses": axes, "lr": 1e-3, "grad_norm": 0.5, **speed, **more}


@pytest.fixture
def run(tmp_path):
    write(tmp_path, "pre-1", [sft(step) for step in range(0, 30, 10)], order=2)
    write(tmp_path, "mid-1", [sft(step) for step in range(0, 50, 10)], order=3)
    rewards = {"reward": 0.5, "rewards": {"format": 1.0, "exact": 0.2}, "kl": 0.01, "entropy": 1.0, "length": 40}
    write(tmp_path, "post", [sft(step, **rewards) for step in (0, 1)], order=1)
    return tmp_path


def test_every_picture_is_drawn(run, tmp_path):
    files = plots.plot(run)
    assert [file.name for file in files] == ["losses.png", "rewards.png", "throughput.png", "optimiser.png"]
    assert all(file.parent == run / "plots" and file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert plots.plot(run, tmp_path / "else")[0].parent == tmp_path / "else"


def test_stages_follow_the_curriculum(run):
    (run / "curriculum.yaml").write_text("stages: {pre-1: {}, pre-2: {}, mid-1: {}, post: {}}\n")
    found = plots.read_run(run)
    assert found.starts == {"pre-1": 0, "mid-1": 21, "post": 62}
    assert found.at == [0, 10, 20, 21, 31, 41, 51, 61, 62, 63]


def test_without_a_curriculum_stages_follow_the_clock(run):
    assert list(plots.read_run(run).starts) == ["post", "pre-1", "mid-1"]
    (run / "curriculum.yaml").write_text("stages: [\n")
    assert list(plots.read_run(run).starts) == ["post", "pre-1", "mid-1"]


def test_curves_have_gaps_where_there_is_nothing(run):
    x, y = plots.read_run(run).series(lambda row: (row.get("rewards") or {}).get("exact"))
    assert len(x) == len(y) == 12
    assert [value for value in y if not math.isnan(value)] == [0.2, 0.2]
    assert math.isnan(plots.read_run(run).series(lambda row: row["loss"])[1][2]), "stages are not joined"


def test_a_stage_of_one_row_and_no_rewards(tmp_path):
    write(tmp_path, "pre-1", [sft(0, loss=None, losses={"music": None})])
    assert [file.name for file in plots.plot(tmp_path)] == ["losses.png", "throughput.png", "optimiser.png"]


def test_a_folder_without_logs(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        plots.plot(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no stage in it has a log\.jsonl"):
        plots.plot(tmp_path)
    write(tmp_path, "pre-1", [])
    with pytest.raises(ValueError, match="with rows"):
        plots.plot(tmp_path)


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        ({"all": 2.0}, ["all"]),
        ({"all": 2.0, "music": 1.0}, ["without an axis", "music", "all"]),
        ({"music": 1.0}, ["music", "all"]),
    ],
)
def test_no_curve_is_drawn_twice(tmp_path, losses, labels):
    """Samples without an axis are logged as "all"."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    write(tmp_path, "one", [{**sft(step), "losses": losses} for step in (0, 1)])
    figure = plots.losses(plots.read_run(tmp_path), pyplot)
    try:
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == labels
    finally:
        pyplot.close(figure)
