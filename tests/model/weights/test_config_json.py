"""config.json: every field is read, checked by type and range, or refused by its name."""

import json

import pytest

from afn_model.config import AudioConfig, ModelConfig, RoteConfig, TextConfig
from afn_model.weights.config_json import from_json, read_config, resolve_tokens, to_json
from tests import tiny

CONFIG = tiny.config()


def written(**changes) -> dict:
    """A config.json with changes: ``text__layers`` is the field of the text_config."""
    raw = json.loads(json.dumps(to_json(CONFIG, "float32")))
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        home = raw[f"{part}_config"] if part else raw
        home[key] = value
    return raw


NUMBERS = {
    "text__num_attention_heads": (0, "text_config.num_attention_heads must be a whole number from 1"),
    "text__num_key_value_heads": (0, "text_config.num_key_value_heads must be a whole number from 1"),
    "text__hidden_size": ("128", "text_config.hidden_size must be a whole number from 1 to 16777216, got '128'"),
    "text__num_hidden_layers": (2.5, "text_config.num_hidden_layers must be a whole number"),
    "text__intermediate_size": (10**18, "text_config.intermediate_size must be a whole number"),
    "text__vocab_size": (True, "text_config.vocab_size must be a whole number"),
    "text__max_position_embeddings": (None, "text_config.max_position_embeddings is missing"),
    "text__rms_norm_eps": (float("nan"), "text_config.rms_norm_eps must be a finite number above 0, got nan"),
    "text__rope_theta": (-10_000.0, "text_config.rope_theta must be a finite number above 0"),
    "text__rope_parameters": ({"rope_theta": 0}, "text_config.rope_parameters.rope_theta must be a finite number"),
    "text__head_dim": ("16", "text_config.head_dim must be a whole number"),
    "audio__hidden_size": (-32, "audio_config.hidden_size must be a whole number from 1"),
    "audio__num_mel_bins": (1e3, "audio_config.num_mel_bins must be a whole number"),
    "audio__max_source_positions": ([], "audio_config.max_source_positions must be a whole number"),
    "audio_token_id": ("299", "audio_token_id must be a whole number from 0"),
    "audio_bos_token_id": (1.5, "audio_bos_token_id must be a whole number"),
    "eos_token_id": ([1, None], "eos_token_id must be a whole number"),
    "repetition_penalty": ("1.2", "repetition_penalty must be a finite number above 0"),
    "rope_parameters": ({"rope_theta": 10**400}, "rope_parameters.rope_theta must be a finite number"),
    "rote": ({"reading": ["paper"]}, "rote reading"),
    "text_config": (None, "text_config must be an object, got None"),
    "audio_config": ([1], "audio_config must be an object"),
}
COMPUTED = {
    "text__hidden_act": ("gelu", "text_config.hidden_act is 'gelu'; this model computes 'silu' or 'swish'"),
    "text__model_type": ("gemma2", "text_config.model_type is 'gemma2'; this model computes 'qwen2'"),
    "text__layer_types": (["full_attention", "sliding_attention"], "text_config.layer_types"),
    "text__use_sliding_window": (True, "text_config.use_sliding_window"),
    "text__tie_word_embeddings": (True, "text_config.tie_word_embeddings"),
    "text__rope_parameters": ({"rope_type": "default", "mrope_section": [1]}, "rope_parameters.mrope_section"),
    "text__rope_scaling": ({"type": "yarn", "factor": 4.0}, "text_config.rope_scaling: rope scaling 'yarn'"),
    "text__quantization_config": ({"bits": 4}, "text_config.quantization_config"),
    "audio__activation_function": ("gelu_new", "audio_config.activation_function is 'gelu_new'"),
    "audio__scale_embedding": (True, "audio_config.scale_embedding"),
    "tie_word_embeddings": (True, "tie_word_embeddings is True; this model computes False"),
    "projector_hidden_act": ("relu", "projector_hidden_act is 'relu'"),
    "projector_bias": (False, "projector_bias is False"),
    "audio_frame_step": (0.02, "audio_frame_step is 0.02"),
    "quantization_config": ({"quant_method": "fp8"}, "quantization_config"),
    "rope_parameters": ({"rope_type": "linear", "factor": 2}, "rope_parameters: rope scaling 'linear'"),
    "rote": ({"speed": 2}, "rote.speed is not computed by this model"),
}


