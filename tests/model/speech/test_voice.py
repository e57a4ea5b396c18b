"""A voice's folder: both ways to the bit, and what is wrong with others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from afn_model.speech.config import VoiceConfig
from afn_model.speech.voice import AFVoice, is_voice, voice_on_meta
from tests.model.speech.small import CONFIG, codec, sound


def voice() -> AFVoice:
    made = AFVoice(VoiceConfig(CONFIG))
    made.codec.load_state_dict(codec().train().state_dict())
    made.codec.train()(sound(2000))
    made.codec.quantizer.update()
    return made.eval()


@pytest.mark.parametrize("default", [None, torch.randint(0, 16, (7, 4), generator=torch.Generator().manual_seed(1))])
def test_both_ways_to_the_bit(tmp_path, default):
    made = voice()
    made.default_voice = default
    made.save_pretrained(tmp_path / "a")
    again = AFVoice.from_pretrained(tmp_path / "a")
    assert is_voice(tmp_path / "a")
    assert again.config == made.config
    assert again.device == torch.device("cpu")
    assert not again.training
    assert set(again.state_dict()) == set(made.state_dict())
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert tensor.dtype == again.state_dict()[name].dtype
    assert torch.equal(again.codec.codes(sound(500)), made.codec.codes(sound(500)))
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/config.json").read_bytes() == (tmp_path / "b/config.json").read_bytes()


def test_another_dtype_sounds_alike(tmp_path):
    made = voice()
    made.save_pretrained(tmp_path)
    half = AFVoice.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.codec.head.linear.weight.dtype == torch.bfloat16
    latent = made.codec.encode(sound(2000))
    one, other = made.codec.decode(latent), half.codec.decode(latent)
    assert other.dtype == torch.float32
    assert half.codec.codes(sound(500)).shape == made.codec.codes(sound(500)).shape
    assert torch.nn.functional.cosine_similarity(one, other).min() > 0.9


def test_on_meta_nothing_is_read(tmp_path):
    voice().save_pretrained(tmp_path)
    empty, stored = voice_on_meta(tmp_path)
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    assert set(stored) == set(empty.state_dict())


def test_folders_that_hold_no_voice_are_refused_in_one_line(tmp_path):
    assert not is_voice(tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path}: no config.json$"):
        AFVoice.from_pretrained(tmp_path)
    voice().save_pretrained(tmp_path)
    file, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    told, tensors = json.loads(file.read_text()), load_file(weights)

    def refused(config: dict, change: dict, said: str) -> None:
        file.write_text(json.dumps(told | config))
        save_file({k: v for k, v in (tensors | change).items() if v is not None}, weights)
        with pytest.raises(ValueError, match=said) as error:
            AFVoice.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)

    refused({"model_type": "llama"}, {}, "config.json: model_type is 'llama', expected 'afn_voice'$")
    refused({}, {"codec.head.norm.weight": None}, "1 tensors missing: codec.head.norm.weight$")
    refused({}, {"codec.more": torch.zeros(1)}, "1 tensors unexpected: codec.more$")
    refused({}, {"codec.head.norm.weight": torch.zeros(3)}, r"norm.weight has shape \(3,\), expected \(16,\)$")
    refused({}, {"default_voice": torch.zeros(3, 4)}, r"default_voice is F32 \(3, 4\), expected I64 of \(frames, 4\)$")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or not a safetensors file"):
        AFVoice.from_pretrained(tmp_path)
