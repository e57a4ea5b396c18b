"""Small transformers models with random weights, and inputs for them: what parity tests compare against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    MusicFlamingoConfig,
    MusicFlamingoForConditionalGeneration,
)

SOUND, BOS, EOS, STOP = 300, 301, 302, 303


def tiny_reference(family: str, seed: int, *, width: int = 160, layers: int = 2):
    """A transformers MusicFlamingo or AudioFlamingo3 with weights large enough to make every part matter."""
    torch.manual_seed(seed)
    audio = {
        "model_type": "audioflamingo3_encoder",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
    }
    text = {
        "model_type": "qwen2",
        "vocab_size": 320,
        "hidden_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 15_300_000.0},
        "eos_token_id": STOP,
        "bos_token_id": None,
    }
    if family == "musicflamingo":
        # Releases differ in this number, which is both the base of the frequencies and the divisor of positions.
        rope = {"rope_type": "default", "rope_theta": 1200.0 + 600 * seed, "partial_rotary_factor": 0.2}
        ids = {"audio_token_id": SOUND, "audio_bos_token_id": BOS, "audio_eos_token_id": EOS}
        model = MusicFlamingoForConditionalGeneration(
            MusicFlamingoConfig(audio_config=audio, text_config=text, rope_parameters=rope, **ids)
        )
    else:
        config = AudioFlamingo3Config(audio_config=audio, text_config=text, audio_token_id=SOUND)
        model = AudioFlamingo3ForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
        else:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@dataclass
class Prompts:
    """Left-padded prompts as transformers makes them, one audio each."""

    input_ids: Tensor
    attention_mask: Tensor
    mel: Tensor
    mel_lengths: Tensor

    @property
    def mel_mask(self) -> Tensor:
        return (torch.arange(3000) < self.mel_lengths[:, None]).long()


def prompts(windows: list[list[int]], seed: int) -> Prompts:
    """One prompt per list of window lengths (mel frames); texts of different lengths around the audio."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [length for audio in windows for length in audio]
    rows = []
    for index, audio in enumerate(windows):
        tokens = sum(((length - 1) // 2 + 1) // 2 for length in audio)
        before = torch.randint(0, 290, (3 + index,), generator=generator).tolist()
        after = torch.randint(0, 290, (5 + 2 * index,), generator=generator).tolist()
        rows.append([*before, BOS, *[SOUND] * tokens, EOS, *after])
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    mel = torch.randn(len(lengths), 128, 3000, generator=generator)
    return Prompts(ids, mask, mel, torch.tensor(lengths))
