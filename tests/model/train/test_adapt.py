"""Stages with adapters: what trains, what the adapter's file has, and the same run after a crash."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from afn_model import AFNext
from afn_model.train import adamw8bit, lora
from afn_model.train.adapt import adapt
from afn_model.train.curriculum import read_curriculum, write_curriculum
from afn_model.train.fingerprint import start_fingerprint
from afn_model.train.lora_settings import LINEAR
from afn_model.train.peft_config import config_of
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from bench.resume import prepare
from tests.budget import assert_within
from tests.model.train.test_trainer import same, stop_at, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
LAYOUT = RunLayout(workers=0, log_every=1, checkpoint_every=2)
QLORA = {
    "trains": ("adaptor", "encoder", "language_model"),
    "lora": {
        "rank": 4,
        "alpha": 8,
        "targets": {"language_model": "all-linear", "encoder": ["q_proj", "fc1"], "lm_head": "all-linear"},
        "rank_pattern": {"encoder.*": 2},
        "dropout": 0.2,
        "rslora": True,
        "base": "nf4",
    },
    "rates": {"adaptor": 1e-2, "encoder": 2e-3},
    "optimiser": "adamw8bit",
    "weight_decay": 0.1,
    "steps": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    prepare(folder)
    return folder


@pytest.fixture(autouse=True)
def small_moments_in_8_bits_too(monkeypatch):
    monkeypatch.setattr(adamw8bit, "SMALL", 1)


def go(folder, run, layout=LAYOUT, on_row=None, **changes):
    found, kept = read_curriculum(folder / "tones.yaml"), []
    plan = replace(found, stages=(replace(found.stages[0], **changes),))

    def keep(row):
        kept.append(row)
        if on_row:
            on_row(row)

    train(plan, folder / "base", run, layout=layout, options=Options(show=False, tensorboard=False, on_row=keep))
    return [{key: row[key] for key in ("step", "loss", "grad_norm", "lr", "lrs") if key in row} for row in kept]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_crash_and_recomputation_change_nothing(folder, tmp_path, dtype):
    layout = replace(LAYOUT, dtype=dtype)
    expected = go(folder, tmp_path / "whole", layout, **QLORA)
    assert expected[-1]["loss"] < expected[0]["loss"]
    with pytest.raises(RuntimeError, match="crash"):
        go(folder, tmp_path / "run", layout, stop_at(2), **QLORA)
    again = replace(layout, recompute="full" if dtype == "float32" else "none")
    assert go(folder, tmp_path / "run", again, **QLORA) == expected[2:]
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    for row in expected:
        assert row["lrs"] == {"adaptor": pytest.approx(10 * row["lr"]), "encoder": pytest.approx(2 * row["lr"])}


@pytest.mark.slow
def test_a_stage_goes_on_from_an_adapter(folder, tmp_path):
    """A rate of almost nothing leaves the adaptor that was trained whole, and the adapters, as they were."""
    change = {"trains": ("adaptor", "language_model"), "lora": {"rank": 2, "alpha": 4}, "steps": 1}
    go(folder, tmp_path / "first", **change)
    adapter = tmp_path / "first" / "all" / "adapter"
    (folder / "on.yaml").write_text((folder / "tones.yaml").read_text() + f"    adapter: {adapter}\n")
    assert read_curriculum(folder / "on.yaml").stages[0].adapter == str(adapter)
    more = {"trains": ("language_model",), "lora": {"dropout": 0.1}, "adapter": str(adapter), "steps": 1, "lr": 1e-9}
    go(folder, tmp_path / "next", **more)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "next")
    for name, value in before.items():
        # An adapter's step of 1e-9 moves W by scale (|ΔB| |A| + |B| |ΔA|) 2e-9 at most, with entries below 1.
        assert_within(after[name], value, 8e-9 + torch.finfo(torch.float32).eps * value.abs(), name=name)
    assert not same(before, load_file(folder / "base" / "model.safetensors"))
    model = AFNext.from_pretrained(folder / "base")
    assert lora.load(model, tmp_path / "next" / "all" / "adapter") == ("adaptor",)
    assert len(lora.adapters(model)) == 2 * len(LINEAR["language_model"])
    starts = [start_fingerprint(folder / "base", at) for at in ("", str(adapter), str(tmp_path / "next/all/adapter"))]
    assert len(set(starts)) == 3, "a checkpoint of one is not taken for that of another"
    with pytest.raises(ValueError, match="stage all: lora: rank is the adapter's; beside one it takes dropout, base"):
        go(folder, tmp_path / "other", **more | {"lora": {"rank": 2}})


def test_dropout_is_for_adapters_that_train(folder):
    stage = read_curriculum(folder / "tones.yaml").stages[0]
    settings = {"rank": 2, "alpha": 4, "targets": {"encoder": "all-linear", "language_model": ["q_proj"]}}
    model = AFNext.from_pretrained(folder / "base")
    lora.add(model, **settings)
    lora.save(model, folder / "both")
    model = AFNext.from_pretrained(folder / "base")
    more = {"trains": ("language_model",), "lora": {"dropout": 0.1}, "adapter": str(folder / "both")}
    adapt(model, replace(stage, **more), seed=0)
    drops = {name.partition(".")[0]: layer.dropout is not None for name, layer in lora.adapters(model).items()}
    assert drops == {"encoder": False, "language_model": True}
    assert config_of(lora.adapters(model), (), None)["lora_dropout"] == 0.1


def test_a_part_moves_by_its_own_rate(folder, tmp_path):
    (row,) = go(folder, tmp_path, rates={"adaptor": 1e-5, "language_model": 1e-2}, lr=1e-3, warmup=0.0, steps=1)
    before, after = load_file(folder / "base" / "model.safetensors"), weights(tmp_path)
    assert (row["lr"], row["lrs"]) == (1e-3, {"adaptor": 1e-5, "language_model": 1e-2})
    for name, rate in (("multi_modal_projector.linear_2", 1e-5), ("audio_tower.layers.0.fc1", 1e-3), ("lm_head", 1e-2)):
        key = next(key for key in before if key.endswith(f"{name}.weight"))
        # AdamW's first step is lr · sign(g) but for ε beside the gradient.
        moved = (after[key] - before[key]).abs().max()
        assert_within(moved, torch.tensor(rate), 0.1 * rate, name=name)


def test_what_a_quantised_base_cannot_do(folder, tmp_path):
    adapter = {"rank": 2, "alpha": 4, "base": "int8", "targets": {"encoder": "all-linear"}}
    with pytest.raises(ValueError, match="stage all: lora: a base in int8 cannot train whole: the language_model"):
        go(folder, tmp_path, trains=("encoder", "language_model"), lora=adapter)
    go(folder, tmp_path, trains=("encoder",), lora=adapter, steps=1)
    more = {"trains": ("encoder", "language_model"), "adapter": str(tmp_path / "all" / "adapter")}
    with pytest.raises(ValueError, match="stage all: a base in int8 cannot train whole, and the adapter has no layer"):
        go(folder, tmp_path / "next", lora={"base": "int8"}, **more)


def test_settings_are_written_and_read_back(folder, tmp_path):
    found = read_curriculum(folder / "tones.yaml")
    plan = replace(found, stages=(replace(found.stages[0], **QLORA),))
    write_curriculum(plan, tmp_path / "c.yaml")
    assert read_curriculum(tmp_path / "c.yaml").stages == plan.stages
