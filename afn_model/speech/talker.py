"""The talker: a decoder over text tokens and the audio frames said so far, one frame for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_model.network.language_model import LanguageModel
from afn_model.speech.config import CodecConfig, TalkerConfig
from afn_model.speech.mixture import MixtureHead, code_sums

if TYPE_CHECKING:
    from afn_model.network.kv_cache import PagedKV

PAD = -1  # a step's text where the text is over


@dataclass(frozen=True)
class TalkerSample:
    """A recording and what is said in it.

    Args:
        ids: [m] int64 tokens, m from 1.
        codes: [n, levels] int64 frames of the recording, n > m: a step has one token at most, and the end is asked
            where the text is over. A recording that is shorter is padded with silence before it is coded.
        prompt: [p, levels] int64 frames of the same speaker; None or [0, levels] without.
    """

    ids: Tensor
    codes: Tensor
    prompt: Tensor | None = None

    def __post_init__(self):
        if not len(self.ids):
            raise ValueError("a sample without text")
        if len(self.codes) <= len(self.ids):
            raise ValueError(f"{len(self.codes)} audio frames for {len(self.ids)} text tokens: expected more frames")


@dataclass(frozen=True)
class TalkerBatch:
    """Samples one after another, without padding.

    Args:
        tokens: [Σ frames] int64, the text token of each step; ``PAD`` where the text is over.
        codes: [Σ frames, levels] int64.
        prompts: [Σ prompt frames, levels] int64.
        frames, prompt_frames: of each sample.
    """

    tokens: Tensor
    codes: Tensor
    prompts: Tensor
    frames: tuple[int, ...]
    prompt_frames: tuple[int, ...]

    @classmethod
    def pack(cls, samples: Sequence[TalkerSample]) -> TalkerBatch:
        """ValueError where there is none."""
        if not samples:
            raise ValueError("a batch without samples")
        prompts = [sample.codes[:0] if sample.prompt is None else sample.prompt for sample in samples]
        tokens = [F.pad(sample.ids, (0, len(sample.codes) - len(sample.ids)), value=PAD) for sample in samples]
        return cls(
            torch.cat(tokens),
            torch.cat([sample.codes for sample in samples]),
            torch.cat(prompts),
            tuple(len(sample.codes) for sample in samples),
            tuple(len(prompt) for prompt in prompts),
        )

    def to(self, device: torch.device | str) -> TalkerBatch:
        return replace(
            self, tokens=self.tokens.to(device), codes=self.codes.to(device), prompts=self.prompts.to(device)
        )


class TalkerLoss(NamedTuple):
    """Sums over the frames of a batch, divided by the ``total`` that was given.

    Args:
        loss: frames + end + first, with a gradient.
        frames: negative log-likelihood of what the levels not known add up to, nats for each dimension of the latent.
        end: binary cross-entropy of the end, of the steps at which it is asked.
        first: cross-entropy of the code of each frame's first level, nats, times its weight.
    """

    loss: Tensor
    frames: Tensor
    end: Tensor
    first: Tensor


class Places(NamedTuple):
    """Where a packed batch's embeddings stand among T positions."""

    prompt: Tensor  # [Σ prompt frames]
    text: Tensor  # [Σ frames]
    audio: Tensor  # [Σ frames], of the frame before; the hidden state here gives the frame
    positions: Tensor  # [T] float32, from 0 in each sample
    cu_seqlens: Tensor  # [N + 1] int32
    longest: int


