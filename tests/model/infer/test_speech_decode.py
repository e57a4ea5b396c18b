"""Greedy and beam search of the speech decoder against transformers."""

import pytest
import torch
import transformers
from transformers.generation import GenerationMixin

from afn_model.infer.speech_decode import decode
from afn_model.network.encoder import Windows
from tests.model.network.test_speech_decoder import ours, whisper


@pytest.mark.parametrize(("beams", "penalty"), [(1, 1.0), (3, 1.0), (5, 0.6)])
def test_texts_of_transformers(beams, penalty):
    theirs = whisper()
    model, mel = ours(theirs), torch.randn(3, 16, 3000)
    windows = Windows.of([3000] * 3, mel.device, mel.dtype)
    prompt = torch.tensor([[3, 7, 8]] * 3)
    with torch.no_grad():
        frames, cu = model.encode(mel, windows)
        settings = transformers.GenerationConfig(
            num_beams=beams, length_penalty=penalty, do_sample=False, max_new_tokens=30, eos_token_id=2, pad_token_id=0
        )
        encoded = theirs.model.encoder(mel)
        expected = GenerationMixin.generate(
            theirs, encoder_outputs=encoded, decoder_input_ids=prompt, generation_config=settings
        )
    found = decode(model, frames, cu, prompt.tolist(), stop=2, most=30, beams=beams, length_penalty=penalty)
    for row, one in zip(expected.tolist(), found, strict=True):
        text = row[3:]
        text = text[: text.index(2)] if 2 in text else [token for token in text if token]
        assert list(one.tokens) == text
