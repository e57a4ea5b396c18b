"""The codec piece by piece: chunks of any size give what the whole would."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from afn_model.speech.codec import Codec
from afn_model.speech.convnext import State
from afn_model.speech.spectrum import istft


class CodecEncoderStream:
    """Samples in chunks of any size to latents, each as soon as its last sample is there.

    >>> stream = CodecEncoderStream(codec)
    >>> latents = torch.cat([stream.push(pcm[:1000]), stream.push(pcm[1000:]), stream.finish()])
    """

    def __init__(self, codec: Codec):
        self.codec = codec
        self._state: State = {}
        self._left = torch.zeros(0, device=codec.device)

    @torch.no_grad()
    def push(self, pcm: Tensor) -> Tensor:
        """Samples [n], n from 0 -> latents [F', D] of the frames that are complete now.

        Raises:
            ValueError: another shape, or samples that are not finite; the stream is as it was.
        """
        if pcm.ndim != 1 or not pcm.isfinite().all():
            raise ValueError("a chunk must be [n] finite samples")
        pcm = torch.cat([self._left, pcm.to(self._left)])
        ready = len(pcm) // self.codec.config.frame * self.codec.config.frame
        self._left = pcm[ready:].clone()
        if not ready:
            return self._left.new_zeros(0, self.codec.config.latent)
        return self.codec.encode(pcm[None, :ready], self._state)[0]

    def finish(self) -> Tensor:
        """The latent [1, D] of the frame that was begun, filled up with zeros, or [0, D]; then all is forgotten."""
        left = self._left
        last = self.push(F.pad(left, (0, -len(left) % self.codec.config.frame))[len(left) :])
        self._state, self._left = {}, left[:0]
        return last


class CodecDecoderStream:
    """Embeddings frame by frame to samples, ``look_ahead`` samples behind them.

    Args:
        codec: the codec.
        batch: streams that go on together.
    """

    def __init__(self, codec: Codec, batch: int = 1):
        self.codec, self.batch = codec, batch
        self._state: State = {}
        self._tail: Tensor | None = None  # samples that the next frames still add to
        self._early = codec.config.look_ahead  # samples to come that lie before the first

    @torch.no_grad()
    def push(self, embedding: Tensor) -> Tensor:
        """Embeddings [B, F', D] -> samples [B, F'·frame], at the first frames ``look_ahead`` fewer."""
        config = self.codec.config
        if embedding.ndim != 3 or len(embedding) != self.batch or embedding.shape[2] != config.latent:
            raise ValueError(f"expected [{self.batch}, frames, {config.latent}], got {tuple(embedding.shape)}")
        if not embedding.shape[1]:
            return embedding.new_zeros(self.batch, 0)
        pcm, self._tail = istft(self.codec.spectrum(embedding, self._state), config.hop, self._tail)
        start = min(self._early, pcm.shape[1])
        self._early -= start
        return pcm[:, start:]

    def finish(self) -> Tensor:
        """The last ``look_ahead`` samples [B, look_ahead]; none where nothing was pushed. Then all is forgotten."""
        tail = torch.zeros(self.batch, 0) if self._tail is None else self._tail[:, self._early :]
        self._state, self._tail, self._early = {}, None, self.codec.config.look_ahead
        return tail