def refused(folder, raw) -> str:
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        read_config(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("field", NUMBERS)
def test_what_is_no_number_of_its_range(tmp_path, field):
    value, line = NUMBERS[field]
    assert line in refused(tmp_path, written(**{field: value}))


@pytest.mark.parametrize("field", COMPUTED)
def test_what_changes_the_computation(tmp_path, field):
    value, line = COMPUTED[field]
    assert line in refused(tmp_path, written(**{field: value}))


def test_a_missing_part_is_named(tmp_path):
    raw = written()
    del raw["audio_config"]
    assert "audio_config is missing" in refused(tmp_path, raw)
    raw = written()
    del raw["text_config"]["hidden_size"]
    assert "text_config.hidden_size is missing" in refused(tmp_path, raw)


def test_null_is_as_good_as_absent(tmp_path):
    nothing = dict.fromkeys(("text__head_dim", "text__rope_scaling", "text__layer_types", "quantization_config"))
    nothing |= dict.fromkeys(("eos_token_id", "repetition_penalty", "text__quantization_config", "tie_word_embeddings"))
    found = from_json(written(**nothing))
    assert found.stop_token_ids == CONFIG.stop_token_ids  # those of the text_config
    assert found.repetition_penalty == 1.2
    (tmp_path / "config.json").write_text(json.dumps(written()))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": None, "repetition_penalty": None}))
    assert read_config(tmp_path) == from_json(written())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "repetition_penalty": 1.5}))
    found = read_config(tmp_path)
    assert (found.stop_token_ids, found.repetition_penalty) == ((7,), 1.5)
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": float("nan")}))
    with pytest.raises(ValueError, match="repetition_penalty must be a finite number above 0, got nan"):
        read_config(tmp_path)


def test_a_speech_decoder_is_no_whole_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    with pytest.raises(ValueError, match=r"config\.json: an encoder with a decoder of its own and no language model"):
        read_config(tmp_path)


def test_as_many_kv_heads_as_heads_where_nothing_says_otherwise():
    assert from_json(written(text__num_key_value_heads=None)).text.kv_heads == CONFIG.text.heads


@pytest.mark.parametrize("name", ["musicflamingo", "audioflamingo3"])
def test_what_transformers_writes_is_read(name):
    transformers = pytest.importorskip("transformers")
    kind = {"musicflamingo": transformers.MusicFlamingoConfig, "audioflamingo3": transformers.AudioFlamingo3Config}
    found = from_json(json.loads(kind[name]().to_json_string(use_diff=False)))
    assert found.audio == AudioConfig()
    assert found.rote == (RoteConfig() if name == "musicflamingo" else RoteConfig("none"))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: TextConfig(heads=0), "text config: heads must be a whole number from 1"),
        (lambda: TextConfig(rms_eps=-1.0), "text config: rms_eps must be a finite number above 0"),
        (lambda: AudioConfig(width="1280"), "audio config: width must be a whole number"),
        (lambda: RoteConfig(theta=float("inf")), "rote: theta must be a finite number above 0"),
        (lambda: RoteConfig(fraction=1.5), "rote fraction must be at most 1"),
        (lambda: RoteConfig(accurate="no"), "rote accurate must be true or false"),
        (lambda: ModelConfig(stop_token_ids=(-1,)), "a stop token's id must be a whole number from 0"),
        (lambda: ModelConfig(repetition_penalty=0.0), "repetition_penalty must be a finite number above 0"),
        (lambda: ModelConfig(audio_token_id=None), "audio_token_id must be a whole number from 0"),
    ],
)
def test_dataclasses_check_their_numbers(make, line):
    with pytest.raises(ValueError, match=line):
        make()


@pytest.mark.parametrize(
    ("tokenizer", "line"),
    [
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "model 'Unigram' has no vocabulary of names and ids"),
        ({"model": None}, "model None has no vocabulary"),
        ({"model": {"vocab": {"a": "0"}}}, "token 'a' has the id '0'"),
        ({"model": {"vocab": {"a": -1}}}, "token 'a' has the id -1"),
        ({"model": {"vocab": {}}, "added_tokens": [3]}, "3 is no added token"),
        ({"model": {"vocab": {}}, "added_tokens": [{"content": "<sound>"}]}, "token '<sound>' has the id None"),
    ],
)
def test_tokenizers_without_ids(tmp_path, tokenizer, line):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: {line}"):
        resolve_tokens(CONFIG, tmp_path)


def test_tokens_are_found_by_their_text(tmp_path):
    added = [{"content": "<sound>", "id": 7}, {"content": "<|im_end|>", "id": 9}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": added}))
    found = resolve_tokens(CONFIG, tmp_path)
    assert (found.audio_token_id, found.audio_bos_token_id, found.stop_token_ids) == (7, None, (9,))
