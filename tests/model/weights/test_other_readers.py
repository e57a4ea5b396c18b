"""Exported folders hold what vLLM and llama.cpp's converter look for; their sides are stated here, not run.

vLLM: vllm/model_executor/models/audioflamingo3.py and musicflamingo.py (modules without a renaming of weights, encoder
Qwen2AudioEncoder, language model Qwen2ForCausalLM). llama.cpp: conversion/__init__.py, qwen.py, ultravox.py, base.py,
and the names of gguf-py/gguf/tensor_mapping.py.
"""

import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor, Qwen2ForCausalLM
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from afn_model import AFNext
from afn_model.config import RoteConfig
from tests import tiny

KINDS = {"checkpoint": "MusicFlamingo", "none": "AudioFlamingo3"}
LLAMA_CPP = ["AudioFlamingo3ForConditionalGeneration"]  # in its tables of text models and of projectors


@pytest.fixture(params=KINDS)
def exported(request, tmp_path):
    of = tiny.processor(boundaries=request.param == "checkpoint")
    torch.manual_seed(0)
    edges = {name: of.token_id(f"<|sound_{name[6:9]}|>") for name in ("audio_bos_token_id", "audio_eos_token_id")}
    AFNext(tiny.config(of, rote=RoteConfig(request.param), **edges)).save_pretrained(tmp_path, layout="hub")
    of.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return tmp_path, request.param, shapes


def under(shapes, prefix):
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def of_module(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_vllm_finds_its_modules(exported):
    folder, kind, shapes = exported
    config = AutoConfig.from_pretrained(folder)
    assert config.architectures == [f"{KINDS[kind]}ForConditionalGeneration"]
    with torch.device("meta"):
        encoder, told = Qwen2AudioEncoder(config.audio_config), Qwen2ForCausalLM(config.text_config)
    assert under(shapes, "audio_tower.") == of_module(encoder)
    assert under(shapes, "language_model.") == of_module(told)
    heard, width = config.audio_config.hidden_size, config.text_config.hidden_size
    linear = {"linear_1.weight": (width, heard), "linear_2.weight": (width, width)}
    assert under(shapes, "multi_modal_projector.") == linear | {f"linear_{n}.bias": (width,) for n in (1, 2)}
    rest = [n for n in shapes if not n.startswith(("audio_tower.", "language_model.", "multi_modal_projector."))]
    assert rest == []
    assert (config.projector_hidden_act, config.projector_bias) == ("gelu", True)


def test_vllm_finds_the_processor(exported):
    folder, kind, _ = exported
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == f"{KINDS[kind]}Processor"
    extractor = processor.feature_extractor
    assert (extractor.chunk_length, extractor.sampling_rate, extractor.feature_size) == (30, 16_000, 128)
    assert processor.max_audio_len == 1800
    vocabulary = processor.tokenizer.get_vocab()
    for token in ("audio_token", "audio_bos_token", "audio_eos_token")[: 3 if kind == "checkpoint" else 1]:
        assert vocabulary[getattr(processor, token)] == getattr(AutoConfig.from_pretrained(folder), f"{token}_id")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]]


def test_llama_cpp_finds_both_models_where_there_is_no_time_embedding(exported):
    folder, kind, shapes = exported
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"] == LLAMA_CPP) == (kind == "none")
    sizes = {"num_mel_bins", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"}
    assert sizes <= config["audio_config"].keys()
    text = [name for name in shapes if "audio_" not in name and "projector." not in name]
    assert all(name.startswith(("language_model.model.", "language_model.lm_head.")) for name in text)
    layer = r"layers\.\d+\.(self_attn\.(q|k|v|out)_proj|self_attn_layer_norm|fc1|fc2|final_layer_norm)"
    known = rf"audio_tower\.(conv[12]|embed_positions|layer_norm|{layer})|multi_modal_projector\.linear_[12]"
    heard = [name for name in shapes if name not in text]
    assert all(re.fullmatch(rf"({known})\.(weight|bias)", name) for name in heard)
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= {
        file.name for file in folder.iterdir()
    }


def test_the_layout_of_transformers_has_other_names(tmp_path):
    AFNext(tiny.config()).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith(("audio_tower.", "multi_modal_projector."))]  # noqa: SIM118
