"""The speech decoder against transformers' Whisper, and its cache against whole texts."""

import pytest
import torch

from afn_model.config import AudioConfig, SpeechConfig
from afn_model.network.encoder import Windows
from afn_model.network.speech_network import SpeechNetwork

transformers = pytest.importorskip("transformers")

AUDIO = AudioConfig(n_mels=16, width=32, layers=2, heads=4, ffn=64)
CONFIG = SpeechConfig(AUDIO, vocab_size=90, width=32, layers=2, heads=4, ffn=64, max_positions=40)


def whisper(config=CONFIG):
    torch.manual_seed(1)
    told = transformers.WhisperConfig(
        vocab_size=config.vocab_size, num_mel_bins=config.audio.n_mels, d_model=config.width,
        encoder_layers=config.audio.layers, encoder_attention_heads=config.audio.heads,
        encoder_ffn_dim=config.audio.ffn, decoder_layers=config.layers, decoder_attention_heads=config.heads,
        decoder_ffn_dim=config.ffn, max_target_positions=config.max_positions, max_source_positions=1500,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None,
        begin_suppress_tokens=None, init_std=0.2,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(told).eval()


def ours(theirs):
    model = SpeechNetwork(CONFIG).eval()
    model.load_state_dict(
        {name.removeprefix("model."): x for name, x in theirs.state_dict().items() if "proj_out" not in name}
    )
    return model


def test_logits_of_whisper():
    theirs = whisper()
    model, mel = ours(theirs), torch.randn(2, 16, 3000)
    windows = Windows.of([3000, 3000], mel.device, mel.dtype)
    tokens = torch.randint(4, 90, (2, 11))
    with torch.no_grad():
        expected = theirs(input_features=mel, decoder_input_ids=tokens).logits
        hidden = model(mel, windows, tokens.flatten(), torch.tensor([0, 11, 22], dtype=torch.int32))
        encoded = theirs.model.encoder(mel).last_hidden_state
    torch.testing.assert_close(model.encode(mel, windows)[0].unflatten(0, (2, 1500)), encoded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.logits(hidden).unflatten(0, (2, 11)), expected, rtol=1e-5, atol=1e-5)
