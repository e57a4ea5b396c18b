"""Stages in FP8: what multiplies so, the same bits however a step is split or recomputed, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from afn_distributed.shard import gathered
from afn_model.afnext import AFNext
from afn_model.config import ModelConfig, TextConfig
from afn_model.network.fp8_linear import FP8TrainingLinear
from afn_model.train import lora
from afn_model.train.curriculum import Stage
from afn_model.train.fp8 import check_fp8, fp8_weights, multiply_in_fp8
from afn_model.train.planner import check_layout
from afn_model.train.quantise import quantise
from afn_model.train.run_layout import RunLayout, for_stage
from afn_model.train.stage_model import stage_model
from bench.resume import prepare
from tests import tiny
from tests.distributed.ranks import run
from tests.model.train.test_adapt import LAYOUT, go
from tests.model.train.test_trainer import stop_at

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
FP8 = replace(LAYOUT, fp8=True)
SOME = Stage("some", ("language_model",), {"x": 1.0}, batch_tokens=8192)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    prepare(folder)
    return folder


def test_the_blocks_projections_multiply_in_fp8_and_nothing_else():
    model = AFNext(tiny.config())
    before = {name: parameter for name, parameter in model.named_parameters()}
    lora.add(model, 2, 4, ["q_proj"])
    multiply_in_fp8(model.language_model)
    marked = {name.rpartition(".")[2] for name, module in model.named_modules() if getattr(module, "fp8", False)}
    assert marked == set(PROJECTIONS)
    assert all(name.startswith("language_model.layers.") for name, m in model.named_modules() if getattr(m, "fp8", 0))
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert fp8_weights(model)[0].shape == (32, 32)
    assert len(fp8_weights(model)) == len(PROJECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_learns_as_without_and_a_crash_and_recomputation_change_nothing(folder, tmp_path, dtype):
    """In bfloat16 the weights are sharded, over one rank here, and gathered in FP8."""
    layout = replace(FP8, dtype=dtype)
    plain, found = (
        go(folder, tmp_path / str(number), one, steps=3)
        for number, one in enumerate((replace(layout, fp8=False), layout))
    )
    with pytest.raises(RuntimeError, match="crash"):
        go(folder, tmp_path / "2", layout, stop_at(2), steps=3)
    assert go(folder, tmp_path / "2", replace(layout, recompute="full"), steps=3) == found[2:]
    assert found[-1]["loss"] < found[0]["loss"]
    for one, other in zip(found, plain, strict=True):
        assert one["loss"] != other["loss"]
        assert one["loss"] == pytest.approx(other["loss"], rel=0.03)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.2)
    with pytest.raises(ValueError, match="the config changed since: fp8 was True, is None"):
        go(folder, tmp_path / "1", replace(layout, fp8=False), steps=4)


@pytest.mark.slow
def test_adapters_train_beside_frozen_weights_in_fp8(folder, tmp_path):
    change = {"trains": ("language_model",), "lora": {"rank": 2, "alpha": 4}, "steps": 2}
    plain, found, again = (
        go(folder, tmp_path / str(number), layout, **change)
        for number, layout in enumerate((LAYOUT, FP8, replace(FP8, recompute="selective")))
    )
    assert found == again
    assert [row["loss"] for row in found] != [row["loss"] for row in plain]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in plain], rel=0.03)


def losses(here, frozen: str):
    """Ranks that share the weights have the loss and the gradients of ranks with copies; frozen weights travel too."""
    torch.manual_seed(0)
    processor = tiny.processor()
    config = tiny.config(processor, layers=2)
    state = AFNext(config).state_dict()
    batch = processor([tiny.conversation("dog?", tiny.noise(0.5), answer="one two")], training=True)
    trains = ("adaptor", "encoder") if frozen else ("all",)
    one = replace(SOME, trains=trains)
    layout = RunLayout(dtype="bfloat16", fp8=True, frozen=frozen or "auto", recompute="full", compile=False)
    asked, said, found = processor([tiny.conversation("dog?", tiny.noise(0.5))]), [], []
    for shard in (2, 1):
        model = AFNext(config)
        model.load_state_dict(state)
        model = stage_model(model, one, replace(layout, shard=shard), here, reference=False).model
        loss = model.loss(batch)
        loss.backward()
        gradients = [p.grad.full_tensor() for p in model.parameters() if p.requires_grad and p.grad is not None]
        found.append([loss.detach(), *gradients])
        with gathered(model):
            said.append(model.generate(asked, 4))
    assert said[0] == said[1]
    for two, alone in zip(*found, strict=True):
        assert torch.equal(two, alone)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["", "sharded"])
def test_two_ranks_that_share_the_weights_compute_what_copies_do(frozen):
    run(2, losses, frozen)


def test_what_cannot_be_multiplied_in_fp8_is_said_in_one_line():
    text = TextConfig(300, 64, 2, 8, kv_heads=1, ffn=128, max_positions=8192)
    wrong = "the language model's key-value heads x head dim is 8; a multiple of 16 is expected"
    for refused in (
        lambda: check_fp8(text),
        lambda: check_layout(replace(ModelConfig(), text=text), SOME, RunLayout(fp8=True), 1),
    ):
        with pytest.raises(ValueError, match=wrong):
            refused()
    with pytest.raises(ValueError, match="fp8 multiplies weights of 16 bits, not a base in nf4; leave one out"):
        for_stage(RunLayout(fp8=True), replace(SOME, lora={"rank": 2, "alpha": 4, "base": "nf4"}))
    with pytest.raises(ValueError, match="stage some: method asr is trained without fp8; fp8: false is expected"):
        for_stage(RunLayout(fp8=True), replace(SOME, method="asr", trains=("decoder",)))
    with pytest.raises(ValueError, match="fp8 and compile exclude each other; set one of them to false"):
        RunLayout(fp8=True, compile=True)
    with pytest.raises(ValueError, match="fp8 is 'yes'; true or false is expected"):
        RunLayout(fp8="yes")
    model = AFNext(tiny.config())
    quantise(model.language_model, "int8")
    lora.add(model, 2, 4, "all-linear")
    with pytest.raises(ValueError, match="is held in int8; without a base is expected"):
        multiply_in_fp8(model.language_model)
    assert not any(isinstance(module, FP8TrainingLinear) for module in model.modules())
    assert isinstance(AFNext(tiny.config()).lm_head, nn.Linear)
