"""FLOPs of a voice's parts and steps, against those that PyTorch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from afn_model.config import TextConfig
from afn_model.speech.codec import Codec
from afn_model.speech.config import CodecConfig, TalkerConfig, VoiceConfig
from afn_model.speech.discriminators import Discriminators
from afn_model.speech.voice import AFVoice
from afn_model.train.codec import CodecSettings, CodecTraining
from afn_model.train.talker import TalkerSettings, TalkerTraining
from afn_model.train.voice_flops import codec_way_flops
from tests.model.train.test_talker import heard, step
from tests.model.train.voices import CODEC, FRAME, RATE, save_voice


def counted(work) -> float:
    with FlopCounterMode(display=False) as found:
        work()
    return found.get_total_flops()


def test_a_codec_each_way():
    config = CodecConfig(8_000, 16, 4, (64, 128), (8, 4), 2, 3, latent=96, levels=2, codes=8)
    codec, pcm = Codec(config).eval(), torch.randn(1, 8_000)
    with torch.no_grad():
        latent = codec.encode(pcm)
        for way in (lambda: codec.encode(pcm), lambda: codec.decode(latent)):
            # It does not see the depthwise convolutions; the front reads a little more than the head writes.
            assert codec_way_flops(config) == pytest.approx(counted(way), rel=0.03)


def trained(method, given) -> float:
    def work():
        for losses in method.updates(given):
            for loss in losses:
                loss().backward()

    return counted(work)


@pytest.mark.parametrize("start", [None, 0])
def test_a_step_of_the_codec(tmp_path, start):
    save_voice(tmp_path)
    voice = AFVoice.from_pretrained(tmp_path).train()
    settings = CodecSettings(**CODEC | {"adversarial_start": start})
    if start is not None:
        voice.discriminators = Discriminators(**settings.discriminators)
    method = CodecTraining(voice, settings)
    size = settings.samples(voice.codec.config) // FRAME
    found = trained(method, step(*(heard(seed, size, 3, 0) for seed in (1, 2))))
    assert method.work()["flops"] == pytest.approx(found, rel=0.1)


def test_a_step_of_the_talker():
    codec = CodecConfig(RATE, 16, 4, (8,), (16,), 1, 3, latent=8, levels=4, codes=8)
    text = TextConfig(300, 64, 3, 4, kv_heads=2, ffn=128, max_positions=256)
    voice = AFVoice(VoiceConfig(codec, TalkerConfig(text, head_width=64, head_layers=2, components=8, iterations=2)))
    voice.train()
    voice.codec.requires_grad_(False)
    method = TalkerTraining(voice, TalkerSettings(draws=2))
    found = trained(method, step(heard(1, 12, 5, 0), heard(2, 8, 3, 4)))
    work = method.work()
    assert work["flops"] == pytest.approx(found, rel=0.1)
    assert (work["tokens"], work["audio_seconds"]) == (20, pytest.approx(20 * FRAME / RATE))
