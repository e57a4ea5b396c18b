"""Whisper's layout: both ways with transformers, and the encoder to and from a model of AF-Next."""

import json
from dataclasses import replace

import pytest
import torch

from afn_model import AFNext
from afn_model.config import SpeechConfig, preset
from afn_model.network.speech_network import SpeechNetwork
from afn_model.weights.speech import (
    is_speech,
    load_encoder,
    load_speech,
    replace_encoder,
    save_speech,
    speech_config,
    speech_json,
)
from tests.model.network.test_speech_decoder import CONFIG, whisper

transformers = pytest.importorskip("transformers")


def test_whisper_both_ways(tmp_path):
    theirs = whisper()
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_speech(SpeechNetwork, tmp_path / "theirs")
    assert model.config == CONFIG
    save_speech(model, tmp_path / "ours")
    again, told = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not told["missing_keys"] - {"proj_out.weight"}
    assert not told["unexpected_keys"]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("changes", [{"width": 48, "pooled": True}, {"positions": "rotary", "rope_theta": 500.0}])
def test_what_whisper_has_not(tmp_path, changes):
    torch.manual_seed(0)
    model = SpeechNetwork(replace(CONFIG, **changes))
    save_speech(model.bfloat16(), tmp_path)
    again = load_speech(SpeechNetwork, tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_ctc_head_is_kept_and_transformers_passes_over_it(tmp_path):
    model = SpeechNetwork(replace(CONFIG, ctc=True))
    torch.nn.init.normal_(model.ctc_head.weight)
    save_speech(model, tmp_path)
    again = load_speech(SpeechNetwork, tmp_path)
    assert again.config == model.config
    assert torch.equal(again.ctc_head.weight, model.ctc_head.weight)
    theirs, told = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(told["unexpected_keys"]) == {"ctc_head.weight", "ctc_head.bias"}
    assert not told["missing_keys"] - {"proj_out.weight"}
    assert torch.equal(theirs.model.encoder.conv1.weight, model.encoder.conv1.weight)
    (tmp_path / "config.json").write_text(json.dumps(speech_json(replace(CONFIG, ctc=False))))
    with pytest.raises(ValueError, match="2 tensors unexpected: ctc_head.bias"):
        load_speech(SpeechNetwork, tmp_path)


def test_full_sizes_survive_their_json():
    for config in (SpeechConfig(), replace(SpeechConfig(), positions="rotary", pooled=True, ctc=True)):
        assert speech_config(json.loads(json.dumps(speech_json(config)))) == config


def test_an_encoder_from_either_folder(tmp_path):
    torch.manual_seed(0)
    config = preset("tiny")
    model = AFNext(config)
    model.save_pretrained(tmp_path / "next")
    encoder = load_encoder(tmp_path / "next")
    speech = SpeechNetwork(replace(CONFIG, audio=config.audio))
    speech.encoder.load_state_dict(encoder.state_dict())
    save_speech(speech, tmp_path / "speech")
    assert is_speech(tmp_path / "speech")
    assert not is_speech(tmp_path / "next")
    for name, tensor in load_encoder(tmp_path / "speech").state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[name]), name
    other = AFNext(config).bfloat16()
    replace_encoder(other, tmp_path / "speech")
    assert torch.equal(other.encoder.conv1.weight, model.encoder.conv1.weight.bfloat16())
    save_speech(SpeechNetwork(CONFIG), tmp_path / "small")
    with pytest.raises(ValueError, match="its encoder is AudioConfig"):
        replace_encoder(model, tmp_path / "small")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"d_model": 0}, "d_model"),
        ({"decoder_attention_heads": 5}, "over 5 heads"),
        ({"decoder_positions": "none"}, "expected 'learned' or 'rotary'"),
        ({"decoder_layers": 3}, "tensors missing"),
    ],
)
def test_what_cannot_be_read(tmp_path, change, said):
    save_speech(SpeechNetwork(CONFIG), tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | change))
    with pytest.raises(ValueError, match=said) as error:
        load_speech(SpeechNetwork, tmp_path)
    assert "\n" not in str(error.value)
