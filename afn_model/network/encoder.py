"""AF-Whisper: mel windows to packed audio features, computing only the frames that a clip has."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.audio.frames import conv_frames, token_frames
from afn_model.config import AudioConfig
from afn_model.network.linear import linear, product

if TYPE_CHECKING:
    from afn_kernels.attention.schedule import AttentionSchedule

WINDOW_FRAMES = 3000


class ResidualLayerNorm(nn.Module):
    """h = x + residual and LayerNorm(h), in one pass through ``afn_kernels``."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        found = ak.layer_norm(x, self.weight, self.bias, residual=residual)
        return found if isinstance(found, tuple) else (found, x)


class SelfAttention(nn.Module):
    """Bidirectional attention inside each window; k has no bias."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x_TD: Tensor, schedule: AttentionSchedule) -> Tensor:
        projections = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (linear(p, x_TD).unflatten(-1, (self.heads, self.head_dim)) for p in projections)
        out = ak.attention(q, k, v, schedule=schedule)
        assert isinstance(out, Tensor)
        return linear(self.out_proj, out.flatten(1))


class EncoderBlock(nn.Module):
    """x + Attention(LN x), then x + W₂ GELU(W₁ LN x); each sum is left to the norm that follows it."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.self_attn_layer_norm = ResidualLayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)
        self.final_layer_norm = ResidualLayerNorm(config.width)

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None, schedule: AttentionSchedule) -> tuple[Tensor, Tensor]:
        """(delta, residual) of the previous block to (delta, residual) of this one."""
        x_TD, h_TD = self.self_attn_layer_norm(x_TD, residual_TD)
        x_TD, h_TD = self.final_layer_norm(self.self_attn(x_TD, schedule), h_TD)
        return linear(self.fc2, ak.bias_gelu(product(self.fc1, x_TD), self.fc1.bias)), h_TD


class AudioEncoder(nn.Module):
    """Conv stem, positions, transformer blocks, stride-2 mean, final LayerNorm; packed across windows."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.n_mels, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_positions, config.width)
        self.embed_positions.weight.requires_grad_(False)
        self.layers = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.layer_norm = ResidualLayerNorm(config.width)

    def forward(self, mel: Tensor, windows: Windows) -> Tensor:
        """Features of every valid 40 ms frame.

        Args:
            mel: [W, n_mels, F], log-mel of the zero-padded windows; F is 3000, or at least ``windows.mel_frames``.
            windows: the layout made from the windows' lengths.

        Returns:
            [Σ tokens, width], window after window.
        """
        x_TD = self.blocks(mel, windows)
        weight, bias = self.layer_norm.weight, self.layer_norm.bias
        return ak.pool_norm(x_TD, weight, bias, cu_seqlens=windows.cu_conv, total=sum(windows.tokens))

    def unpooled(self, mel: Tensor, windows: Windows) -> Tensor:
        """What Whisper's encoder returns: [Σ conv frames, width], features of every valid 20 ms frame."""
        return self.layer_norm(self.blocks(mel, windows), None)[0]

    def blocks(self, mel: Tensor, windows: Windows) -> Tensor:
        """[Σ conv frames, width], before the mean and the last norm."""
        x_TD = self.stem(mel, windows) + self.embed_positions.weight[windows.position]
        schedule = ak.attention_schedule(
            windows.cu_conv,
            total_q=len(x_TD),
            head_dim=self.config.head_dim,
            dtype=x_TD.dtype,
            longest=max(windows.conv_frames, default=0),
        )
        residual_TD = None
        for layer in self.layers:
            x_TD, residual_TD = layer(x_TD, residual_TD, schedule)
        return x_TD if residual_TD is None else residual_TD + x_TD

    def stem(self, mel: Tensor, windows: Windows) -> Tensor:
        """Both convolutions over all windows laid end to end, [Σ conv frames, width]."""
        rows_WFC = mel.transpose(1, 2)
        rows = torch.cat((rows_WFC.flatten(0, 1), rows_WFC.new_zeros(1, rows_WFC.shape[2])))
        x_CR = rows[windows.mel_rows(mel.shape[2])].T[None]
        # Row 0 of each window stands for the zero that pads conv2 on the left.
        x_CR = F.gelu(self.conv1(x_CR)) * windows.inside.to(x_CR.dtype)
        x_CR = F.gelu(F.conv1d(x_CR, self.conv2.weight, self.conv2.bias, stride=2))
        return x_CR[0].T[windows.conv_rows]


