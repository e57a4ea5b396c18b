"""Patch AF-Next as transformers builds it: one line before, the same logits after.

    python examples/patch_af_next.py

Takes transformers. AF-Next is its MusicFlamingo; this one is tiny and has random weights, yours comes from
``MusicFlamingoForConditionalGeneration.from_pretrained(folder)``.
"""

from typing import Any

import torch
from transformers import MusicFlamingoConfig, MusicFlamingoForConditionalGeneration

import afn_kernels as ak

SOUND, BOS, EOS = 300, 301, 302
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny() -> MusicFlamingoForConditionalGeneration:
    torch.manual_seed(0)
    audio = {"model_type": "audioflamingo3_encoder", **SIZES}
    text = {"model_type": "qwen2", "vocab_size": 320, "num_key_value_heads": 1, **SIZES}
    tokens: dict[str, Any] = {"audio_token_id": SOUND, "audio_bos_token_id": BOS, "audio_eos_token_id": EOS}
    rope = {"rope_type": "default", "rope_theta": 1200.0, "partial_rotary_factor": 0.2}
    config = MusicFlamingoConfig(audio_config=audio, text_config=text, rope_parameters=rope, **tokens)
    return MusicFlamingoForConditionalGeneration(config).eval()


def inputs() -> dict[str, torch.Tensor]:
    """One question about 4 s of noise: 100 audio tokens between its bounds, then words."""
    pcm = 0.1 * torch.randn(4 * 16_000)
    extract = ak.FeatureExtractor(feature_size=128)
    audio = extract(pcm.numpy(), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    ids = torch.tensor([[5, BOS, *[SOUND] * 100, EOS, 17, 18, 19]])
    return {"input_ids": ids, "input_features": audio.input_features, "input_features_mask": audio.attention_mask}


@torch.no_grad()
def main() -> float:
    model, batch = tiny(), inputs()
    before = model(**batch).logits

    report = ak.patch(model)  # the one line
    print(report)

    after = model(**batch).logits
    apart = ((after - before).abs().max() / before.abs().max()).item()
    print(f"logits {list(after.shape)}, largest difference {apart:.1e} of their largest value")
    report.revert()
    print(f"after revert() the same bits: {torch.equal(model(**batch).logits, before)}")
    return apart


if __name__ == "__main__":
    main()
