"""Rotary embeddings as modules: exact frequencies whatever a model is cast to, and those of transformers' scalings."""

import copy
from types import SimpleNamespace

import pytest
import torch

import afn_kernels as ak
from tests.budget import assert_within

EPS = torch.finfo(torch.float32).eps
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_no_cast_touches_the_frequencies():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), ak.nn.RotaryEmbedding(64, theta=500_000.0))
    before = module[1].inv_freq.clone()
    for cast in (
        module.bfloat16,
        module.half,
        lambda: module.to(torch.float64),
        lambda: copy.deepcopy(module).bfloat16(),
    ):
        cast()
        assert torch.equal(module[1].inv_freq, before)
        assert module[1].inv_freq.dtype == torch.float32
    assert list(module.state_dict()) == ["0.weight", "0.bias"]


def test_made_on_no_device_it_works_on_one():
    with torch.device("meta"):
        module = ak.nn.RotaryEmbedding(16)
    q, k = torch.randn(5, 2, 16), torch.randn(5, 1, 16)
    assert module._on(torch.device("meta")).device.type == "meta"
    found = module(q, k, torch.arange(5.0))
    expected = ak.rotary(q, k, torch.arange(5.0), 1 / 10_000.0 ** (torch.arange(0, 16, 2) / 16))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("positions", [(7,), (3, 7)])
def test_a_batch_is_rotated_row_by_row(positions):
    module = ak.nn.RotaryEmbedding(16, rotary_dim=8)
    q, k = torch.randn(3, 7, 4, 16), torch.randn(3, 7, 2, 16)
    where = torch.rand(positions) * 100
    found = module(q, k, where)
    rows = [module(*row) for row in zip(q, k, where.expand(3, 7), strict=True)]
    for x, parts in zip(found, zip(*rows, strict=True), strict=True):
        assert torch.equal(x, torch.stack(parts))


def test_sections_of_a_batch():
    module = ak.nn.RotaryEmbedding(16, sections=(2, 3, 3))
    q, k, where = torch.randn(2, 7, 4, 16), torch.randn(2, 7, 2, 16), torch.rand(3, 2, 7) * 50
    found = module(q, k, where)[0]
    assert torch.equal(found[1], module(q[1], k[1], where[:, 1])[0])


SCALINGS = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "partial": {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_of_a_configuration_are_transformers(name):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": "default", "rope_theta": 500_000.0, **SCALINGS[name]}
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "max_position_embeddings": 131_072}
    config = transformers.LlamaConfig(**sizes, rope_parameters=parameters)
    ours = ak.nn.RotaryEmbedding.from_config(config)
    if name in ROPE_INIT_FUNCTIONS:
        expected, _ = ROPE_INIT_FUNCTIONS[name](config)
    else:
        width = 64 if name == "default" else 32
        expected = 1 / 500_000.0 ** (torch.arange(0, width, 2) / width)
    assert_within(ours.inv_freq, expected, 4 * EPS * expected)  # a quotient, two products and a sum, each rounded
    assert ours.rotary_dim == 2 * len(expected)


def test_sections_of_a_configuration():
    config = type("Config", (), {"head_dim": 16, "rope_theta": 1e6, "hidden_size": 64, "num_attention_heads": 4})()
    config.rope_scaling = {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"}
    assert ak.nn.RotaryEmbedding.from_config(config).options["sections"] == [2, 3, 3]
    config.rope_scaling = {"mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_type": "default"}
    assert ak.nn.RotaryEmbedding.from_config(config).options["sections_interleaved"]


def test_a_scaling_that_is_not_known():
    with pytest.raises(ValueError, match=r"rope_type 'yarn' is none of default, linear and llama3.*ak.apply_rotary"):
        ak.nn.RotaryEmbedding(16, scaling={"rope_type": "yarn", "factor": 2.0})


def test_one_position_for_every_axis():
    rotary = ak.nn.RotaryEmbedding(8, sections=(2, 1, 1))
    q, k, positions = torch.randn(6, 2, 8), torch.randn(6, 1, 8), torch.arange(6.0)
    for found, expected in zip(rotary(q, k, positions), rotary(q, k, positions.expand(3, -1)), strict=True):
        assert torch.equal(found, expected)
    batched = rotary(q.view(2, 3, 2, 8), k.view(2, 3, 1, 8), torch.arange(3.0))
    alone = rotary(q[3:], k[3:], torch.arange(3.0))
    for found, expected in zip(batched, alone, strict=True):
        assert torch.equal(found[1], expected)
    x = torch.randn(2, 5, 32)
    assert ak.nn.Attention(32, 4, rotary=rotary)(x).shape == x.shape


def test_qwen3_vl_interleaves_its_axes_whether_it_says_so_or_not():
    config = SimpleNamespace(model_type="qwen3_vl_text", hidden_size=64, num_attention_heads=4, head_dim=16)
    config.rope_parameters = {"rope_theta": 5e6, "rope_type": "default", "mrope_section": [4, 2, 2]}
    assert ak.nn.RotaryEmbedding.from_config(config).options["sections_interleaved"]
    config.model_type = "qwen2_5_vl_text"
    assert not ak.nn.RotaryEmbedding.from_config(config).options["sections_interleaved"]