@dataclass(frozen=True)
class Windows:
    """Where each window's frames stand in the packed tensors.

    A window with L mel frames has c = (L − 1) // 2 + 1 frames after the stem and t = c // 2 audio tokens. The stem
    reads mel frames 0 .. 2c: the last one may be a frame of the zero padding, which the convolutions see.
    """

    conv_frames: list[int]
    tokens: list[int]
    cu_conv: Tensor
    position: Tensor
    inside: Tensor
    conv_rows: Tensor
    known_rows: tuple[int, Tensor] | None = None

    @staticmethod
    def of(mel_lengths: list[int], device: torch.device, dtype: torch.dtype, *, frames: int | None = None) -> Windows:
        """The layout of windows with these many valid mel frames each.

        Args:
            mel_lengths: valid mel frames of each window.
            device: of the tables.
            dtype: of the one that activations are multiplied with.
            frames: mel frames per window that there will be, where that is known: ``mel_rows`` of them are made too.

        Raises:
            ValueError: a window with no frame or more than 3000.
        """
        for w, length in enumerate(mel_lengths):
            if not 1 <= length <= WINDOW_FRAMES:
                raise ValueError(f"audio window {w} has {length} mel frames, expected 1 to {WINDOW_FRAMES}")
        conv = [conv_frames(length) for length in mel_lengths]
        count = torch.tensor(conv)
        cu = F.pad(count.cumsum(0), (1, 0)).to(torch.int32)
        window = torch.repeat_interleave(torch.arange(len(conv)), count)
        position = torch.arange(int(count.sum())) - cu[window]
        inside = torch.ones(int((2 * count + 2).sum()))
        inside[F.pad((2 * count + 2).cumsum(0), (1, -1))] = 0.0
        # conv2 also makes one output across each seam between windows; these rows leave it out.
        conv_rows = torch.arange(int(count.sum())) + window
        windows = Windows(
            conv_frames=conv,
            tokens=[token_frames(c) for c in conv],
            cu_conv=cu.to(device),
            position=position.to(device),
            inside=inside.to(device, dtype),
            conv_rows=conv_rows.to(device),
        )
        return windows if frames is None else replace(windows, known_rows=(frames, windows.mel_rows(frames)))

    @property
    def mel_frames(self) -> int:
        """How many mel frames the longest window needs."""
        return min(WINDOW_FRAMES, max((2 * c + 1 for c in self.conv_frames), default=0))

    def mel_rows(self, frames: int) -> Tensor:
        """Rows of the flattened mel [W · frames + 1] that the stem reads; the last row is zeros."""
        if self.known_rows is not None and self.known_rows[0] == frames:
            return self.known_rows[1]
        if frames != WINDOW_FRAMES and frames < self.mel_frames:
            raise ValueError(f"mel has {frames} frames per window, the longest window needs {self.mel_frames}")
        zero, count = len(self.conv_frames) * frames, 2 * torch.tensor(self.conv_frames) + 2
        window = torch.repeat_interleave(torch.arange(len(count)), count)
        read = torch.arange(int(count.sum())) - (count.cumsum(0) - count)[window] - 1  # -1 is the zero on the left
        rows = torch.where((read >= 0) & (read < frames), window * frames + read, zero)
        return rows.to(self.position.device)


def sinusoids(positions: int, width: int) -> Tensor:
    """[positions, width]: sin(p / 10000^(i / (width/2 − 1))), then cos; as Whisper has them."""
    half = width // 2
    rate = torch.exp(-torch.arange(half) * (math.log(10_000.0) / (half - 1)))
    angle = torch.arange(positions)[:, None] * rate
    return torch.cat((angle.sin(), angle.cos()), dim=1)
