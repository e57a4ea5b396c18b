"""Reporters: what they are told, where they go on, and that none of them ends a training."""

import sys
import types
import warnings

import pytest

from afn_model.train import callbacks
from afn_model.train.callbacks import Callback, MLflow, Reporters, TensorBoard, Wandb, reporters


def facts(folder, **changes):
    found = {"run": str(folder), "stage": "pre-1", "folder": str(folder / "pre-1"), "from_step": 0}
    (folder / "pre-1").mkdir(exist_ok=True)
    return found | {"settings": {"lr": 1e-4, "blend": {"talks": 1}}, "layout": {}, "model": {}} | changes


ROWS = [{"stage": "pre-1", "step": 0, "loss": 2.0, "losses": {"music": 1.5}, "mfu": None}, {"step": 1, "loss": 1.0}]


def test_tensorboard_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard()
    board.on_start(facts(tmp_path))
    for row in ROWS:
        board.on_row(row)
    board.on_eval({"step": 1, "eval_loss": 1.25})
    board.on_end(None)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "pre-1")).Reload()
    assert [x.value for x in events.Scalars("loss")] == [2.0, 1.0]
    assert [x.value for x in events.Scalars("losses/music")] == [1.5]
    assert [x.value for x in events.Scalars("eval_loss")] == [1.25]


def test_without_tensorboard_one_word_about_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for show in (True, False):
        board = TensorBoard(show)
        board.on_start(facts(tmp_path))
        board.on_row(ROWS[0])
        board.on_end(tmp_path)
    assert capsys.readouterr().out.count("tensorboard is not installed") == 1


class StandIn(types.ModuleType):
    """A module that writes down every call, and gives its runs numbers."""

    def __init__(self, name):
        super().__init__(name)
        self.calls, self.id = [], f"{name}-7"
        self.info = types.SimpleNamespace(run_id=self.id)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call


def test_wandb(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb = StandIn("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (own,) = reporters(["wandb"])
    assert isinstance(own, Wandb)
    own.on_row(ROWS[0])  # before it has begun nothing is sent
    own.on_start(facts(tmp_path))
    own.on_row(ROWS[0])
    own.on_eval({"step": 1, "eval_loss": 1.25})
    own.on_end(None)
    (_, _, begun), row, held, (_, _, end) = wandb.calls
    assert (begun["project"], begun["name"], begun["id"]) == ("afn", f"{tmp_path.name}/pre-1", None)
    assert begun["config"]["settings"]["lr"] == 1e-4
    assert row == ("log", ({"loss": 2.0, "losses/music": 1.5},), {"step": 0})
    assert held == ("log", ({"eval_loss": 1.25},), {"step": 1})
    assert end == {"exit_code": 1}
    own.on_start(facts(tmp_path, from_step=4))
    assert wandb.calls[-1][2]["id"] == "wandb-7"


def test_mlflow(tmp_path, monkeypatch):
    mlflow = StandIn("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    (own,) = reporters(["mlflow", "none"])
    assert isinstance(own, MLflow)
    own.on_start(facts(tmp_path))
    own.on_row(ROWS[0])
    own.on_end(tmp_path)
    said = {name: (args, kwargs) for name, args, kwargs in mlflow.calls}
    assert list(said) == ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"]
    assert said["log_params"][0] == ({"lr": "0.0001", "blend": "{'talks': 1}"},)
    assert said["log_metrics"] == (({"loss": 2.0, "losses/music": 1.5},), {"step": 0})
    assert said["end_run"][0] == ("FINISHED",)
    own.on_start(facts(tmp_path, from_step=4))
    assert ("start_run", (), {"run_id": "mlflow-7"}) in mlflow.calls


def test_what_is_missing_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setattr(callbacks.importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ValueError, match=f"--report {name}: {name} is not installed: pip install {name}"):
            reporters([name])
    with pytest.raises(ValueError, match="none of tensorboard, wandb, mlflow, none"):
        reporters(["comet"])


def test_an_error_is_warned_of_once_and_the_others_are_called():
    seen = []

    class Broken(Callback):
        def on_row(self, row):
            raise RuntimeError("no\nanswer")

    report = Reporters([Broken(), types.SimpleNamespace(on_row=seen.append)])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for row in ROWS:
            report("on_row", row)
    report("on_start", {})
    assert [str(one.message) for one in warned] == ["Broken: on_row: no answer; training goes on"]
    assert seen == ROWS
