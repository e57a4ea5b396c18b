"""The streaming codec: sound to a few tokens a second and back, both ways causal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afn_model.speech.config import CodecConfig
from afn_model.speech.convnext import Blocks, Lengthen, Shorten, State
from afn_model.speech.quantizer import Quantized, ResidualQuantizer
from afn_model.speech.spectrum import istft, stft
from afn_model.weights.checkpoint import SkipInit

QUIETEST = 1e-5  # of a bin: the encoder sees nothing below it
LOG_SCALE = 0.15  # brings logarithms of bins to about -1 to 1
QUIET = -6.0  # of a bin, as a logarithm, at first
LOUDEST = math.log(4.0)  # of a bin that the decoder writes: a full-scale sine has 0.5


class Front(nn.Module):
    """[B, n] samples -> [B, n/hop, width]: the causal STFT and a 1x1 convolution.

    It sees real and imaginary parts with compressed magnitudes, and the magnitudes' logarithms beside them, which say
    what speech is heard by and which a network must otherwise first learn to make.
    """

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(3 * (config.window // 2 + 1), config.widths[0])

    def forward(self, pcm: Tensor, state: State | None = None) -> Tensor:
        before = None
        if state is not None:
            before = state.get(self)
            before = pcm.new_zeros(len(pcm), self.config.look_ahead) if before is None else before
            state[self] = torch.cat([before, pcm], 1)[:, pcm.shape[1] :].clone()
        bins = stft(pcm, self.config.window, self.config.hop, before)
        size = (bins.real.square() + bins.imag.square() + QUIETEST**2).sqrt()
        parts = torch.view_as_real(bins * size ** (self.config.power - 1)).flatten(2)
        return self.linear(torch.cat([parts, size.log() * LOG_SCALE + 1.0], 2).to(self.linear.weight))


class SpectrumHead(nn.Module):
    """[B, T, width] -> the complex spectrum [B, T, bins]: exp(log-magnitude) and a phase (Vocos, arXiv:2306.00814).

    It begins with a pulse in the middle of every frame's window; with phases around 0 it would lie where the window is
    0, and learning would begin with silence.
    """

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.widths[0])
        self.linear = nn.Linear(config.widths[0], config.window + 2)
        nn.init.constant_(self.linear.bias[: config.window // 2 + 1], QUIET)
        nn.init.zeros_(self.linear.bias[config.window // 2 + 1 :])
        nn.init.constant_(self.linear.bias[config.window // 2 + 2 :: 2], math.pi)

    def forward(self, x: Tensor) -> Tensor:
        size, phase = self.linear(self.norm(x)).float().chunk(2, -1)
        return torch.polar(size.clamp(max=LOUDEST).exp(), phase)


class Codec(nn.Module):
    """Encoder, residual quantiser and decoder.

    Token f stands for the samples [f·frame, (f+1)·frame) and depends on none after them. The decoder's sample t
    depends on the tokens up to (t + look_ahead)/frame. Latents have mean 0 and deviation 1 in every channel, which the
    quantiser keeps averages for: the encoder can neither shrink them nor drift away from the codes, and the talker
    predicts values around 1.
    """

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        widths, strides, latent = config.widths, config.strides, config.latent
        scale = 1.0 / (len(widths) * config.blocks)
        self.front = Front(config)
        self.down = nn.ModuleList(Blocks(w, config.blocks, config.kernel, scale) for w in widths)
        self.shorten = nn.ModuleList(map(Shorten, widths, (*widths[1:], latent), strides))
        self.quantizer = ResidualQuantizer(config)
        self.lengthen = nn.ModuleList(map(Lengthen, (*widths[1:], latent), widths, strides))
        self.up = nn.ModuleList(Blocks(w, config.blocks, config.kernel, scale) for w in widths)
        self.head = SpectrumHead(config)

    @property
    def device(self) -> torch.device:
        return self.head.linear.weight.device

    def encode(self, pcm: Tensor, state: State | None = None) -> Tensor:
        """Samples [B, n] -> latents [B, F, D]; the last frame is filled up with zeros.

        Raises:
            ValueError: another shape, or samples that are not finite.
        """
        if pcm.ndim != 2:
            raise ValueError(f"samples must be [batch, n], got the shape {tuple(pcm.shape)}")
        if not pcm.isfinite().all():
            raise ValueError("the samples are not all finite")
        pcm = F.pad(pcm.float(), (0, -pcm.shape[1] % self.config.frame))
        x = self.front(pcm, state)
        for stage, shorten in zip(self.down, self.shorten, strict=True):
            x = shorten(stage(x, state))
        return self.quantizer.standardize(x.float())

    def quantize(self, latent: Tensor, levels: Tensor | int | None = None) -> Quantized:
        """Latents [..., D] through the first ``levels`` codebooks; see ``ResidualQuantizer``."""
        return self.quantizer(latent, levels)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [..., L'] of the first L' levels -> their sum [..., D]; a code of -1 adds nothing."""
        return self.quantizer.embed(codes)

    def codes(self, pcm: Tensor) -> Tensor:
        """Samples [B, n] -> codes [B, F, L] of all levels."""
        return self.quantize(self.encode(pcm)).codes

    def spectrum(self, embedding: Tensor, state: State | None = None) -> Tensor:
        """Embeddings [B, F, D] -> the complex STFT [B, F·frame/hop, window/2+1] of what they sound like."""
        x = embedding.to(self.head.linear.weight.dtype)
        for lengthen, stage in zip(reversed(self.lengthen), reversed(self.up), strict=True):
            x = stage(lengthen(x), state)
        return self.head(x)

    def decode(self, embedding: Tensor) -> Tensor:
        """Embeddings [B, F, D] -> samples [B, F·frame]; the last ``look_ahead`` of them fade out."""
        return torch.cat(istft(self.spectrum(embedding), self.config.hop), 1)[:, self.config.look_ahead :]

    def forward(self, pcm: Tensor, levels: Tensor | int | None = None) -> tuple[Tensor, Quantized]:
        """Samples [B, n] -> what they sound like through the codec [B, n], and what quantising gave."""
        quantized = self.quantize(self.encode(pcm), levels)
        return self.decode(quantized.embedding)[:, : pcm.shape[1]], quantized


class CodecSizes(NamedTuple):
    """Parameters of a codec's parts."""

    encoder: int
    quantizer: int
    decoder: int


def codec_sizes(config: CodecConfig) -> CodecSizes:
    """Counts the parameters, the quantiser's codes included, without making them."""
    with torch.device("meta"), SkipInit():
        codec = Codec(config)
    encoder = sum(p.numel() for part in (codec.front, codec.down, codec.shorten) for p in part.parameters())
    decoder = sum(p.numel() for part in (codec.lengthen, codec.up, codec.head) for p in part.parameters())
    return CodecSizes(encoder, codec.quantizer.codebooks.numel(), decoder)
