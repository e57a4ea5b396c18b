"""What stages of a voice take, from shapes alone: memory of a GPU and time of a step, in the terms of the planner.

Codec and discriminators compute in float32, which PyTorch does without tensor cores; the talker in the layout's dtype.
Every rank has all of the codec; the talker's weights are cut as other models' are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import nn

from afn_model.speech.codec import codec_sizes
from afn_model.speech.codec_loss import CodecLossSettings
from afn_model.speech.config import CodecConfig, TalkerConfig, VoiceConfig
from afn_model.speech.talker import Talker
from afn_model.train.account import RESERVE
from afn_model.train.codec import CodecSettings
from afn_model.train.curriculum import Stage
from afn_model.train.flops import language_model_linear
from afn_model.train.optimiser import MOMENTS
from afn_model.train.rates import Rates
from afn_model.train.run_layout import RunLayout
from afn_model.train.step_time import LAUNCHES, StepSeconds, layer_bytes
from afn_model.train.talker import TalkerSettings
from afn_model.train.voice_flops import (
    DISCRIMINATED,
    codec_way_flops,
    coding_flops,
    discriminated,
    quantizer_flops,
    stage_positions,
)
from afn_model.weights.checkpoint import SkipInit

FLOAT32 = 0.04  # of the peak in bfloat16: 60 % of the 67e12 FLOP/s that an H100 has without tensor cores; assumed
MEAN_SECONDS = 8.0  # of a recording, assumed; the longest is the stage's max_audio
TOKENS = 4.0  # of text a second, assumed
BLOCK_KEPT = 12  # floats that a ConvNeXt block keeps of a position, in widths
BLOCK_MOVED = 40  # floats that its kernels move, forward, in widths


@dataclass(frozen=True)
class VoiceSizes:
    """Parameters of a voice by part; ``embedding`` are rows, of which a step reads one."""

    encoder: int
    quantizer: int
    decoder: int
    blocks: int
    embedding: int
    head: int
    other: int

    @property
    def codec(self) -> int:
        """Those that train."""
        return self.encoder + self.decoder

    @property
    def talker(self) -> int:
        return self.blocks + self.embedding + self.head + self.other


@lru_cache(maxsize=8)
def voice_sizes(config: VoiceConfig) -> VoiceSizes:
    """Counts the parameters of a voice without making them; of one without a talker those of the codec."""
    codec = codec_sizes(config.codec)
    if config.talker is None:
        return VoiceSizes(codec.encoder, codec.quantizer, codec.decoder, 0, 0, 0, 0)
    with torch.device("meta"), SkipInit():
        talker = Talker(config.talker, config.codec)
    model = talker.language_model
    blocks, embedding, head = map(count, (model.layers, model.embed_tokens, talker.head))
    other = count(talker) - blocks - embedding - head
    return VoiceSizes(codec.encoder, codec.quantizer, codec.decoder, blocks, embedding, head, other)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class VoiceAccount:
    """The memory of a GPU, as ``afn_model.train.account.Account`` has it, for a step on the longest recordings.

    Args:
        held: bytes of states by kind.
        gradients, activations, working: bytes.
    """

    held: dict[str, float]
    gradients: float
    activations: float
    working: float

    whole: ClassVar[bool] = True  # every rank has all frozen weights

    def states(self) -> dict[str, float]:
        """Bytes of weights and what the optimiser keeps, by kind."""
        return self.held

    def host(self) -> dict[str, float]:
        """Nothing is offloaded."""
        return {}

    def total(self) -> dict[str, float]:
        """Bytes by the planner's columns."""
        parts = {"states": sum(self.held.values()), "gradients": self.gradients, "activations": self.activations}
        parts |= {"working": self.working, "reserve": RESERVE}
        return {**parts, "total": sum(parts.values())}

    def needs(self) -> float:
        """Bytes at the peak."""
        return self.total()["total"]


