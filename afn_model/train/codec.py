"""Training of a voice's codec: spectra, discriminators and the quantiser, in two optimiser steps for each batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from afn_model.checks import number, whole
from afn_model.data.micro_batch import GlobalBatch
from afn_model.speech.codec_loss import CodecLosses, CodecLossSettings
from afn_model.speech.config import CodecConfig
from afn_model.speech.measures import mel_distance
from afn_model.speech.voice import AFVoice
from afn_model.train.heard import HeardSpeech, draw
from afn_model.train.values import known, made, mapping
from afn_model.train.voice_flops import codec_flops

LEVELS = 16  # what is drawn of a record, beside what ``voice_reader`` draws


@dataclass(frozen=True)
class CodecSettings:
    """How a stage trains a codec.

    Args:
        crop: seconds of each recording that are heard, rounded up to whole audio frames; another part at each visit.
            Shorter recordings have silence behind them.
        adversarial_start: from when the discriminators train and count: below 1 a share of the stage, from 1 on so many
            optimiser steps; None for never, without discriminators at all.
        all_levels: share of the recordings that pass through all levels of the quantiser; the others through 1 to all
            of them, so that any first few levels are a recording of their own.
        loss: settings of ``afn_model.speech.codec_loss.CodecLossSettings``.
        discriminators: ``periods``, ``windows`` and ``width`` of ``afn_model.speech.discriminators.Discriminators``.
    """

    crop: float = 1.0
    adversarial_start: float | None = 0.0
    all_levels: float = 0.5
    loss: dict[str, Any] = field(default_factory=dict)
    discriminators: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 < number(self.crop, "crop") < math.inf:
            raise ValueError(f"crop is {self.crop}; a number of seconds above 0 is expected")
        if self.adversarial_start is not None and number(self.adversarial_start, "adversarial_start") < 0:
            raise ValueError(f"adversarial_start is {self.adversarial_start}; a number from 0 is expected")
        if not 0 <= number(self.all_levels, "all_levels") <= 1:
            raise ValueError(f"all_levels is {self.all_levels}; a share from 0 to 1 is expected")
        self.losses()
        known(mapping(self.discriminators, "discriminators"), ("periods", "windows", "width"), "discriminators")
        for name, value in self.discriminators.items():
            for one in value if isinstance(value, (list, tuple)) and name != "width" else [value]:
                whole(one, f"discriminators: {name}", 4 if name == "windows" else 1, 1 << 16)

    def losses(self) -> CodecLossSettings:
        """The weights of the loss's terms."""
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in mapping(self.loss, "loss").items()}
        return made(CodecLossSettings, given, "loss")

    def samples(self, config: CodecConfig) -> int:
        """Of a crop."""
        return math.ceil(self.crop * config.sample_rate / config.frame) * config.frame

    def adversarial(self, step: int, progress: float) -> bool:
        """Whether discriminators count in the step after ``step`` others, ``progress`` of the stage."""
        start = self.adversarial_start
        return start is not None and (progress if start < 1 else step) >= start


