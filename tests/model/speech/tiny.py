"""A voice that is as small as one can be, with random weights."""

import torch

from afn_model.config import TextConfig
from afn_model.speech.config import CodecConfig, TalkerConfig, VoiceConfig
from afn_model.speech.voice import AFVoice

CODEC = CodecConfig(8000, 8, 2, (8,), (4,), 1, 3, latent=8, levels=4, codes=9)


def tiny_talker(**changes) -> TalkerConfig:
    text = TextConfig(50, 32, 2, 2, 1, 48, rope_theta=1e4, max_positions=512)
    return TalkerConfig(text, head_width=24, components=6, iterations=3, prompt=8, **changes)


def tiny_voice(ends: float = 0.0, **changes) -> AFVoice:
    """A talker that text and prompt matter to as they do after training; ``ends`` is the end's logit."""
    torch.manual_seed(0)
    voice = AFVoice(VoiceConfig(CODEC, tiny_talker(**changes))).eval()
    talker = voice.talker
    assert talker is not None
    with torch.no_grad():
        voice.codec.quantizer.codebooks.normal_(std=0.7)
        talker.head.hidden_proj.weight.normal_()
        talker.head.out.weight.normal_(std=0.3)
        talker.end_head.weight.zero_()
        talker.end_head.bias.fill_(ends)
    return voice
