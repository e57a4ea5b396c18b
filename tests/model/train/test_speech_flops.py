"""FLOPs of the speech decoder: PyTorch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import afn_kernels as ak
from afn_model.train.flops import step_work
from afn_model.train.speech_flops import speech_batch_flops, speech_forward_flops
from tests.model.speech import said, speech_model

TALKS = [said("zero", 1.3), said("two", 0.8, 2.1, seed=2)]


@pytest.mark.parametrize("pooled", [False, True])
def test_forward_is_what_pytorch_counts(pooled):
    """On one text over one window; PyTorch counts all of the causal square where we count half."""
    model, _ = speech_model(pooled=pooled)
    config, tokens = model.config, torch.randint(5, 50, (40,))
    expected = speech_forward_flops(config, [40], [200], 40, [])
    frames, bounds = torch.randn(200, config.audio.width), [torch.tensor([0, n], dtype=torch.int32) for n in (40, 200)]
    with torch.no_grad(), ak.prefer("matmul"), FlopCounterMode(display=False) as counter:
        hidden = model.decoder(tokens, model.decoder.packed(frames, *bounds, 40))
        model.logits(hidden)
    own = 2.0 * config.layers * config.width * 40**2
    assert counter.get_total_flops() == sum(expected.values()) + own


def test_a_batch_counts_text_and_frames_apart():
    model, processor = speech_model()
    batch, everything = processor(TALKS, training=True), ("encoder", "decoder")
    texts = [
        int((part != processor.sound_id).sum()) for part in batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    ]
    expected = speech_forward_flops(model.config, texts, [65, 145], batch.supervised, [65, 40, 105])
    found = speech_batch_flops(model.config, batch, everything)
    assert found["linear"] == 3 * expected["linear"]
    assert found["attention"] == 3 * expected["attention"]
    assert found["head"] == 3 * expected["head"]
    assert speech_batch_flops(model.config, batch, ("decoder",))["encoder"] < found["encoder"] / 2
    assert step_work(model.config, [batch], everything)["flops"] == sum(found.values())
