"""The audio encoder: its cost against the length of the clip, and against computing the whole padded window.

    python -m bench.encoder [--out results.jsonl] [--rounds 5]

The reference implementation in transformers computes all 1,500 positions of every window, whatever it holds.
"""

import torch

from afn_model import AFNext, preset
from afn_model.network.encoder import Windows
from bench.measure import main, milliseconds

SECONDS = (1, 3, 10, 30)


def transformers_encoder(config):
    """The same encoder in transformers, or None where it is not installed."""
    try:
        from transformers import AudioFlamingo3Encoder, AudioFlamingo3EncoderConfig
    except ImportError:
        return None
    shape = AudioFlamingo3EncoderConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.ffn,
    )
    return AudioFlamingo3Encoder(shape).eval()


@torch.inference_mode()
def measure(rounds: int, device: str) -> dict:
    """Milliseconds of one clip of each length, small preset, float32."""
    torch.manual_seed(0)
    config = preset("small").audio
    encoder = AFNext(preset("small")).encoder.eval().to(device)
    reference = transformers_encoder(config)
    mel = torch.randn(1, config.n_mels, 3000, device=device)
    calls = {}
    for seconds in SECONDS:
        windows = Windows.of([100 * seconds], torch.device(device), torch.float32)
        calls[f"ours, {seconds} s"] = lambda windows=windows: encoder(mel, windows)
        if reference is not None:
            reference.to(device)
            mask = (torch.arange(3000, device=device) < 100 * seconds)[None].long()
            calls[f"transformers, {seconds} s"] = lambda mask=mask: reference(mel, input_features_mask=mask)
    times = milliseconds(calls, rounds)
    for name, value in times.items():
        print(f"{name:<22}{value:9.1f} ms")
    share = times["ours, 3 s"] / times["ours, 30 s"]
    print(f"3 s costs {share:.2f} of 30 s")
    return {"benchmark": "encoder_small", "milliseconds": times, "share_of_3_s_in_30_s": round(share, 3)}


if __name__ == "__main__":
    main(__doc__, measure, rounds=5, devices=("cpu", "cuda"))
