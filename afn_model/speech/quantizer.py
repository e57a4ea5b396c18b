"""The residual vector quantiser, and how its codebooks learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.speech.config import CodecConfig

RESTARTS = 64  # codes of a level that one step starts anew, at most


@dataclass
class Quantized:
    """What quantising gives.

    Args:
        codes: [..., L] int64; -1 where a level is left out.
        embedding: [..., D], the sum of the chosen codes; gradients pass to the latent as they come.
        commitment: mean square of latent - sum, which moves the latent.
        codebook: mean over levels of the square of residual - code, which moves codes; 0 with "ema".
    """

    codes: Tensor
    embedding: Tensor
    commitment: Tensor
    codebook: Tensor


class ResidualQuantizer(nn.Module):
    """``levels`` codebooks; each quantises what those before it leave.

    The moving average keeps each code's usage N (vectors of a step) beside the code e:
    N' = decay·N + (1 - decay)·n and e' = (decay·N·e + (1 - decay)·sum)/N', of the n residuals nearest to e.
    """

    codebooks: Tensor
    usage: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        books = nn.init.normal_(torch.empty(config.levels, config.codes, config.latent), std=config.latent**-0.5)
        if config.codebook == "ema":
            self.register_buffer("codebooks", books)
        else:
            self.codebooks = nn.Parameter(books)
        self.register_buffer("usage", torch.zeros(config.levels, config.codes))
        self.register_buffer("mean", torch.zeros(config.latent))
        self.register_buffer("deviation", torch.ones(config.latent))
        self._seen: list[Tensor] = []  # counts, sums, moments and candidates since the last update

    def standardize(self, latent: Tensor) -> Tensor:
        """(latent - mean)/deviation of what the encoder gives, [..., D], with the averages of past steps."""
        return (latent - self.mean) / self.deviation

    def forward(self, latent: Tensor, levels: Tensor | int | None = None) -> Quantized:
        """Quantises latents [..., D]; in training mode what ``update`` needs is kept.

        Args:
            latent: [..., D].
            levels: of every row ([...]) or of all; default all.
        """
        rows = latent.reshape(-1, latent.shape[-1])
        if isinstance(levels, Tensor):
            levels = levels.reshape(-1)
        with torch.no_grad():
            codes, total = ak.residual_quantize(rows.float(), self.codebooks.float(), levels)
        zero = total.new_zeros(())
        codebook = zero
        if self.training and len(rows):
            gradient = self.config.codebook == "gradient"
            chosen = self._chosen(codes)
            before = rows.detach() - (chosen.detach().cumsum(1) - chosen.detach()).transpose(0, 1)  # [L, T, D]
            self._remember(codes, before)
            if gradient:
                on = (codes >= 0).T[..., None]
                off = (before - chosen.transpose(0, 1)).square() * on
                codebook = off.sum() / (on.sum().clamp(min=1) * rows.shape[1])
        embedding = rows + (total - rows).detach() if self.training else total
        commitment = (rows - total).square().mean() if rows.numel() else zero
        return Quantized(
            codes.reshape(*latent.shape[:-1], codes.shape[1]),
            embedding.reshape(latent.shape).to(latent.dtype),
            commitment,
            codebook,
        )

    def embed(self, codes: Tensor) -> Tensor:
        """The sum of codes [..., L'] of the first L' levels -> [..., D]; a code of -1 adds nothing."""
        if codes.shape[-1] > self.config.levels:
            raise ValueError(f"{codes.shape[-1]} levels of codes, but the codec has {self.config.levels}")
        if codes.numel() and not -1 <= int(codes.min()) <= int(codes.max()) < self.config.codes:
            raise ValueError(f"codes must be from -1 to {self.config.codes - 1}")
        return self._chosen(codes).sum(-2)

    def _chosen(self, codes: Tensor) -> Tensor:
        level = torch.arange(codes.shape[-1], device=codes.device)
        return self.codebooks[level, codes.clamp(min=0)] * (codes >= 0)[..., None]

    @torch.no_grad()
    def _remember(self, codes: Tensor, before: Tensor) -> None:
        levels, size = self.usage.shape
        index = torch.where(codes >= 0, codes, size).T  # a place behind the others takes what is left out
        counts = before.new_zeros(levels, size + 1)
        counts.scatter_add_(1, index, torch.ones_like(index, dtype=counts.dtype))
        sums = before.new_zeros(levels, size + 1, before.shape[2])
        sums.scatter_add_(1, index[..., None].expand_as(before), before)
        # Each row once at most, and only where it passes the level: no candidate is all zeros.
        spread = torch.arange(RESTARTS, device=codes.device) * max(len(codes), RESTARTS) // RESTARTS
        rows = spread.clamp(max=len(codes) - 1)
        candidates = before[:, rows] * ((codes[rows].T >= 0) & (spread < len(codes)))[..., None]
        moments = torch.stack([before[0].sum(0), before[0].square().sum(0)])
        seen = [counts[:, :-1], sums[:, :-1], moments, candidates]
        self._seen = [a + b for a, b in zip(self._seen[:3], seen[:3], strict=True)] + seen[3:] if self._seen else seen

    @torch.no_grad()
    def update(self, gather: Callable[[list[Tensor]], list[Tensor]] | None = None) -> None:
        """Moves the codes after a training step, by what the forward calls since the last update saw; without any,
        nothing happens, or with ``gather`` what the other ranks saw counts.

        Args:
            gather: gets [counts [L, K], sums [L, K, D], moments [2, D], candidates [L, R, D]] and gives the same of
                all ranks: all added up, but the candidates, which are those of one rank; zeros are none. Without it
                this process is the only one.
        """
        if not self._seen and gather is None:
            return
        books = self.codebooks
        nothing = self.usage, books, books[0, :2], books[:, :1].expand(-1, RESTARTS, -1)
        seen = self._seen or [torch.zeros_like(one) for one in nothing]
        counts, sums, moments, candidates = gather(seen) if gather else seen
        self._seen = []
        keep = self.config.decay
        self._standardize_more(moments / counts[0].sum(), keep if self.usage.any() else 0.0)
        usage = keep * self.usage + (1 - keep) * counts
        if self.config.codebook == "ema":
            old = (keep * self.usage)[..., None] * self.codebooks
            moved = (old + (1 - keep) * sums) / usage.clamp(min=1e-12)[..., None]
            self.codebooks.copy_(torch.where(usage[..., None] > 0, moved, self.codebooks))
        mean = usage.mean(1, keepdim=True)
        # The least used codes first, each in the place of one residual of this step.
        order = usage.argsort(dim=1, stable=True)[:, : candidates.shape[1]]
        candidates = candidates[:, : order.shape[1]]
        dead = (usage.gather(1, order) <= self.config.dead_below * mean) & candidates.any(2)
        place = order[..., None].expand(-1, -1, candidates.shape[2])
        fresh = torch.where(dead[..., None], candidates, self.codebooks.gather(1, place))
        self.codebooks.scatter_(1, place, fresh)
        usage.scatter_(1, order, torch.where(dead, mean.expand_as(dead), usage.gather(1, order)))
        self.usage.copy_(usage)

    def _standardize_more(self, moments: Tensor, keep: float) -> None:
        """Moves mean and deviation by the mean and mean square of standardised latents; at first they are all."""
        shift, square = moments
        spread = (square - shift.square()).clamp(min=1e-6)
        self.mean.add_((1 - keep) * shift * self.deviation)
        self.deviation.mul_((keep + (1 - keep) * spread).sqrt())