def voice_account(config: VoiceConfig, stage: Stage, layout: RunLayout, gpus: int) -> VoiceAccount:
    """Of the longest recordings that the stage reads."""
    sizes, recordings = voice_sizes(config), max(stage.bins // gpus, 1)
    if stage.method == "codec":
        return _codec_needs(config, stage, sizes, recordings)
    assert config.talker is not None, "the voice has no talker"
    return _talker_needs(config.codec, config.talker, stage, layout, sizes, gpus, recordings)


def _codec_needs(config: VoiceConfig, stage: Stage, sizes: VoiceSizes, recordings: int) -> VoiceAccount:
    codec, settings = config.codec, CodecSettings(**stage.codec)
    _, layers, judges = discriminated(codec.sample_rate, settings.discriminators)
    layers, judges = (0, 0) if settings.adversarial_start is None else (layers, judges)
    seconds = recordings * settings.samples(codec) / codec.sample_rate
    rates = stage_positions(codec)
    ways = 2 * sum(r * w * codec.blocks for r, w in zip(rates, codec.widths, strict=False))
    windows = len(settings.losses().windows)
    trained = sizes.codec + judges
    held = {
        "frozen weights": 4.0 * (sizes.talker + sizes.quantizer),
        "trained weights": 4.0 * trained,
        "moments": MOMENTS[stage.optimiser] * trained,
    }
    # Before and after each leaky ReLU; of the codec's sound, with the original's beside it in the discriminators' step.
    judging = 4.0 * 2 * layers * 2 * seconds
    spectra = 4.0 * 16 * windows * codec.sample_rate * seconds
    kept = 4.0 * BLOCK_KEPT * ways * seconds + judging + spectra
    # The gradients of one of the two steps, and once more as they are summed; residuals of all levels.
    gradients = 2 * 4.0 * max(sizes.codec, judges)
    searched = 4.0 * codec.levels * codec.latent * codec.frame_rate * seconds + 3 * 4.0 * sizes.quantizer
    return VoiceAccount(held, gradients, kept, searched)


def _positions(codec: CodecConfig, talker: TalkerConfig, seconds: float, settings: TalkerSettings) -> float:
    """Of a recording with its speaker prompt."""
    prompt = min(settings.prompt_seconds * codec.frame_rate, talker.prompt)
    return (2 if talker.interleaved else 1) * seconds * codec.frame_rate + prompt


def _talker_needs(
    codec: CodecConfig,
    talker: TalkerConfig,
    stage: Stage,
    layout: RunLayout,
    sizes: VoiceSizes,
    gpus: int,
    recordings: int,
) -> VoiceAccount:
    settings, text = TalkerSettings(**stage.talker), talker.text
    each = min(_positions(codec, talker, stage.max_audio, settings), stage.context)
    all_of_them = recordings * each
    tokens = min(all_of_them, max(settings.pass_tokens or math.inf, each))
    size, shard = getattr(torch, layout.dtype).itemsize, layout.shard or gpus
    sharded = gpus > 1 or size < 4
    frames = tokens * codec.frame_rate * stage.max_audio / each
    opened = size * 3 * text.ffn
    layer = size * (4 * text.width + 2 * (text.heads + text.kv_heads) * text.head_dim) + opened
    kept = {"none": layer, "encoder": layer, "selective": layer - opened, "full": size * text.width}[layout.recompute]
    again = {"selective": opened, "full": layer}.get(layout.recompute, 0)
    head = size * 3 * talker.head_layers * talker.head_width + 4 * (4 * talker.components + 8 * codec.latent)
    held = {
        "frozen weights": 4.0 * (sizes.encoder + sizes.quantizer + sizes.decoder),
        "trained weights": 4.0 * sizes.talker / shard,
        "moments": MOMENTS[stage.optimiser] * sizes.talker / shard,
    }
    # Gathered: embedding and head for the whole pass, and two blocks; a gradient of the embedding before it is cut.
    whole = sizes.embedding + sizes.head + sizes.other + 2 * sizes.blocks / text.layers
    working = (2 * size * whole + 4.0 * sizes.embedding if sharded else 0.0) + again * tokens
    stft = codec.sample_rate / codec.hop * codec.widths[0] * 4 * 8  # bytes a second of what the encoder works with
    working = max(working, stft * min(stage.max_audio * recordings, (1 << 22) / codec.sample_rate))
    activations = text.layers * kept * tokens + frames * (head * settings.draws + 8 * codec.codes)
    return VoiceAccount(held, 4.0 * sizes.talker / shard, activations, working)


class VoiceStepTime:
    """The time of a step on recordings of ``MEAN_SECONDS``; an estimate.

    Args:
        config: of the voice.
        stage, layout, gpus: of the plan.
        rates: of GPU and links.
    """

    def __init__(self, config: VoiceConfig, stage: Stage, layout: RunLayout, gpus: int, rates: Rates):
        self.config, self.stage, self.layout, self.gpus, self.rates = config, stage, layout, gpus, rates
        self.recordings, self.sizes = max(stage.bins // gpus, 1), voice_sizes(config)
        self.micro_batches = self.recordings

    def at(self, rates: Rates) -> VoiceStepTime:
        """The same at other rates."""
        return VoiceStepTime(self.config, self.stage, self.layout, self.gpus, rates)

    def transfers(self) -> float:
        """Nothing is offloaded."""
        return 0.0

    @property
    def micro_tokens(self) -> int:
        """Positions of a recording."""
        each, codec, talker = self.seconds / self.recordings, self.config.codec, self.config.talker
        if self.stage.method == "codec" or talker is None:
            return round(each * codec.frame_rate)
        return round(_positions(codec, talker, each, TalkerSettings(**self.stage.talker)))

    @property
    def seconds(self) -> float:
        """Of sound that a rank hears in a step."""
        if self.stage.method == "codec":
            settings, codec = CodecSettings(**self.stage.codec), self.config.codec
            return self.recordings * settings.samples(codec) / codec.sample_rate
        return self.recordings * min(MEAN_SECONDS, self.stage.max_audio)

    def tokens(self) -> float:
        """Audio frames of a step, all ranks together."""
        return self.gpus * self.seconds * self.config.codec.frame_rate

    def step(self) -> StepSeconds:
        compute, exposed, trained = self.codec() if self.stage.method == "codec" else self.talker()
        a, waits = self.rates, self.gpus > 1
        other = 32.0 * trained / a.hbm + (a.waiting * (compute + exposed) if waits else 0.0)
        read = self.recordings * min(MEAN_SECONDS, self.stage.max_audio)
        data = max(0.0, read / (a.decoded * max(self.layout.workers, 1)) - compute - exposed - other)
        return StepSeconds(compute, exposed, 0.0, other, data)

    def link(self, size: float, ranks: int) -> float:
        """Seconds in which so many bytes are gathered over ranks, or summed and cut."""
        a = self.rates
        if ranks == 1 or not size:
            return 0.0
        return a.message * (1 + math.log2(ranks) / 4) + size * (ranks - 1) / ranks / (
            a.nvlink if ranks <= a.node else a.across
        )

    def codec(self) -> tuple[float, float, float]:
        """(seconds of kernels, of messages, parameters that are updated)."""
        codec, a, seconds = self.config.codec, self.rates, self.seconds
        settings = CodecSettings(**self.stage.codec)
        flops, values, judges = 0.0, 0, 0
        if settings.adversarial_start is not None:
            flops, values, judges = discriminated(codec.sample_rate, settings.discriminators)
        slow = FLOAT32 * a.peak
        rates = stage_positions(codec)
        moved = 2 * 4.0 * BLOCK_MOVED * codec.blocks * sum(r * w for r, w in zip(rates, codec.widths, strict=False))
        compute = 3 * (2 * codec_way_flops(codec) / slow + moved / a.hbm)
        compute += codec.frame_rate * quantizer_flops(codec) / slow
        compute += DISCRIMINATED * (flops / slow + 4.0 * 3 * values / a.hbm)
        compute += 3 * len(CodecLossSettings(**settings.loss).windows) * 4.0 * 40 * codec.sample_rate / a.hbm
        exposed = 2 * self.link(4.0 * (self.sizes.codec + judges + self.sizes.quantizer), self.gpus)
        return seconds * compute, exposed, self.sizes.codec + judges

    def talker(self) -> tuple[float, float, float]:
        """As ``codec``."""
        codec, talker, a = self.config.codec, self.config.talker, self.rates
        assert talker is not None, "the voice has no talker"
        settings, text = TalkerSettings(**self.stage.talker), talker.text
        slow, size = FLOAT32 * a.peak, getattr(torch, self.layout.dtype).itemsize
        fast = a.matmul if size == 2 else slow
        each = _positions(codec, talker, min(MEAN_SECONDS, self.stage.max_audio), settings)
        rows, frames = self.recordings * each, self.seconds * codec.frame_rate
        times = 3 + {"selective": 0.6, "full": 1.0}.get(self.layout.recompute, 0.0)
        linear = language_model_linear(text) / fast + text.layers * layer_bytes(text) / a.hbm * size / 2
        attended = 2.0 * text.layers * text.heads * text.head_dim * each
        attended *= 1 / a.attention + 2.5 / a.attention_backward
        head = 2.0 * self.sizes.head * settings.draws * frames
        heard = self.seconds + self.recordings * min(settings.prompt_seconds, talker.prompt / codec.frame_rate)
        coded = heard * coding_flops(codec) / slow
        passes = math.ceil(rows / max(settings.pass_tokens or math.inf, each))
        launched = passes * text.layers * sum(LAUNCHES[part] for part in ("forward", "backward")) * a.launch
        compute = coded + max(times * rows * linear + rows * attended + 3 * head / fast, launched)
        shard = self.layout.shard or self.gpus
        gathered = passes * (2 * self.link(size * self.sizes.talker, shard) + self.link(4.0 * self.sizes.talker, shard))
        copies = self.gpus // shard
        summed = 2 * self.link(4.0 * self.sizes.talker / shard, copies) if copies > 1 else 0.0
        return compute, max(0.0, gathered - compute) + summed, self.sizes.talker / shard
