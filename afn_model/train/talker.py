"""Training of a voice's talker: text and the frames said so far to the next frame, over a frozen codec."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from afn_model.checks import number, whole
from afn_model.data.micro_batch import GlobalBatch
from afn_model.hashing import key
from afn_model.speech.talker import TalkerBatch, TalkerSample
from afn_model.speech.voice import AFVoice
from afn_model.train.heard import HeardSpeech
from afn_model.train.passes import equally_many
from afn_model.train.voice_flops import talker_flops

DRAWN = 32  # what is drawn of a record, beside what ``voice_reader`` draws
CODED = 1 << 22  # samples that the codec is given at once, padding included


@dataclass(frozen=True)
class TalkerSettings:
    """How a stage trains a talker.

    Args:
        needs_prompt: whether a record without an earlier recording, the speaker prompt, is bad; otherwise it is trained
            on without one.
        prompt_share: of the records that have a speaker prompt, those that are given it.
        prompt_seconds: longest prompt; another part of the recording at each visit.
        pass_tokens: positions of prompt, text and sound that share a forward and backward; a larger sample has one to
            itself. All of a rank's at once if None.
        noise: deviation of the Gaussian noise on the frames that are read, in units of the latent.
        dropout: share of the frames that are read as zeros.
        draws: numbers of known levels that the head is trained on for each frame.
        first: weight of the cross-entropy of a frame's first level.
    """

    needs_prompt: bool = False
    prompt_share: float = 0.9
    prompt_seconds: float = 3.0
    pass_tokens: int | None = None
    noise: float = 0.0
    dropout: float = 0.0
    draws: int = 1
    first: float = 1.0

    def __post_init__(self):
        if not 0 < number(self.prompt_seconds, "prompt_seconds") < math.inf:
            raise ValueError(f"prompt_seconds is {self.prompt_seconds}; a number of seconds above 0 is expected")
        if not 0 <= number(self.prompt_share, "prompt_share") <= 1:
            raise ValueError(f"prompt_share is {self.prompt_share}; a share from 0 to 1 is expected")
        if not 0 <= number(self.noise, "noise") < math.inf or not 0 <= number(self.dropout, "dropout") < 1:
            raise ValueError(f"noise {self.noise}, dropout {self.dropout}: from 0, and from 0 to below 1 are expected")
        whole(self.draws, "draws", 1, 1000)
        if not 0 <= number(self.first, "first") < math.inf:
            raise ValueError(f"first is {self.first}; a weight from 0 is expected")
        if self.pass_tokens is not None:
            whole(self.pass_tokens, "pass_tokens", 1)


class TalkerTraining:
    """The update of a step of recordings: a mean over the audio frames of all ranks.

    Codes are made here by the frozen codec. What is drawn of a sample (levels known, noise, dropout) is a function of
    its seed, dataset, record and visit, whichever rank and pass it is in.

    Args:
        voice: whose talker trains, sharded or not.
        settings: the numbers.
        gather: sums a tensor over the ranks.
    """

    MEASURED = ("recordings", "frames", "nll", "end", "first")

    def __init__(
        self,
        voice: AFVoice,
        settings: TalkerSettings,
        *,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ):
        assert voice.talker is not None, "the voice has no talker"
        self.voice, self.talker, self.codec, self.settings = voice, voice.talker, voice.codec, settings
        self.gather = gather
        self.sums = torch.zeros(len(self.MEASURED), dtype=torch.float64)
        self.head = sum(parameter.numel() for parameter in self.talker.head.parameters())
        self.samples_now: list[TalkerSample] = []

    def updates(self, global_batch: GlobalBatch, *, detailed: bool = False) -> Iterator[list[Callable[[], Tensor]]]:
        """One optimiser step, a loss per pass; all ranks make equally many, of nothing where a rank has too few."""
        samples = self.samples(global_batch)
        self.sums = torch.zeros_like(self.sums)
        self.samples_now = [sample for sample, _ in samples]
        total = int(self.gather(torch.tensor(float(sum(len(sample.codes) for sample in self.samples_now)))))
        levels = self.codec.config.levels
        nothing = TalkerSample(torch.zeros(1, dtype=torch.long), torch.zeros(2, levels, dtype=torch.long)), None
        passes = equally_many(self.passes(samples), nothing, self.gather, audio=False)
        losses = [partial(self.loss, some, max(total, 1)) for some in passes]
        if total:
            yield losses

    def samples(self, global_batch: GlobalBatch) -> list[tuple[TalkerSample, int]]:
        """This rank's samples with their seeds, coded; on the CPU."""
        heard: list[HeardSpeech] = [one for micro in global_batch.micro for one in micro.prepared or ()]  # type: ignore[misc]
        clips = [clip for one in heard for clip in one.clips]
        codes, found = iter(self.coded(clips)), []
        for one in heard:
            said, *prompt = (next(codes) for _ in one.clips)
            found.append((TalkerSample(one.ids, said, prompt[0] if prompt else None), one.seed))
        return found

    @torch.no_grad()
    def coded(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """[frames, levels] int64 codes of int16 clips: of like lengths together, padded with silence, which changes
        nothing before it."""
        frame, found = self.codec.config.frame, [torch.empty(0)] * len(clips)
        order = sorted(range(len(clips)), key=lambda place: -len(clips[place]))
        while order:
            count = max(CODED // len(clips[order[0]]), 1)
            some, order = order[:count], order[count:]
            padded = torch.nn.utils.rnn.pad_sequence([clips[place] for place in some], batch_first=True)
            codes = self.codec.codes(padded.to(self.voice.device).float() / 32768).cpu()
            for place, own in zip(some, codes, strict=True):
                found[place] = own[: -(-len(clips[place]) // frame)]
        return found

    def passes(self, samples: Sequence[tuple[TalkerSample, int]]) -> list[list[tuple[TalkerSample, int | None]]]:
        """Samples in order, as many together as have ``pass_tokens`` positions."""
        found: list[list[tuple[TalkerSample, int | None]]] = []
        room = 0.0
        for sample, seed in samples:
            size = self.length(sample)
            if size > room:
                found.append([])
                room = self.settings.pass_tokens or math.inf
            found[-1].append((sample, seed))
            room -= size
        return found

    def length(self, sample: TalkerSample) -> int:
        """Positions of a sample."""
        return self.talker.positions * len(sample.codes) + (0 if sample.prompt is None else len(sample.prompt))

    def loss(self, some: Sequence[tuple[TalkerSample, int | None]], total: int) -> Tensor:
        """A pass's part of the loss; a sample without a seed is a placeholder, which counts nothing."""
        settings, batch = self.settings, TalkerBatch.pack([sample for sample, _ in some])
        generators = [torch.Generator().manual_seed(key(seed or 0, DRAWN) >> 1) for _, seed in some]
        options: dict[str, Any] = {"noise": settings.noise, "dropout": settings.dropout}
        options |= {"draws": settings.draws, "first": settings.first}
        found = self.talker.loss(
            batch.to(self.voice.device), total, self.codec.quantizer.codebooks, generators=generators, **options
        )
        if any(seed is None for _, seed in some):
            return 0.0 * found.loss
        counts = [len(some), len(batch.tokens), *(total * float(part) for part in found[1:])]
        self.sums += torch.tensor(counts, dtype=torch.float64)
        return found.loss

    def work(self) -> dict[str, float]:
        """Audio frames of this rank as tokens, all of them supervised, their seconds, and FLOPs."""
        samples, codec = self.samples_now, self.codec.config
        frames = sum(len(sample.codes) for sample in samples)
        flops = talker_flops(
            self.talker.config.text,
            codec,
            [self.length(sample) for sample in samples],
            coded=frames + sum(0 if sample.prompt is None else len(sample.prompt) for sample in samples),
            filled=self.settings.draws * frames,
            head=self.head,
        )
        return {"tokens": frames, "supervised": frames, "audio_seconds": frames / codec.frame_rate, "flops": flops}

    def metrics(self) -> dict[str, Any]:
        """``loss_frames``, ``loss_end`` and ``loss_first``, the parts of the loss, over all ranks."""
        found = self.means(self.gather(self.sums))
        return {f"loss_{name}": value for name, value in found.items() if name != "loss"}

    def measure(self, global_batch: GlobalBatch) -> Tensor:
        """``MEASURED`` over this rank's held-out recordings; without noise and dropout."""
        settings = self.settings
        self.settings = replace(settings, noise=0.0, dropout=0.0)
        try:
            for losses in self.updates(global_batch):
                for loss in losses:
                    loss()
        finally:
            self.settings = settings
        return self.sums

    @staticmethod
    def means(sums: Tensor) -> dict[str, float]:
        """``loss`` and its parts for an audio frame, from ``MEASURED``: ``frames``, nats a dimension of the latent,
        ``end`` and ``first``; nothing without frames."""
        _, count, *parts = sums.tolist()
        if not count:
            return {}
        frames, end, first = (part / count for part in parts)
        return {"loss": frames + end + first, "frames": frames, "end": end, "first": first}
