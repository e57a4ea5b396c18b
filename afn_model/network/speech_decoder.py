"""A text decoder over the audio encoder's frames, as Whisper and AF-Whisper are pre-trained; packed on both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.config import SpeechConfig
from afn_model.network.encoder import ResidualLayerNorm
from afn_model.network.language_model import inverse_frequencies
from afn_model.network.linear import linear, product

if TYPE_CHECKING:
    from afn_kernels.attention.schedule import AttentionSchedule


@dataclass(frozen=True)
class TextCache:
    """Keys and values of a decoder in generation.

    Args:
        own: [layers, 2, B, capacity, heads, head_dim] of the text; what lies behind ``lengths`` is never used.
        lengths: [B] int32 tokens of each text, those of this pass included.
        audio: for each layer (k, v) [Σ frames, heads, head_dim].
    """

    own: Tensor
    lengths: Tensor
    audio: tuple[tuple[Tensor, Tensor], ...]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Writes the new keys and values, and attends to all so far: [B · n, heads, head_dim]."""
        k_cache, v_cache = self.own[layer]
        count, capacity = k_cache.shape[:2]
        new = len(q) // count
        places = torch.arange(count, device=q.device)[:, None] * capacity + self.lengths[:, None].long()
        slots = (places + torch.arange(-new, 0, device=q.device)).flatten()
        k_cache.flatten(0, 1).index_copy_(0, slots, k)
        v_cache.flatten(0, 1).index_copy_(0, slots, v)
        return ak.decode_attention(q.unflatten(0, (count, new)), k_cache, v_cache, self.lengths).flatten(0, 1)


@dataclass(frozen=True)
class DecoderContext:
    """What the layers of one pass share.

    Args:
        positions: [T] of the tokens.
        inv_freq: of rotary positions; None where they are learned.
        text: boundaries of the texts, in training.
        cross: boundaries of texts and their frames: (cu_seqlens_q, cu_seqlens_k).
        frames: [Σ frames, audio width], in training.
        cache: in generation.
        watch: called with (layer, q [T, heads, head_dim], k [Σ frames, heads, head_dim]) of every attention to audio.
    """

    positions: Tensor
    inv_freq: Tensor | None
    cross: AttentionSchedule
    text: AttentionSchedule | None = None
    frames: Tensor | None = None
    cache: TextCache | None = None
    watch: Callable[[int, Tensor, Tensor], Any] | None = None


