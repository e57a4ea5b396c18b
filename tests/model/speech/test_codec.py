"""The codec: causal both ways, odd inputs, and the full size counted."""

import pytest
import torch

from afn_model.speech.codec import codec_sizes
from afn_model.speech.config import CodecConfig
from tests.model.speech.small import CONFIG, codec, sound

FRAME, AHEAD = CONFIG.frame, CONFIG.look_ahead


def test_a_latent_depends_on_no_sample_after_its_frame():
    small = codec()
    pcm = sound(12 * FRAME)
    plain = small.encode(pcm)
    for at in (0, FRAME - 1, FRAME, 5 * FRAME + 7, 12 * FRAME - 1):
        changed = pcm.clone()
        changed[:, at:] += sound(12 * FRAME - at, seed=2)
        other, first = small.encode(changed), at // FRAME
        assert torch.equal(other[:, :first], plain[:, :first])
        assert not torch.equal(other[:, first], plain[:, first])


def test_a_sample_depends_on_no_token_after_the_look_ahead():
    small = codec()
    latent = small.encode(sound(12 * FRAME))
    plain = small.decode(latent)
    for frame in (0, 1, 6, 11):
        changed = latent.clone()
        changed[:, frame:] = small.encode(sound((12 - frame) * FRAME, seed=2))
        other, first = small.decode(changed), max(0, frame * FRAME - AHEAD)
        assert torch.equal(other[:, :first], plain[:, :first])
        assert not torch.equal(other[:, first : first + 8], plain[:, first : first + 8])


def test_through_both_a_sample_depends_on_its_frames_end_and_the_look_ahead():
    small = codec()
    pcm = sound(12 * FRAME)
    plain = small.decode(small.encode(pcm))
    for at in (FRAME - 1, 5 * FRAME + 7, 11 * FRAME):
        changed = pcm.clone()
        changed[:, at:] += sound(12 * FRAME - at, seed=2)
        other = small.decode(small.encode(changed))
        known = max(0, at // FRAME * FRAME - AHEAD)
        assert torch.equal(other[:, :known], plain[:, :known])
        assert not torch.equal(other[:, known:], plain[:, known:])


@pytest.mark.parametrize("n", [0, 1, FRAME - 1, FRAME, FRAME + 1])
def test_any_length_is_filled_up_to_whole_frames(n):
    small = codec()
    latent = small.encode(sound(n, batch=2))
    assert latent.shape == (2, -(-n // FRAME), CONFIG.latent)
    made, quantized = small(sound(n, batch=2))
    assert made.shape == (2, n)
    assert quantized.codes.shape == (2, len(latent[0]), CONFIG.levels)
    assert made.isfinite().all()


def test_latents_become_standard_and_any_loudness_stays_finite():
    small = codec().train()
    for seed in range(3):
        small(sound(40 * FRAME, seed, batch=4))
        small.quantizer.update()
    latent = small.eval().encode(sound(40 * FRAME, 9, batch=4)).reshape(-1, CONFIG.latent)
    assert latent.mean(0).abs().max() < 0.25
    assert ((latent.std(0) > 0.7) & (latent.std(0) < 1.4)).all()
    for pcm in (torch.zeros(1, 4 * FRAME), 1e6 * sound(4 * FRAME)):
        assert small(pcm)[0].isfinite().all()


def test_codes_are_what_quantising_in_evaluation_gives_and_embed_is_their_sum():
    small = codec()
    pcm = sound(5 * FRAME)
    codes = small.codes(pcm)
    quantized = small.quantize(small.encode(pcm))
    assert torch.equal(codes, quantized.codes)
    assert torch.allclose(small.embed(codes), quantized.embedding, atol=1e-5)
    assert torch.equal(codes, small.train().codes(pcm)), "no level is left out"


def test_samples_that_are_none_are_refused_in_one_line():
    small = codec()
    bad = sound(FRAME)
    bad[0, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^the samples are not all finite$"):
        small.encode(bad)
    with pytest.raises(ValueError, match=r"^samples must be \[batch, n\], got the shape \(48,\)$"):
        small.encode(bad[0])


def test_gradients_reach_every_parameter_and_are_finite():
    small = codec().train()
    for pcm in (sound(6 * FRAME, batch=2), torch.zeros(1, 2 * FRAME), 1e4 * sound(2 * FRAME)):
        made, quantized = small(pcm)
        (made.square().mean() + quantized.commitment).backward()
        for name, parameter in small.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_the_full_size_is_counted_without_making_it():
    sizes = codec_sizes(CodecConfig())
    # A block of width w: 7 taps and a bias, a norm, w to 4w and back, a scale.
    blocks = sum(3 * (w * 7 + w + 2 * w + 8 * w * w + 5 * w + w) for w in (384, 768, 1536))
    strided = sum(8 * a * b for a, b in ((384, 768), (768, 1536), (1536, 512)))
    down = 51 * 384 + 384 + blocks + strided + (768 + 1536 + 512) + 2 * (384 + 768 + 1536)
    up = blocks + strided + 8 * (384 + 768 + 1536) + 2 * (384 + 768 + 1536) + 2 * 384 + 384 * 34 + 34
    assert sizes == (down, 72 * 1024 * 512, up)
    assert sum(sizes) == 222887202
