"""``afn train`` as it is typed: what it takes, what it says, and how it ends."""

import io
import json
import os
import signal
import sys

import pytest

from afn_model.cli import main
from afn_model.train.prepare import DONE
from afn_model.train.validate import MODEL
from bench.resume import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    prepare(folder)
    return folder


def command(folder, run, *more: str, steps: int = 2) -> list[str]:
    plan = folder / f"{steps}.yaml"
    plan.write_text((folder / "tones.yaml").read_text().replace("steps: 24", f"steps: {steps}"))
    head = ["train", str(plan), "--base", str(folder / "base"), "--out", str(run), "--layout", "cpu"]
    return [*head, "--set", "workers=0", "--set", "log_every=1", *more]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "afn train needs --curriculum, --base, --out"),
        (["train", "--curriculum", "nothing", "--base", "x", "--out", "y"], "nothing: no such file"),
        (["train", "plot"], "expected `afn train plot RUN`"),
        (["train", "one.yaml", "two.yaml"], "expected one curriculum, or `afn train plot RUN`"),
        (["train", "one.yaml", "--curriculum", "two.yaml"], "expected one curriculum"),
        (["train", "one.yaml"], "afn train needs --base, --out"),
        (["train", "nothing.yaml", "--base", "x", "--out", "y"], "nothing.yaml: no such file, and curricula that come"),
        (
            ["train", "afnext", "--base", "x", "--out", "y", "--allow-changes", "context"],
            "--allow-changes has no context",
        ),
        (["train", "afnext", "--base", "x", "--out", "y", "--set", "keep=[*a]"], "aliases are not read"),
        (["train", "afnext", "--plan", "--gpus", "8", "--set", "ulysses=3"], "3 ranks for a sequence do not divide 8"),
        (["train", "afnext", "--plan", "--calibration", "nothing.json"], "`python -m bench.calibrate"),
        (["train", "--set", "dtype", "--curriculum", "afnext", "--base", "x", "--out", "y"], "expected KEY=VALUE"),
        (
            ["train", "afnext", "--base", "x", "--out", "y", "--set", "lr=1"],
            "--set lr: which stage? STAGE.lr, with",
        ),
        (
            ["train", "afnext", "--base", "x", "--out", "y", "--set", "lrr=1"],
            "--set lrr: no such field; the layout",
        ),
        (["train", "afnext", "--base", "x", "--out", "y", "--report", "wb"], "--report wb: none of tensorboard, wandb"),
        (["train", "afnext", "--base", "x", "--out", "y", "--lora", "8"], "--lora: for --data FILE; of a curriculum"),
        (["train", "afnext", "--data", "x.jsonl"], "--data x.jsonl: a file makes a curriculum of its own"),
        (["train", "--data", "x.jsonl"], "afn train needs --base"),
        (["train", "--data", "x.jsonl", "--base", "y", "--lr", "0"], "'0' is not a number above 0"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_the_command_line_plans(folder, capsys):
    """With the data of a curriculum and the tokenizer of its base, steps and hours too."""
    arguments = ["train", str(folder / "tones.yaml"), "--plan", "--base", str(folder / "base"), "--layout", "cpu"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 GPU of 80 GB; an estimate from shapes and rates, nothing has been run" in printed
    assert "the stage: 24 steps, " in printed
    assert "left out" not in printed
    assert main(["train", "afnext", "--plan", "--stage", "pre-1", "--gpu-memory", "9"]) == 2
    assert "pre-1: more than 9 GB of a GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_trains(folder, tmp_path, capsys):
    arguments = ["train", "--curriculum", str(folder / "tones.yaml"), "--base", str(folder / "base"), "--out"]
    arguments += [str(tmp_path / "run"), "--layout", "cpu", "--set", "workers=0", "--profile", "1:1"]
    assert main([*arguments, "--stage", "some"]) == 2
    assert "no stage 'some'; there are all" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "loss" in capsys.readouterr().out
    assert (tmp_path / "run" / "all" / MODEL / "config.json").is_file()
    assert list((tmp_path / "run" / "all" / "profile").glob("*"))


def test_before_the_first_step_it_says_what_it_will_do(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command(folder, run, "--dry-run", steps=3)) == 0
    said = capsys.readouterr()
    assert "all: 48 records, 48 with audio" in said.out
    assert "3 optimiser steps" in said.out
    assert "learning rate: " in said.out
    assert "afn: warning: all: only 3 optimiser steps" in said.err
    assert main(command(folder, run, "--dry-run", "--strict", steps=3)) == 2
    assert "afn: error: all: only 3 optimiser steps" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.slow
def test_one_command_makes_its_curriculum(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", str(folder / "tones.jsonl"), "--base", str(folder / "base"), "--lora", "2", "--steps"]
    words += [
        "2",
        "--set",
        "lora.alpha=8",
        "--set",
        "workers=0",
        "--layout",
        "cpu",
        "--eval",
        "0.1",
        "--report",
        "none",
    ]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out.partition("\n\n")[0] + "\n"
    assert not (tmp_path / "runs").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    home = tmp_path / "runs" / "tones-lora"
    assert shown == (home / "lora.yaml").read_text()
    assert said.startswith(shown)
    assert "lora: held out: 5 records, evaluated every 1 steps" in said
    assert "held-out loss" in said
    assert not (home / "tensorboard").exists()
    done = json.loads((home / "lora" / "done.json").read_text())
    assert (done["stage"]["lora"], done["step"]) == ({"rank": 2, "alpha": 8}, 2)
    # The file that it wrote is the next curriculum.
    assert main(["train", str(home / "lora.yaml"), "--base", str(folder / "base"), "--out", str(home), "--quiet"]) == 0
    assert json.loads((home / "lora" / "done.json").read_text()) == done


@pytest.mark.slow
def test_fields_of_stages_are_set(folder, tmp_path):
    words = command(folder, tmp_path, "--set", "lr=2e-4", "--set", "all.eval.share=0.1", "--set", "layout.keep=1")
    assert main([*words, "--quiet"]) == 0
    done = json.loads((tmp_path / "all" / DONE).read_text())
    assert (done["stage"]["lr"], done["stage"]["eval"]) == (2e-4, {"share": 0.1})
    assert "eval_loss" in (tmp_path / "all" / "log.jsonl").read_text()


def test_a_stop_has_an_exit_code_of_its_own(folder, tmp_path, capfd, monkeypatch):
    from afn_model.train import log

    write = log.RunLog.__call__
    monkeypatch.setattr(
        log.RunLog,
        "__call__",
        lambda self, row: (write(self, row), row["step"] == 1 and os.kill(os.getpid(), signal.SIGINT)),
    )
    with pytest.raises(SystemExit) as ended:
        main(command(folder, tmp_path, steps=6))
    assert ended.value.code == 75
    said = capfd.readouterr().err
    assert "stopping after this step; a checkpoint will be written (again: stop now)" in said
    assert "afn: all: stopped after step 3; its checkpoint is written; the same command goes on from there" in said
    assert "error" not in said
    monkeypatch.undo()
    assert main(command(folder, tmp_path, steps=6)) == 0
    assert "all: goes on from step 3" in capfd.readouterr().out


def test_other_settings_of_a_finished_stage_are_an_error(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path)) == 0
    assert main(command(folder, tmp_path)) == 0
    assert "all: done before" in capsys.readouterr().out
    assert main(command(folder, tmp_path, "--quiet", "--set", "lr=2e-4")) == 2
    assert "finished with other settings: lr was 0.001, is 0.0002; --allow-changes lr" in capsys.readouterr().err
    assert main(command(folder, tmp_path, "--allow-changes", "lr", "--set", "lr=2e-4", steps=4)) == 0
    assert json.loads((tmp_path / "all" / DONE).read_text())["step"] == 4


class BrokenPipe(io.StringIO):
    """A pipe whose reader has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [BrokenPipe(), None], ids=["pipe", "closed"])
def test_output_that_has_gone_does_not_end_a_training(folder, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    arguments = command(folder, tmp_path)
    # ``main`` itself is for a stdout that is there at the end.
    from afn_model.cli.commands import COMMANDS
    from afn_model.cli.options import Parser

    parser = Parser()
    for add in COMMANDS["train"].options:
        add(parser)
    COMMANDS["train"].run(parser.parse_intermixed_args(arguments[1:]))
    assert (tmp_path / "all" / MODEL / "config.json").is_file()
