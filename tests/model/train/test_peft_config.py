"""adapter_config.json: what the most layers have is its rank and alpha, what others have is by name."""

import pytest
from torch import nn

from afn_model.train.lora_linear import LoRALinear
from afn_model.train.peft_config import config_of, peft_name, read_config


def layer(rank: int, alpha: float, rslora: bool = False) -> LoRALinear:
    return LoRALinear(nn.Linear(8, 8), rank, alpha, rslora=rslora)


def test_a_configuration_comes_back():
    names = [f"language_model.layers.{n}.self_attn.q_proj" for n in (1, 11)] + ["encoder.layers.0.fc1", "lm_head"]
    layers = dict(zip(names, (layer(4, 8), layer(4, 8), layer(2, 8), layer(4, 2.5)), strict=True))
    config = config_of(layers, ["adaptor"], "org/base")
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "org/base")
    assert config["rank_pattern"] == {"model.audio_tower.layers.0.fc1": 2}
    assert config["alpha_pattern"] == {"lm_head": 2.5}
    assert config["modules_to_save"] == ["model.multi_modal_projector"]
    found = read_config(config)
    assert {name: found.of(name) for name in names} == {name: (each.rank, each.alpha) for name, each in layers.items()}
    assert found.saves("adaptor")
    assert not found.saves("encoder")


def test_one_scaling_for_all():
    with pytest.raises(ValueError, match="some adapters have rank-stabilised scaling and others not"):
        config_of({"lm_head": layer(2, 2), "adaptor.linear_1": layer(2, 2, True)}, [], None)
    assert config_of({"lm_head": layer(2, 2, True)}, [], None)["use_rslora"] is True


def test_names():
    assert peft_name("lm_head") == "base_model.model.lm_head"
    assert peft_name("encoder.layers.0.fc1") == "base_model.model.model.audio_tower.layers.0.fc1"