class CodecTraining:
    """The updates of a step of recordings.

    All terms are means over the recordings of all ranks, in which each rank's feature matching is relative to its own
    originals. The discriminators' optimiser step comes first, against what
    the codec makes of the batch now; the codec's second, against the discriminators that this gives, through the graph
    of the same forward. What does not train in one of them has no gradient there, so that AdamW leaves it alone. Codes
    move by their averages after both, by sums over all ranks.

    Args:
        voice: of whose codec and discriminators every rank has its copy.
        settings: the numbers.
        gather: sums a tensor over the ranks.
        collect: lists what each rank has.
        rank: of this process.
    """

    MEASURED = ("recordings", "mel_distance")

    def __init__(
        self,
        voice: AFVoice,
        settings: CodecSettings,
        *,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        collect: Callable[[Any], list[Any]] = lambda value: [value],
        rank: int = 0,
    ):
        self.voice, self.codec, self.settings = voice, voice.codec, settings
        self.gather, self.collect, self.rank = gather, collect, rank
        self.losses = CodecLosses(settings.losses(), self.codec.config.sample_rate).to(voice.device)
        self.terms: dict[str, Tensor] = {}
        self.heard = 0

    def updates(self, global_batch: GlobalBatch, *, detailed: bool = False) -> Iterator[list[Callable[[], Tensor]]]:
        """One optimiser step of the discriminators, once they count, and one of the codec."""
        pcm, seeds = self.recordings(global_batch)
        total = int(self.gather(torch.tensor(float(len(pcm)))))
        self.terms, self.heard = {}, len(pcm)
        if not total:
            return
        share = len(pcm) / total
        sound, quantized = self.codec(pcm, self.levels(seeds, pcm)) if len(pcm) else (pcm, None)
        adversarial = self.settings.adversarial(global_batch.step, global_batch.progress)
        if adversarial:
            yield [partial(self.discriminators_loss, pcm, sound.detach(), share)]
        yield [partial(self.codec_loss, pcm, sound, quantized, share, adversarial)]
        self.codec.quantizer.update(self.together)

    def recordings(self, global_batch: GlobalBatch) -> tuple[Tensor, list[int]]:
        """[B, crop] float32 samples of this rank's recordings, and the seed of each."""
        heard: list[HeardSpeech] = [one for micro in global_batch.micro for one in micro.prepared or ()]  # type: ignore[misc]
        if not heard:
            return torch.zeros(0, self.settings.samples(self.codec.config), device=self.voice.device), []
        pcm = torch.stack([one.clips[0] for one in heard]).to(self.voice.device)
        return pcm.float() / 32768, [one.seed for one in heard]

    def levels(self, seeds: Sequence[int], pcm: Tensor) -> Tensor:
        """[B, frames] levels that each recording passes through, a function of its seed."""
        most, found = self.codec.config.levels, []
        for seed in seeds:
            every = draw(seed, LEVELS) < self.settings.all_levels
            found.append(most if every else 1 + int(draw(seed, LEVELS + 1) * most))
        frames = pcm.shape[1] // self.codec.config.frame
        return torch.tensor(found, device=pcm.device)[:, None].expand(-1, frames)

    def discriminators_loss(self, pcm: Tensor, sound: Tensor, share: float) -> Tensor:
        """This rank's part of the discriminators' loss."""
        if not len(pcm):
            return pcm.new_zeros(())
        judges: Any = self.voice.discriminators
        loss = share * self.losses.discriminator(judges(pcm), judges(sound))
        self.terms["discriminators"] = loss.detach()
        return loss

    def codec_loss(self, pcm: Tensor, sound: Tensor, quantized: Any, share: float, adversarial: bool) -> Tensor:
        """This rank's part of the codec's loss."""
        if not len(pcm):
            return pcm.new_zeros(())
        terms = self.losses.reconstruction(pcm, sound) | self.losses.quantizer(quantized)
        if adversarial:
            judges: Any = self.voice.discriminators
            with torch.no_grad():
                real = judges(pcm)
            with untrained(judges):
                terms |= self.losses.generator(real, judges(sound))
        self.terms |= {name: share * term.detach() for name, term in terms.items()}
        return share * torch.stack(list(terms.values())).sum()

    def together(self, seen: list[Tensor]) -> list[Tensor]:
        """What the quantiser has seen on all ranks: added up, but the residuals, where unused codes start anew: those
        are of the first rank that has recordings."""
        *sums, residuals = seen
        first = self.collect(self.heard > 0).index(True) == self.rank
        return [*map(self.gather, sums), self.gather(residuals * first)]

    def work(self) -> dict[str, float]:
        """Audio frames of this rank's recordings as tokens, their seconds, and FLOPs."""
        config = self.codec.config
        frames = self.heard * (self.settings.samples(config) // config.frame)
        seconds = frames / config.frame_rate
        judges = self.settings.discriminators if "discriminators" in self.terms else None
        return {"tokens": frames, "audio_seconds": seconds, "flops": codec_flops(config, seconds, judges)}

    def metrics(self) -> dict[str, Any]:
        """``loss_<term>`` of each term, times its weight, over all ranks, and ``codes_used``: the share of the codes
        that are used at least a tenth as often as their level's mean."""
        names = sorted({name for of_rank in self.collect(sorted(self.terms)) for name in of_rank})
        own = [float(self.terms.get(name, 0.0)) for name in names]
        found = self.gather(torch.tensor(own, dtype=torch.float64)).tolist()
        usage = self.codec.quantizer.usage
        used = float((usage > 0.1 * usage.mean(1, keepdim=True)).float().mean())
        return {f"loss_{name}": value for name, value in zip(names, found, strict=True)} | {"codes_used": used}

    def measure(self, global_batch: GlobalBatch) -> Tensor:
        """``MEASURED`` over this rank's held-out recordings, through all levels."""
        pcm, _ = self.recordings(global_batch)
        found = torch.zeros(2, dtype=torch.float64)
        for one in pcm:
            sound, _ = self.codec(one[None], self.codec.config.levels)
            found += torch.tensor([1.0, mel_distance(one, sound[0], self.codec.config.sample_rate)])
        return found

    def means(self, sums: Tensor) -> dict[str, float]:
        """``mel_distance`` from ``MEASURED``; nothing without recordings."""
        count, distance = sums.tolist()
        return {"mel_distance": distance / count} if count else {}


@contextmanager
def untrained(module: nn.Module) -> Iterator[None]:
    """Within it, what a module computes has no graph to its parameters that train."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