class DecoderAttention(nn.Module):
    """Attention of text to text, causal, or to audio; k has no bias, as Whisper's."""

    def __init__(self, config: SpeechConfig, source: int):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(source, config.width, bias=False)
        self.v_proj = nn.Linear(source, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, self.head_dim))

    def keys_and_values(self, frames_TD: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(linear(self.k_proj, frames_TD)), self.split(linear(self.v_proj, frames_TD))

    def to_text(self, x_TD: Tensor, context: DecoderContext, layer: int) -> Tensor:
        q, (k, v) = self.split(linear(self.q_proj, x_TD)), self.keys_and_values(x_TD)
        if context.inv_freq is not None:
            q, k = ak.rotary(q, k, context.positions.float(), context.inv_freq)
        if context.cache is None:
            out = ak.attention(q, k, v, causal=True, schedule=context.text)
        else:
            out = context.cache.attention(q, k, v, layer)
        assert isinstance(out, Tensor)
        return linear(self.out_proj, out.flatten(1))

    def to_audio(self, x_TD: Tensor, context: DecoderContext, layer: int) -> Tensor:
        q = self.split(linear(self.q_proj, x_TD))
        if context.cache is None:
            assert context.frames is not None
            k, v = self.keys_and_values(context.frames)
        else:
            k, v = context.cache.audio[layer]
        if context.watch is not None:
            context.watch(layer, q, k)
        out = ak.attention(q, k, v, schedule=context.cross)
        assert isinstance(out, Tensor)
        return linear(self.out_proj, out.flatten(1))


class SpeechDecoderBlock(nn.Module):
    """x + Attention(LN x), + CrossAttention(LN x, frames), + W₂ GELU(W₁ LN x); each sum is left to the next norm."""

    def __init__(self, config: SpeechConfig):
        super().__init__()
        self.self_attn = DecoderAttention(config, config.width)
        self.self_attn_layer_norm = ResidualLayerNorm(config.width)
        self.encoder_attn = DecoderAttention(config, config.audio.width)
        self.encoder_attn_layer_norm = ResidualLayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)
        self.final_layer_norm = ResidualLayerNorm(config.width)

    def forward(
        self, x_TD: Tensor, residual_TD: Tensor | None, context: DecoderContext, layer: int
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual) of the previous block to (delta, residual) of this one."""
        x_TD, h_TD = self.self_attn_layer_norm(x_TD, residual_TD)
        x_TD, h_TD = self.encoder_attn_layer_norm(self.self_attn.to_text(x_TD, context, layer), h_TD)
        x_TD, h_TD = self.final_layer_norm(self.encoder_attn.to_audio(x_TD, context, layer), h_TD)
        return linear(self.fc2, ak.bias_gelu(product(self.fc1, x_TD), self.fc1.bias)), h_TD


class SpeechDecoder(nn.Module):
    """Tokens and frames in, final hidden states out; the head is the embedding's transpose."""

    def __init__(self, config: SpeechConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        learned = config.positions == "learned"
        self.embed_positions = nn.Embedding(config.max_positions, config.width) if learned else None
        self.layers = nn.ModuleList(SpeechDecoderBlock(config) for _ in range(config.layers))
        self.layer_norm = ResidualLayerNorm(config.width)

    def forward(self, tokens: Tensor, context: DecoderContext) -> Tensor:
        """Hidden states [T, width] after the last norm.

        Args:
            tokens: [T] ids, text after text.
            context: as ``packed`` or ``cached`` makes it.
        """
        x_TD = self.embed_tokens(tokens)
        if self.embed_positions is not None:
            x_TD = x_TD + self.embed_positions(context.positions)
        residual_TD = None
        for index, layer in enumerate(self.layers):
            x_TD, residual_TD = layer(x_TD, residual_TD, context, index)
        return self.layer_norm(x_TD, residual_TD)[0]

    def packed(
        self, frames: Tensor, cu_text: Tensor, cu_frames: Tensor, total: int, longest: int | None = None
    ) -> DecoderContext:
        """For training: whole texts, text i over the frames between boundaries i and i + 1.

        Args:
            frames: [Σ frames, audio width].
            cu_text, cu_frames: [N + 1] int32.
            total: tokens of all texts.
            longest: tokens of the longest of them, where the host knows it.
        """
        counts = cu_text.diff().long()
        starts = torch.repeat_interleave(cu_text[:-1].long(), counts, output_size=total)
        positions = torch.arange(total, device=frames.device) - starts
        calls: dict[str, Any] = {"head_dim": self.config.head_dim, "dtype": frames.dtype, "longest": longest}
        text = ak.attention_schedule(cu_text, total_q=total, causal=True, **calls)
        cross = ak.attention_schedule(cu_text, cu_frames, total_q=total, total_k=len(frames), **calls)
        return DecoderContext(positions, self._frequencies(frames.device), cross, text, frames)

    def cached(self, cache: TextCache, new: int, beams: int, cu_frames: Tensor) -> DecoderContext:
        """For generation: the ``new`` newest tokens of each text; ``beams`` neighbours hear the same frames.

        Args:
            cache: of the texts; its lengths count the new tokens.
            new: tokens of each text in this pass.
            beams: texts for each recording.
            cu_frames: [N + 1] int32.
        """
        lengths = cache.lengths.long()
        positions = (lengths[:, None] + torch.arange(-new, 0, device=lengths.device)).flatten()
        recordings = len(cu_frames) - 1
        queries = torch.arange(recordings + 1, dtype=torch.int32, device=lengths.device) * (beams * new)
        k = cache.audio[0][0]
        cross = ak.attention_schedule(
            queries, cu_frames, total_q=len(positions), total_k=len(k), head_dim=self.config.head_dim, dtype=k.dtype
        )
        return DecoderContext(positions, self._frequencies(lengths.device), cross, cache=cache)

    def _frequencies(self, device: torch.device) -> Tensor | None:
        if self.embed_positions is not None:
            return None
        return inverse_frequencies(self.config, device)
