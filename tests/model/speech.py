"""A small encoder with its decoder, and batches for it."""

from dataclasses import replace

import torch

from afn_model.afwhisper import AFWhisper
from afn_model.bootstrap.tiny import build
from afn_model.config import AudioConfig, SpeechConfig
from afn_model.prompt.processor import AFNextProcessor

AUDIO = AudioConfig(n_mels=128, width=32, layers=2, heads=4, ffn=64)
CONFIG = SpeechConfig(AUDIO, width=32, layers=2, heads=4, ffn=64, max_positions=200)


def speech_model(seed=0, **changes) -> tuple[AFWhisper, AFNextProcessor]:
    """With random weights, and the processor of the tiny whole model."""
    _, processor = build(seed)
    processor.max_positions = 2000
    config = replace(
        CONFIG,
        vocab_size=processor.tokenizer.get_vocab_size(),
        audio_token_id=processor.sound_id,
        stop_token_ids=(processor.token_id("<|im_end|>"),),
        **changes,
    )
    torch.manual_seed(seed)
    model = AFWhisper(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # so that what is heard counts
            if weight.dim() == 2 and "embed_positions" not in name:
                weight.mul_(10)
    return model, processor


def said(text, *seconds, seed=0):
    """A conversation about noises of so many seconds each, with its answer."""
    noise = torch.Generator().manual_seed(seed)
    audios = [0.1 * torch.randn(round(16_000 * length), generator=noise) for length in seconds]
    parts = [{"type": "audio", "audio": audio} for audio in audios]
    question = [*parts, {"type": "text", "text": "What word do you hear?"}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
