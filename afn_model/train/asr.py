"""Supervised training of the encoder with its text decoder: SFT with label smoothing, SpecAugment and CTC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from afn_model.afwhisper import AFWhisper
from afn_model.checks import number, shown, whole
from afn_model.data.loader import GlobalBatch, MicroBatch
from afn_model.hashing import key
from afn_model.network.ctc import CTCTerm, ctc_targets
from afn_model.train.flops import ctc_flops
from afn_model.train.sft import SFT, Losses


@dataclass(frozen=True)
class ASRSettings:
    """How a stage of ASR differs from SFT; held-out losses are without any of it.

    Args:
        label_smoothing: ε of the cross-entropy, 0 to below 1.
        frequency_masks: bands of mel bins that are left out of each window.
        frequency_width: mel bins of a band, at most.
        time_masks: stretches of frames that are left out of each window.
        time_share: of a window's frames that a stretch takes, at most.
        ctc: weight w of an auxiliary CTC of the encoder: (1 − w) · decoder's loss + w · CTC's, both per supervised
            token; 0 is without. Conversations with audio and one answer have it.
        ctc_without: tokens of the tokenizer; a conversation with one of them has none, since it is not written down
            in order what its recording says.

    Source: SpecAugment, Park et al., 2019, arXiv:1904.08779, policy LibriSpeech double is 2 bands of up to 27 of its 80
    mel bins and 2 stretches of up to 100 frames.
    """

    label_smoothing: float = 0.0
    frequency_masks: int = 0
    frequency_width: int = 27
    time_masks: int = 0
    time_share: float = 0.05
    ctc: float = 0.0
    ctc_without: tuple[str, ...] = ("<|translate|>", "<|caption|>", "<|target|>")

    def __post_init__(self):
        for name in ("label_smoothing", "time_share", "ctc"):
            if not 0 <= number(getattr(self, name), name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 to below 1 is expected")
        for name in ("frequency_masks", "frequency_width", "time_masks"):
            whole(getattr(self, name), name, 0, 1000)
        listed = isinstance(self.ctc_without, (list, tuple)) and all(isinstance(one, str) for one in self.ctc_without)
        if not listed:
            raise ValueError(f"ctc_without is {shown(self.ctc_without)}; a list of tokens is expected")


class ASR(SFT):
    """The loss of a global batch.

    Which parts of a window are left out is a function of seed, place in the data, micro-batch and rank, so that a run
    that resumes leaves out the same.

    Args:
        model: the model.
        settings: of the stage.
        seed: of the run.
        rank: of the process.
        tokenizer: of the model, for CTC.
        trains: submodules that train, for CTC's FLOPs.
        options: as of ``SFT``.
    """

    def __init__(
        self,
        model: AFWhisper,
        settings: ASRSettings,
        *,
        seed: int = 0,
        rank: int = 0,
        tokenizer: Tokenizer | None = None,
        trains: Iterable[str] = (),
        **options: Any,
    ):
        super().__init__(model, **options)  # type: ignore[arg-type]
        self.settings, self.seed, self.rank = settings, seed, rank
        self.generator, self.place, self.micro = torch.Generator(), (0, 0), 0
        self.trains, self.ctc_losses, self.ctc_frames, self.ctc_short = tuple(trains), [], 0, 0
        self.markup, self.without = frozenset(), frozenset()
        if settings.ctc:
            assert tokenizer is not None, "CTC needs the tokenizer"
            self.markup = frozenset(tokenizer.get_added_tokens_decoder())
            ids = map(tokenizer.token_to_id, settings.ctc_without)
            self.without = frozenset(number for number in ids if number is not None)

    def updates(self, global_batch: GlobalBatch, *, detailed: bool = False) -> Iterator[Losses]:
        self.place, self.micro = (global_batch.position.chunk, global_batch.position.step), 0
        self.ctc_losses, self.ctc_frames = [], 0
        return super().updates(global_batch, detailed=detailed)

    def loss(self, micro: MicroBatch, total: float, detailed: bool) -> Tensor:
        self.generator.manual_seed(key(self.seed, *self.place, self.micro, self.rank) >> 1)
        self.micro += 1
        self.options = {"label_smoothing": self.settings.label_smoothing}
        if self.settings.frequency_masks or self.settings.time_masks:
            self.options["augment"] = partial(masked, settings=self.settings, generator=self.generator)
        if self.settings.ctc:
            assert micro.batch is not None, "prompts alone have no loss"
            targets = ctc_targets(micro.batch, self.model.config, self.markup, self.without)
            self.options["ctc"] = CTCTerm(targets, self.settings.ctc, self.ctc_losses.append)
            self.ctc_frames += sum(count for _, count in targets.spans)
            self.ctc_short += targets.short
        return super().loss(micro, total, detailed)

    def metrics(self) -> dict[str, Any]:
        """Of ``SFT``; with CTC also its loss, and how many texts have been too long for their frames since the last."""
        found = super().metrics()
        if self.settings.ctc:
            own = [float(sum(self.ctc_losses)), float(self.ctc_short)]
            loss, short = self.gather(torch.tensor(own, dtype=torch.float64)).tolist()
            found |= {"loss_ctc": loss, "ctc_short": round(short)}
            self.ctc_short = 0
        return found

    def work(self) -> dict[str, float]:
        """That of ``SFT``, and the FLOPs of CTC, which are not counted from the batches."""
        found = super().work()
        if self.settings.ctc:
            found["flops"] = found.get("flops", 0.0) + ctc_flops(self.model.config, self.ctc_frames, self.trains)
        return found


def masked(mel: Tensor, frames: list[int], settings: ASRSettings, generator: torch.Generator) -> Tensor:
    """Log-mel windows with bands and stretches set to 0, about the mean of what Whisper's scaling gives.

    Args:
        mel: [W, n_mels, F].
        frames: of each window that count.
        settings: how many and how wide.
        generator: on the CPU.
    """
    windows, bins, width = mel.shape
    lengths, all_bins = torch.tensor(frames, dtype=torch.float32), torch.full((windows,), float(bins))
    widest = torch.tensor(float(settings.frequency_width))
    hidden_bins = _spans(settings.frequency_masks, all_bins, widest, generator)
    hidden_frames = _spans(settings.time_masks, lengths, settings.time_share * lengths, generator)
    kept_bins = ~_covered(hidden_bins, bins)[:, :, None]
    kept_frames = ~_covered(hidden_frames, width)[:, None, :]
    return mel * kept_bins.to(mel) * kept_frames.to(mel)


def _spans(count: int, length: Tensor, widest: Tensor, generator: torch.Generator) -> Tensor:
    """[W, count, 2] first and end of stretches of 0 to ``widest`` within ``length`` [W]."""
    drawn = torch.rand(2, len(length), count, generator=generator)
    size = (drawn[0] * (widest.reshape(-1, 1) + 1)).floor().minimum(length[:, None])
    first = (drawn[1] * (length[:, None] - size + 1)).floor()
    return torch.stack((first, first + size), dim=2)


def _covered(spans: Tensor, length: int) -> Tensor:
    """[W, length] whether a place is in one of the window's stretches."""
    places = torch.arange(length)
    return ((places >= spans[..., :1]) & (places < spans[..., 1:])).any(1)