class Talker(nn.Module):
    """Speaker prompt, text and frames in, frames out.

    Step i reads text token i, or that the text is over, and the sum of the codes of frame i - 1; its hidden state gives
    the mixture of frame i and, once the text is over, whether that frame is the last. ``interleaved`` gives text and
    frame a position each, text first; otherwise both are added in one position, which halves the cache and the time.
    The text is not aligned: one token enters at each step, so that it runs ahead of the sound, and attention finds it.
    ``first_head`` is for training alone: which word comes next is a small part of the likelihood of a latent of many
    dimensions, and attention learns it late; the code of the first level says it in one choice.

    Args:
        config: the talker's.
        codec: of the frames.
    """

    def __init__(self, config: TalkerConfig, codec: CodecConfig):
        super().__init__()
        width = config.text.width
        self.config, self.latent = config, codec.latent
        self.language_model = LanguageModel(config.text)
        self.frame_proj = nn.Linear(codec.latent, width)
        self.pad = nn.Parameter(torch.randn(width))  # a step's text where it is over
        self.start = nn.Parameter(torch.randn(width))  # the frame before the first
        self.speaker = nn.Parameter(torch.randn(width))  # what is added to the frames of a prompt
        self.head = MixtureHead(config, codec.latent, codec.levels)
        self.end_head = nn.Linear(width, 1)
        self.first_head = nn.Linear(width, codec.codes)

    @property
    def positions(self) -> int:
        """Of a step."""
        return 2 if self.config.interleaved else 1

    def prompt_inputs(self, embedding: Tensor) -> Tensor:
        """[P, width] of a speaker prompt's frames [P, D]."""
        return self.frame_proj(embedding) + self.speaker

    def text_inputs(self, tokens: Tensor) -> Tensor:
        """[S, width] of tokens [S], or of ``PAD``."""
        found = self.language_model.embed_tokens(tokens.clamp_min(0))
        return torch.where((tokens == PAD)[:, None], self.pad, found)

    def frame_inputs(self, before: Tensor, first: Tensor) -> Tensor:
        """[S, width] of the frames before [S, D]; the learnt start where ``first`` [S] is true."""
        return torch.where(first[:, None], self.start, self.frame_proj(before))

    def step_inputs(self, tokens: Tensor, before: Tensor, first: Tensor) -> Tensor:
        """[S, positions, width] of S streams' next steps."""
        text, frame = self.text_inputs(tokens), self.frame_inputs(before, first)
        return torch.stack((text, frame), 1) if self.config.interleaved else (text + frame)[:, None]

    def cached(self, x: Tensor, positions: Tensor, kv: PagedKV) -> Tensor:
        """[T, width] hidden states of new positions over the pages of those before."""
        return self.language_model(x, positions, kv=kv)

    def places(self, batch: TalkerBatch) -> Places:
        """Of a batch's embeddings."""
        device, each = batch.tokens.device, self.positions
        lengths = [p + each * n for p, n in zip(batch.prompt_frames, batch.frames, strict=True)]
        starts = [0, *accumulate(lengths)]
        prompt = [torch.arange(s, s + p) for s, p in zip(starts, batch.prompt_frames, strict=False)]
        steps = [
            s + p + each * torch.arange(n) for s, p, n in zip(starts, batch.prompt_frames, batch.frames, strict=False)
        ]
        positions = [torch.arange(n, dtype=torch.float32) for n in lengths]
        text = torch.cat(steps).to(device)
        return Places(
            torch.cat(prompt).to(device), text, text + each - 1, torch.cat(positions).to(device),
            torch.tensor(starts, dtype=torch.int32, device=device), max(lengths),
        )  # fmt: skip

    def hidden(self, batch: TalkerBatch, before: Tensor, prompts: Tensor) -> Tensor:
        """[Σ frames, width]: the hidden state of every step.

        Args:
            batch: as ``pack`` makes it.
            before: [Σ frames, D], the frame before each; of a sample's first, anything.
            prompts: [Σ prompt frames, D].
        """
        places = self.places(batch)
        first = torch.zeros(len(before), dtype=torch.bool, device=before.device)
        first[_starts(batch.frames).to(before.device)] = True
        text, frame = self.text_inputs(batch.tokens), self.frame_inputs(before, first)
        x = text.new_zeros(len(places.positions), text.shape[1])
        x = x.index_copy(0, places.prompt, self.prompt_inputs(prompts)).index_add(0, places.text, text)
        x = x.index_add(0, places.audio, frame)
        x = self.language_model(x, places.positions, cu_seqlens=places.cu_seqlens, longest=places.longest)
        return x[places.audio]

    def loss(
        self,
        batch: TalkerBatch,
        total: int | Tensor,
        codebooks: Tensor,
        *,
        generator: torch.Generator | None = None,
        generators: Sequence[torch.Generator] | None = None,
        noise: float = 0.0,
        dropout: float = 0.0,
        draws: int = 1,
        first: float = 1.0,
    ) -> TalkerLoss:
        """Of a packed batch: each frame with a random number of levels known.

        Args:
            batch: the samples.
            total: frames of the whole optimiser step, all ranks'.
            codebooks: [levels, codes, D] of the codec.
            generator: on the CPU, of all that is drawn here.
            generators: one for each sample instead: what is drawn of it then does not depend on the others.
            noise: deviation of the Gaussian noise on the frames that are read, in units of the latent; the frames that
                the talker reads as it speaks are its own, which are never exactly right.
            dropout: how often a frame that is read is all zeros: what is said next is then to be found in the text.
            draws: numbers of known levels for each frame, the first of several 0; the head sees each, the decoder runs
                once.
            first: weight of the first level's cross-entropy.
        """
        dtype = self.frame_proj.weight.dtype
        sums, prompts = code_sums(batch.codes, codebooks), code_sums(batch.prompts, codebooks)
        before = sums.roll(1, 0)
        device, frames = sums.device, len(sums)

        def drawn(draw: Callable[[int, torch.Generator | None], Tensor]) -> Tensor:
            if generators is None:
                return draw(frames, generator).to(device)
            return torch.cat([draw(n, own) for n, own in zip(batch.frames, generators, strict=True)]).to(device)

        if noise:
            before = before + noise * drawn(lambda n, own: torch.randn(n, self.latent, generator=own)).to(before)
        if dropout:
            before = before * (drawn(lambda n, own: torch.rand(n, 1, generator=own)) >= dropout).to(before)
        hidden = self.hidden(batch, before.to(dtype), prompts.to(dtype))
        count = drawn(lambda n, own: self.head.draw_known(n, draws, own)).t().flatten()
        repeated = sums.repeat(draws, 1)
        known = code_sums(batch.codes.repeat(draws, 1), codebooks, count)
        nll = self.head(hidden.repeat(draws, 1), known, count).nll(repeated - known).sum() / (draws * self.latent)
        last = torch.zeros(frames, device=device)
        last[(_starts(batch.frames) + torch.tensor(batch.frames) - 1).to(device)] = 1
        asked = (batch.tokens == PAD).float()
        logits = self.end_head(hidden)[:, 0].float()
        end = F.binary_cross_entropy_with_logits(logits, last, weight=asked, reduction="sum")
        coarse = first * F.cross_entropy(self.first_head(hidden).float(), batch.codes[:, 0], reduction="sum")
        parts = torch.stack((nll, end, coarse)) / total
        return TalkerLoss(parts.sum(), *parts.detach())


def _starts(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(counts)][:-1])
