"""The depth of an audio frame: a mixture of Gaussians over what the levels not yet known add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.speech.config import TalkerConfig

LARGEST = 8.0  # of a logarithm that is exponentiated: nothing overflows where training goes wrong


def levels_known(levels: int, iterations: int, schedule: str) -> tuple[int, ...]:
    """How many levels are known after each iteration, at least one more every time; the last is ``levels``.

    "cosine" keeps few levels at first, whose sum is most of the frame, and most of them last:
    levels · (1 - cos(π/2 · j / iterations)) after iteration j; "even" keeps equally many each time.
    """
    known = [round(levels * _curve((j + 1) / iterations, schedule)) for j in range(iterations)]
    for j in range(iterations):
        known[j] = min(max(known[j], known[j - 1] + 1 if j else 1), levels - (iterations - 1 - j))
    return tuple(known)


def _curve(share: float, schedule: str) -> float:
    return share if schedule == "even" else 1 - math.cos(math.pi / 2 * share)


@dataclass(frozen=True)
class FrameMixture:
    """Mixtures of R frames: component k has the mean shift + stretch · centre_k and the deviations ``spread``.

    Args:
        logits: [R, K] of the components, float32.
        shift, stretch, spread: [R, D] float32.
        centres: [K, D] float32, of all frames.
    """

    logits: Tensor
    shift: Tensor
    stretch: Tensor
    spread: Tensor
    centres: Tensor

    def nll(self, z: Tensor) -> Tensor:
        """[R] float32: -log Σ_k π_k N(z; mean_k, spread²), nats.

        With u = (z - shift) / spread and s = stretch / spread, |u - s c_k|² is |u|² - 2 (u s)·c_k + s²·c_k²: two
        products give it for all components, and no [R, K, D] is made.
        """
        u, s = (z.float() - self.shift) / self.spread, self.stretch / self.spread
        squares = (
            u.square().sum(1, keepdim=True) - 2 * (u * s) @ self.centres.t() + s.square() @ self.centres.square().t()
        )
        inside = (self.logits.log_softmax(1) - squares.clamp_min(0) / 2).logsumexp(1)
        return self.spread.log().sum(1) + z.shape[1] / 2 * math.log(2 * math.pi) - inside

    def sample(self, uniform: Tensor, normal: Tensor, temperature: float, noise: float) -> Tensor:
        """[R, D] float32: the mean of a component drawn at a temperature, and noise · spread · normal.

        Args:
            uniform: [R] from 0 to 1; normal: [R, D].
            temperature: of the components; 0 takes the likeliest.
            noise: 1 is the mixture's own.
        """
        if temperature:
            shares = (self.logits / temperature).softmax(1).cumsum(1)
            k = (shares < uniform[:, None] * shares[:, -1:]).sum(1).clamp_max(shares.shape[1] - 1)
        else:
            k = self.logits.argmax(1)
        return self.shift + self.stretch * self.centres[k] + noise * self.spread * normal


class MixtureLayer(nn.Module):
    """x + W silu(norm x)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(F.silu(self.norm(x)))


