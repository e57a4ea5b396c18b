"""A short training run with every op in Triton, under the interpreter on a CPU, against the references."""

from dataclasses import replace

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _triton
from afn_kernels._library import Boundary
from afn_kernels.attention import schedule
from afn_model import AFNext
from afn_model.config import AudioConfig, TextConfig
from afn_model.demo import build
from afn_model.train.activation_checkpoint import checkpoint_blocks
from tests.model.tiny_model import noise

pytestmark = pytest.mark.slow
pytest.importorskip("triton")
pytest.importorskip("espeakng_loader", reason="the demo's tokenizer needs its voices")
STEPS = 4
WITH_GRADIENT = [
    "attention",
    "bias_gelu",
    "layer_norm",
    "pool_norm",
    "rms_norm",
    "rotary",
    "merge_embeddings",
    "swiglu",
]
OPS = {*WITH_GRADIENT, *(f"{name}_backward" for name in WITH_GRADIENT), "linear_cross_entropy", "rote"}


@pytest.fixture(scope="module")
def setting():
    """A model of 2 + 2 layers, grouped heads, and a batch of two conversations, one with audio."""
    like, processor = build(0)
    vocabulary = like.config.text.vocab_size
    text = TextConfig(vocabulary, width=64, layers=2, heads=4, kv_heads=2, ffn=64, rope_theta=1e4)
    config = replace(like.config, audio=AudioConfig(width=32, layers=2, heads=2, ffn=64), text=text)
    torch.manual_seed(0)
    weights = AFNext(config).state_dict()
    question = {"role": "user", "content": [{"type": "audio", "audio": noise(0.7)}, {"type": "text", "text": "What?"}]}
    answer = {"role": "assistant", "content": "a b"}
    batch = processor([[question, answer], [{"role": "user", "content": "What?"}, answer]], training=True)
    return config, weights, batch


def reordered(setting, seed: int):
    """The same model with the units of its feed-forward layers in another order: sums in another order."""
    config, weights, batch = setting
    generator, weights = torch.Generator().manual_seed(seed), dict(weights)
    for name in [name for name in weights if name.endswith("gate_proj.weight")]:
        order = torch.randperm(config.text.ffn, generator=generator)
        for part in ("gate_proj", "up_proj"):
            weights[name.replace("gate_proj", part)] = weights[name.replace("gate_proj", part)][order]
        down = name.replace("gate_proj", "down_proj")
        weights[down] = weights[down][:, order]
    return config, weights, batch


def losses(setting, dtype: torch.dtype, impl: str) -> torch.Tensor:
    config, weights, batch = setting
    model = AFNext(config)
    model.load_state_dict(weights)
    model.to(dtype)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    found = []
    with ak.prefer(impl):
        for _ in range(STEPS):
            loss = model.loss(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


def test_the_loss_curve_is_the_references(setting, device, monkeypatch):
    if device.type != "cpu" or not _triton.interpreted():
        pytest.skip("for the interpreter")
    called = set()
    call = Boundary.__call__
    monkeypatch.setattr(Boundary, "__call__", lambda self, *args: (called.add(self.name), call(self, *args))[1])
    oracle = losses(setting, torch.float64, "reference")
    assert not called
    same = torch.stack([losses(reordered(setting, seed), torch.float32, "reference") for seed in range(8)])
    found = losses(setting, torch.float32, "triton")
    assert called >= OPS, OPS - called
    assert oracle[-1] < 0.9 * oracle[0]
    budget = 2 * (same - oracle).abs().amax(0).cummax(0).values + torch.finfo(torch.float32).eps * oracle.abs()
    assert ((found - oracle).abs() <= budget).all(), (found - oracle, budget)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_attention_tables_are_made_once_per_pass(setting, recompute, device, monkeypatch):
    """Not in every layer, nor again in the backward or where a block is computed a second time."""
    if device.type != "cpu" or not _triton.interpreted():
        pytest.skip("for the interpreter")
    config, weights, batch = setting
    made, tile_table = [], schedule.tile_table
    monkeypatch.setattr(schedule, "tile_table", lambda *args: (made.append(args[4:]), tile_table(*args))[1])
    model = AFNext(config)
    model.load_state_dict(weights)
    checkpoint_blocks(model, recompute)
    with ak.prefer("triton"):
        model.loss(batch).backward()
        # block, causal, keys: the forward's and the backward's blocks of queries are of one size in the interpreter.
        assert sorted(made) == [(32, False, False), (32, False, True), (32, True, False), (32, True, True)]
        with torch.no_grad():
            model.loss(batch)
    assert len(made) == 6
