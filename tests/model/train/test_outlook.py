"""What a stage says before its first step: what it will do, and what is probably not meant."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from afn_model import AFNextProcessor
from afn_model.train import outlook as module
from afn_model.train.curriculum import read_curriculum
from afn_model.train.optimiser import learning_rate
from afn_model.train.outlook import check_room, outlook, rates, size
from afn_model.train.run_layout import RunLayout
from bench.resume import prepare

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    prepare(folder)
    return folder


def of(folder, **changes):
    found = read_curriculum(folder / "tones.yaml")
    stage = replace(found.stages[0], **{"epochs": 30.0, "steps": None, **changes})
    return outlook(found, stage, AFNextProcessor.from_pretrained(folder / "base"))


def test_a_stage_that_is_meant_has_no_warnings(folder):
    found = of(folder)
    assert found.warnings == []
    text = "\n".join(found.lines)
    for what in ("48 records", "hours", "tokens", "30 epochs", "1,440 samples", "optimiser steps", "learning rate: "):
        assert what in text, what


def test_further_draws_are_said(folder):
    found = of(folder, method="grpo", batch_prompts=4, grpo={"dynamic_sampling": 2})
    assert any("draw 2 times more prompts" in line for line in found.lines)


def test_steps_that_are_said_are_those_that_are_made(folder):
    """As the loader deals them out."""
    from afn_model.data.loader import Loader
    from afn_model.train.validate import data_config

    found = read_curriculum(folder / "tones.yaml")
    stage = replace(found.stages[0], epochs=2.0, steps=None)
    processor = AFNextProcessor.from_pretrained(folder / "base")
    seen, steps = 0, 0
    for batch in Loader(data_config(found, stage), processor):
        seen, steps = batch.seen, steps + 1
        if seen >= 96:
            break
    assert seen == 96, "an epoch ends where the corpus ends"
    assert any(f" {steps} optimiser steps" in line for line in outlook(found, stage, processor).lines)


def test_what_trains_nothing_cannot_be_missed(folder):
    """One step, as large as the corpus and more, at a hundredth of the rate."""
    found = of(folder, batch_tokens=192 * 100, chunk=4096, epochs=1.0, lr=1e-5)
    warned = "\n".join(found.warnings)
    assert "only 1 optimiser step: a model hardly learns" in warned
    assert "holds all 48 samples of an epoch" in warned
    assert "the learning rate reaches 1e-07 of 1e-05: the stage has too few steps" in warned


def test_recordings_that_are_cut(folder):
    warned = "\n".join(of(folder, max_audio=1.0).warnings)
    assert "longer than max_audio 1 s and are cut" in warned
    assert "are left out" in "\n".join(of(folder, max_audio=1.0, on_long="drop").warnings)


def test_by_the_clock_no_number_of_steps_is_claimed(folder):
    found = of(folder, epochs=float("inf"), minutes=3.0)
    assert "it ends after 3 minutes at the latest" in found.lines
    assert not any("optimiser steps of" in line or "learning rate" in line for line in found.lines)
    assert found.warnings == []


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5])
def test_the_rate_is_that_of_a_step_of_the_stage(folder, steps, warmup):
    stage = replace(read_curriculum(folder / "tones.yaml").stages[0], lr=1e-3, warmup=warmup)
    (line,), low = rates(stage, steps)
    best = max(learning_rate(1e-3, warmup, "cosine", step / steps) for step in range(steps))
    assert f"{best:.3g} at the end of warm-up" in line
    assert bool(low) == (best < 0.5e-3)


@pytest.mark.parametrize(
    ("free", "found"),
    [
        # 4 parameters of 10 train: a checkpoint is 48 bytes, the model 40.
        (40 + 48 - 1, "error"),
        (40 + 48, "warning"),
        (40 + 3 * 48 - 1, "warning"),
        (40 + 3 * 48, None),
    ],
)
def test_room_for_checkpoints_and_the_model(tmp_path, monkeypatch, free, found):
    model = torch.nn.Module()
    model.trained, model.frozen = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(6), False)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**9, 0, free))
    if found == "error":
        with pytest.raises(ValueError, match=r"a checkpoint takes 48 B and 1 x the model 40 B, but 87 B are free"):
            check_room(tmp_path, model, RunLayout(keep=2), 1)
    else:
        warned = check_room(tmp_path, model, RunLayout(keep=2), 1)
        assert bool(warned) == (found == "warning")
        # Where not even two checkpoints and the model fit, keep=1 would not help.
        assert all(("--set keep=1 needs less" in line) == (free >= 40 + 2 * 48) for line in warned)


def test_moments_of_a_byte_take_less_room(tmp_path, monkeypatch):
    """Of 1,000 weights a checkpoint takes 6,040 bytes instead of 12,000, beside a model of 4,000."""
    model = torch.nn.Linear(100, 10, bias=False)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10**9, 0, 4_000 + 2 * 6_040))
    assert check_room(tmp_path, model, RunLayout(keep=1), 1, "adamw8bit") == []
    assert check_room(tmp_path, model, RunLayout(keep=1), 1) != []


def test_checkpoints_that_are_there_count_as_room(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 1, bias=False)  # a checkpoint of 24 bytes, a model of 8
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001" / "x").write_bytes(bytes(24))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 8))
    assert check_room(tmp_path, model, RunLayout(keep=1), 1), "a finished run needs room for its model alone"


def test_sizes():
    assert [size(n) for n in (12, 3_200, 3_250_000_000, 2e12)] == ["12 B", "3.2 kB", "3.25 GB", "2 TB"]