class MixtureHead(nn.Module):
    """What a frame's levels that are not known add up to, given a hidden state, those that are and how many they are.

    The paper leaves the form of a component open. A mean of its own from the network would take K · D outputs, 2.1
    billion weights at full size (K = 1,024, D = 512, 4,096 wide); here K centres are learnt, and the network says their
    weights and, for all of them, a shift, a stretch and a spread in each dimension: K + 3 D outputs. The stretch is
    needed since what is left becomes smaller with each level that is known.

    Source: Kim et al., 2024, arXiv:2412.10208 (ResGen), for predicting the sum of the masked levels and filling them
    in few iterations.
    """

    def __init__(self, config: TalkerConfig, latent: int, levels: int):
        super().__init__()
        if config.iterations > levels:
            raise ValueError(f"{config.iterations} iterations for {levels} levels: each has to fill one at least")
        self.latent, self.levels, self.floor, self.schedule = latent, levels, config.floor, config.schedule
        self.known = levels_known(levels, config.iterations, config.schedule)
        self.hidden_proj = nn.Linear(config.text.width, config.head_width)
        self.known_proj = nn.Linear(latent, config.head_width, bias=False)
        self.depth = nn.Embedding(levels, config.head_width)
        self.layers = nn.ModuleList(MixtureLayer(config.head_width) for _ in range(config.head_layers - 1))
        self.norm = nn.RMSNorm(config.head_width, eps=1e-6)
        self.out = nn.Linear(config.head_width, config.components + 3 * latent)
        self.centres = nn.Parameter(torch.randn(config.components, latent))

    def forward(self, hidden: Tensor, known: Tensor, count: Tensor) -> FrameMixture:
        """Mixtures of R frames.

        Args:
            hidden: [R, width].
            known: [R, D], the sum of the levels that are known.
            count: [R] int64, how many they are.
        """
        x = self.hidden_proj(hidden) + self.known_proj(known.to(hidden.dtype)) + self.depth(count)
        for layer in self.layers:
            x = layer(x)
        logits, shift, stretch, spread = (
            self.out(F.silu(self.norm(x))).float().split((len(self.centres), *(self.latent,) * 3), 1)
        )
        stretch, spread = stretch.clamp_max(LARGEST).exp(), self.floor + spread.clamp_max(LARGEST).exp()
        return FrameMixture(logits, shift, stretch, spread, self.centres.float())

    def draw_known(self, frames: int, draws: int, generator: torch.Generator | None = None) -> Tensor:
        """[frames, draws] int64 on the CPU: how many levels training takes as known, 0 to levels - 1, spread as the
        schedule is; none in the first of several draws, for what is said is decided there.
        """
        share = torch.rand(frames, draws, generator=generator)
        if self.schedule != "even":
            share = 1 - (math.pi / 2 * share).cos()
        known = (share * self.levels).long().clamp_max(self.levels - 1)
        if draws > 1:
            known[:, 0] = 0
        return known

    def fill(
        self,
        hidden: Tensor,
        codebooks: Tensor,
        uniform: Tensor,
        normal: Tensor,
        *,
        temperature: float = 1.0,
        noise: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Codes of R frames, filled in iterations: a sample of what is missing is quantised, its first levels are kept.

        Args:
            hidden: [R, width].
            codebooks: [levels, codes, D].
            uniform: [R, iterations] from 0 to 1; normal: [R, iterations, D].
            temperature, noise: see ``FrameMixture.sample``.

        Returns:
            (codes [R, levels] int64, their sum [R, D] in the dtype of the codebooks).
        """
        total, codes, first = codebooks.new_zeros(len(hidden), self.latent), [], 0
        for j, last in enumerate(self.known):
            count = torch.full((len(hidden),), first, device=hidden.device)
            mixture = self(hidden, total, count)
            sample = mixture.sample(uniform[:, j], normal[:, j], temperature, noise).to(codebooks.dtype)
            found, part = ak.residual_quantize(sample, codebooks[first:last])
            codes.append(found)
            total, first = total + part, last
        return torch.cat(codes, 1), total


def code_sums(codes: Tensor, codebooks: Tensor, below: Tensor | None = None) -> Tensor:
    """[T, D]: the sum of each frame's codes, of the levels before ``below`` [T] alone where given; -1 adds nothing.

    No [T, levels, D] is made.
    """
    levels, size, _ = codebooks.shape
    level = torch.arange(levels, device=codes.device)
    counted = codes >= 0
    if below is not None:
        counted = counted & (level < below[:, None])
    return F.embedding_bag(
        codes.clamp_min(0) + level * size,
        codebooks.flatten(0, 1),
        mode="sum",
        per_sample_weights=counted.to(codebooks.dtype),
    )
