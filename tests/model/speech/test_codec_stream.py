"""Chunks of any size give what the whole gives."""

import random

import pytest
import torch

from afn_model.speech.codec_stream import CodecDecoderStream, CodecEncoderStream
from afn_model.speech.config import CodecConfig
from tests.model.speech.small import CONFIG, codec, sound


def pieces(total: int, rng: random.Random, most: int) -> list[int]:
    sizes = [0, 1]
    while sum(sizes) < total:
        sizes.append(min(rng.choice([0, 1, 2, rng.randrange(most)]), total - sum(sizes)))
    return sizes


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_encoding_in_chunks(seed):
    small, rng = codec(seed), random.Random(seed)
    n = 20 * CONFIG.frame + rng.randrange(CONFIG.frame)
    pcm, stream = sound(n, seed), CodecEncoderStream(small)
    made = [stream.push(part) for part in pcm[0].split(pieces(n, rng, 200))]
    seen = sum(map(len, made))
    assert seen == n // CONFIG.frame, "a latent comes with its last sample"
    made.append(stream.finish())
    assert torch.allclose(torch.cat(made), small.encode(pcm)[0], atol=1e-5, rtol=0)
    again = torch.cat([stream.push(pcm[0]), stream.finish()])  # everything before is forgotten
    assert torch.allclose(again, small.encode(pcm)[0], atol=1e-5, rtol=0)


# In the second a frame of 24 samples is shorter than the look-ahead of 36.
@pytest.mark.parametrize("config", [CONFIG, CodecConfig(8000, 48, 12, (16,), (2,), 2, 5, 12, 4, 16)])
@torch.no_grad()
def test_decoding_in_chunks(config):
    small, rng = codec(3, config), random.Random(3)
    latent = small.encode(sound(30 * config.frame, batch=2))
    whole, stream = small.decode(latent), CodecDecoderStream(small, batch=2)
    made = [stream.push(part) for part in latent.split(pieces(30, rng, 5), 1)]
    assert sum(part.shape[1] for part in made) == 30 * config.frame - config.look_ahead
    made.append(stream.finish())
    assert torch.allclose(torch.cat(made, 1), whole, atol=1e-5, rtol=0)
    assert torch.allclose(torch.cat([stream.push(latent), stream.finish()], 1), whole, atol=1e-5, rtol=0)


def test_bad_chunks_are_refused_and_leave_the_stream_as_it_was():
    small = codec()
    pcm, stream = sound(3 * CONFIG.frame)[0], CodecEncoderStream(small)
    first = stream.push(pcm[:60])
    for bad in (torch.tensor([0.0, torch.inf]), pcm[None]):
        with pytest.raises(ValueError, match=r"^a chunk must be \[n\] finite samples$"):
            stream.push(bad)
    assert torch.allclose(torch.cat([first, stream.push(pcm[60:])]), small.encode(pcm[None])[0], atol=1e-5)
    with pytest.raises(ValueError, match=r"^expected \[1, frames, 12\], got \(2, 1, 12\)$"):
        CodecDecoderStream(small).push(torch.zeros(2, 1, 12))


def test_streams_without_anything_give_nothing():
    small = codec()
    assert CodecEncoderStream(small).finish().shape == (0, CONFIG.latent)
    assert CodecDecoderStream(small).finish().shape == (1, 0)
    assert CodecDecoderStream(small).push(torch.zeros(1, 0, CONFIG.latent)).shape == (1, 0)
