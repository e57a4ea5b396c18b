"""What else is told how a run goes: TensorBoard, wandb, MLflow, or an object of one's own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from afn_model.files import read_json, write_json
from afn_model.train.log import flat

LINKS = "reports.json"  # in a stage's folder: which runs of other tools are its own, for a run that goes on


class Callback:
    """Called on rank 0, stage after stage; every method may be left out.

    An error in one is warned of once and does not end the training.
    """

    def on_start(self, facts: Mapping[str, Any]) -> None:
        """Before a stage's first step, or where it goes on.

        Args:
            facts: run, stage and folder; from_step, the first step to come; settings of the stage, layout, model and
                seed.
        """

    def on_row(self, row: Mapping[str, Any]) -> None:
        """After a row of the log."""

    def on_eval(self, row: Mapping[str, Any]) -> None:
        """After a held-out evaluation."""

    def on_end(self, folder: Path | None) -> None:
        """After a stage; with the folder of its model, None where it was interrupted."""


class TensorBoard(Callback):
    """Scalars in RUN/tensorboard/STAGE; ``tensorboard --logdir RUN/tensorboard`` shows them.

    Args:
        show: say so where the package is not installed.
    """

    def __init__(self, show: bool = True):
        self.show, self.board = show, None

    def on_start(self, facts: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            if self.show:
                print("tensorboard is not installed: log.jsonl has everything", flush=True)
            return
        folder = Path(facts["run"]) / "tensorboard" / facts["stage"]
        self.board = SummaryWriter(str(folder), purge_step=facts["from_step"] or None)

    def on_row(self, row: Mapping[str, Any]) -> None:
        if self.board is not None:
            for name, value in flat(row):
                self.board.add_scalar(name, value, row["step"])

    def on_eval(self, row: Mapping[str, Any]) -> None:
        self.on_row(row)

    def on_end(self, folder: Path | None) -> None:
        if self.board is not None:
            self.board.close()
            self.board = None


class Wandb(Callback):
    """A run of Weights & Biases per stage, of the project in WANDB_PROJECT or "afn"; its own variables hold too."""

    run: Any = None

    def on_start(self, facts: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        name = f"{Path(facts['run']).name}/{facts['stage']}"
        link = {"id": known_run(facts, "wandb"), "resume": "allow"}
        project = os.environ.get("WANDB_PROJECT") or "afn"
        self.run = wandb.init(project=project, name=name, config=dict(facts), **link)
        note_run(facts, "wandb", self.run.id)

    def on_row(self, row: Mapping[str, Any]) -> None:
        if self.run is not None:
            self.run.log(dict(flat(row)), step=row["step"])

    def on_eval(self, row: Mapping[str, Any]) -> None:
        self.on_row(row)

    def on_end(self, folder: Path | None) -> None:
        if self.run is not None:
            self.run.finish(exit_code=1 if folder is None else 0)
            self.run = None


class MLflow(Callback):
    """A run of MLflow per stage, of the experiment in MLFLOW_EXPERIMENT_NAME or "afn", at MLFLOW_TRACKING_URI."""

    longest = 250  # characters of a parameter that every server takes
    mlflow: Any = None

    def on_start(self, facts: Mapping[str, Any]) -> None:
        mlflow = importlib.import_module("mlflow")
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "afn")
        known = known_run(facts, "mlflow")
        named = {"run_id": known} if known else {"run_name": f"{Path(facts['run']).name}/{facts['stage']}"}
        run = mlflow.start_run(**named)
        self.mlflow = mlflow
        if not known:
            mlflow.log_params({name: str(value)[: self.longest] for name, value in facts["settings"].items()})
        note_run(facts, "mlflow", run.info.run_id)

    def on_row(self, row: Mapping[str, Any]) -> None:
        if self.mlflow is not None:
            self.mlflow.log_metrics({name: float(value) for name, value in flat(row)}, step=row["step"])

    def on_eval(self, row: Mapping[str, Any]) -> None:
        self.on_row(row)

    def on_end(self, folder: Path | None) -> None:
        if self.mlflow is not None:
            self.mlflow.end_run("KILLED" if folder is None else "FINISHED")
            self.mlflow = None


REPORTS: dict[str, type[Callback]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


class Reporters:
    """Several callbacks, of which one that raises is warned of once and the others are called all the same."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = callbacks
        self.warned: set[int] = set()

    def __call__(self, event: str, *values: Any) -> None:
        """Calls a method of each that has it."""
        for number, callback in enumerate(self.callbacks):
            method = getattr(callback, event, None)
            try:
                if method is not None:
                    method(*values)
            except Exception as error:  # whatever a reporter raises, the training goes on
                if number not in self.warned:
                    self.warned.add(number)
                    what = " ".join(str(error).split()) or type(error).__name__
                    warnings.warn(f"{type(callback).__name__}: {event}: {what:.200}; training goes on", stacklevel=2)


def reporters(names: Iterable[str]) -> tuple[Callback, ...]:
    """The callbacks that ``--report`` names; "none" is none of them.

    Raises:
        ValueError: an unknown name, or a package that is not installed; nothing is imported to find out.
    """
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in REPORTS:
            raise ValueError(f"--report {name:.60}: none of {', '.join(REPORTS)}, none")
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise ValueError(f"--report {name}: {name} is not installed: pip install {name}")
    return tuple(REPORTS[name]() for name in dict.fromkeys(names))


def known_run(facts: Mapping[str, Any], tool: str) -> str | None:
    """The run of another tool that a stage which goes on had begun."""
    file = Path(facts["folder"]) / LINKS
    return read_json(file).get(tool) if facts["from_step"] and file.is_file() else None


def note_run(facts: Mapping[str, Any], tool: str, name: str) -> None:
    file = Path(facts["folder"]) / LINKS
    write_json(file, {**(read_json(file) if file.is_file() else {}), tool: name})
