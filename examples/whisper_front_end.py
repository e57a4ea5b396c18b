"""Log-mel features for Whisper from the compiled kernel, and its first two convolutions as a module.

    python examples/whisper_front_end.py

Takes transformers. The weights are random: with a folder of real ones write ``from_pretrained(folder)`` twice.
"""

import time
from typing import Any

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

import afn_kernels as ak

RATE = 16_000


def whisper() -> WhisperModel:
    """A Whisper with random weights that takes 5 s windows of 80 mel bins."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "max_source_positions": 250}
    heads: dict[str, Any] = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
    }
    return WhisperModel(WhisperConfig(**settings, **heads)).eval()


@torch.no_grad()
def main():
    encoder = whisper().encoder
    noise = np.random.default_rng(0)
    recordings = [0.1 * noise.standard_normal(seconds * RATE, dtype=np.float32) for seconds in (2, 5, 3)]
    hidden = []
    for kind in (WhisperFeatureExtractor, ak.FeatureExtractor):
        extract = kind(feature_size=80, chunk_length=5)
        extract(recordings, sampling_rate=RATE)  # the first call loads
        start = time.perf_counter()
        features = extract(recordings, sampling_rate=RATE, return_tensors="pt").input_features
        print(f"{kind.__name__:<24} {list(features.shape)} in {1e3 * (time.perf_counter() - start):.1f} ms")
        hidden.append(encoder(features).last_hidden_state)
    apart = (hidden[0] - hidden[1]).abs().max() / hidden[0].abs().max()
    print(f"encoder output {list(hidden[0].shape)}, largest difference {apart:.1e} of its largest value")

    front = ak.nn.AudioFrontEnd(n_mels=80, width=64)  # pcm [B, T] -> [B, T / 320, width], keys of Whisper's encoder
    front.load_state_dict({k: v for k, v in encoder.state_dict().items() if k.startswith("conv")})
    pcm = torch.from_numpy(recordings[1])[None]  # the one that fills its window
    print(f"front end as a module: {list(pcm.shape)} samples to {list(front(pcm).shape)}")
    return apart


if __name__ == "__main__":
    main()
