"""The voice's configuration: the paper's numbers, config.json both ways, and values that are none."""

import json
from dataclasses import replace

import pytest

from afn_model.speech.config import CodecConfig, VoiceConfig, voice_config, voice_json, voice_preset


def test_the_full_size_has_the_papers_numbers():
    codec = voice_preset("af-next-talker").codec
    assert (codec.frame, codec.look_ahead) == (4096, 24)
    assert round(codec.frame_rate, 2) == 10.77
    assert round(codec.bits_per_second) == round(72 * 10 * 44_100 / 4096) == 7752


@pytest.mark.parametrize("name", ["af-next-talker", "tiny"])
def test_config_json_both_ways(name):
    config = voice_preset(name)
    assert voice_config(json.loads(json.dumps(voice_json(config)))) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"widths": (8, 8)}, "codec config: 2 widths but 3 strides"),
        ({"strides": 8}, "codec config: strides must be a list of whole numbers, got 8"),
        ({"strides": ()}, r"codec config: strides must be a list of whole numbers, got \(\)"),
        ({"strides": (8, 0, 8)}, "codec config: one of strides must be a whole number from 1 to 16777216, got 0"),
        ({"window": 24}, "codec config: window 24 must be a multiple of twice the hop, 8"),
        ({"levels": 0}, "codec config: levels must be a whole number from 1 to 16777216, got 0"),
        ({"codebook": "kmeans"}, "codec config: codebook 'kmeans': expected 'ema' or 'gradient'"),
        ({"decay": 1.0}, "codec config: decay must be below 1, got 1.0"),
    ],
)
def test_values_that_are_none_are_refused_in_one_line(changes, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        replace(CodecConfig(), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "whisper"}, "model_type is 'whisper', expected 'afn_voice'"),
        ({"codec": None}, "codec must be an object, got None"),
        ({"codec": {"hops": 8}}, "codec: no field 'hops'; there are blocks, .*"),
        ({"talker": 3}, "talker must be an object, got 3"),
    ],
)
def test_a_config_json_that_is_none_is_refused_in_one_line(changes, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        voice_config(voice_json(VoiceConfig()) | changes)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"^no voice 'huge'; there are af-next-talker, tiny$"):
        voice_preset("huge")
