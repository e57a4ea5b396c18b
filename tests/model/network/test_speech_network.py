"""Packed texts over packed frames: what each hears, whatever is beside it."""

import pytest
import torch

from afn_model.network.speech_network import text_rows
from tests.model.af_whisper import said, speech_model

TALKS = [said("zero", 1.3), said("seven two", 31.0, seed=1), said("two", 0.8, 2.1, seed=2)]


@pytest.mark.parametrize("changes", [{}, {"pooled": True}, {"positions": "rotary"}, {"width": 48}])
def test_texts_hear_their_own_audio_alone(changes):
    model, processor = speech_model(**changes)
    with torch.no_grad():
        together = model.loss(processor(TALKS, training=True), total=1.0)
        alone = sum(model.loss(processor(one, training=True), total=1.0) for one in TALKS)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
        swapped = [said("zero", 1.3, seed=9), *TALKS[1:]]  # other audio
        assert abs(model.loss(processor(swapped, training=True), total=1.0) - together) > 1e-3


def test_every_recording_of_a_conversation_is_heard():
    model, processor = speech_model()
    batch = processor(TALKS, training=True)
    here = model.prepare(batch)
    with torch.no_grad():
        frames, bounds = model.heard(here)
    assert bounds.diff().tolist() == [65, 1550, 40 + 105]
    assert len(frames) == bounds[-1]


def test_text_rows_are_all_but_placeholders():
    model, processor = speech_model()
    batch = processor(TALKS, training=True)
    rows, bounds = text_rows(model.prepare(batch), processor.sound_id)
    kept = (batch.input_ids != processor.sound_id).nonzero().squeeze(1)
    assert rows.tolist() == kept.tolist()
    parts = batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    assert bounds.diff().tolist() == [int((part != processor.sound_id).sum()) for part in parts]


def test_rows_of_losses_and_smoothing():
    model, processor = speech_model()
    batch = processor(TALKS, training=True)
    loss, rows, tokens = model.loss(batch, with_rows=True)
    assert len(rows) == len(tokens) == batch.supervised
    torch.testing.assert_close(rows.mean(), loss, rtol=1e-5, atol=1e-6)
    assert (batch.targets[tokens] != -100).all()
    assert model.loss(batch, label_smoothing=0.1) != loss


def test_gradients_reach_everything_that_trains():
    model, processor = speech_model(pooled=True)
    model.loss(processor(TALKS, training=True)).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_a_text_without_audio():
    model, processor = speech_model()
    text = [{"role": "user", "content": "What word do you hear?"}, {"role": "assistant", "content": "zero"}]
    with torch.no_grad():
        alone = model.loss(processor(text, training=True), total=1.0)
        beside = model.loss(processor([text, TALKS[0]], training=True), total=1.0)
        other = model.loss(processor(TALKS[0], training=True), total=1.0)
    torch.testing.assert_close(beside, alone + other, rtol=1e-5, atol=1e-5)


def test_the_full_decoder_of_af_whisper_on_paper():
    """Parameters of 24 layers of 1,024 over frames of 1,280: counted, not made."""
    from afn_model.config import SpeechConfig
    from afn_model.network.speech_network import SpeechNetwork

    with torch.device("meta"):
        model = SpeechNetwork(SpeechConfig())
    block = 4 * 1024**2 + 2 * 1024**2 + 2 * 1280 * 1024 + 2 * 1024 * 4096  # own, cross, feed-forward
    block += (3 + 3) * 1024 + 4096 + 1024 + 3 * 2 * 1024  # biases and norms
    decoder = 24 * block + 51_866 * 1024 + 448 * 1024 + 2 * 1024
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder
    assert sum(p.numel() for p in model.encoder.parameters()) == 636_968_960
