"""What a voice is made of, as data: the codec, the talker, presets, and what config.json holds of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from afn_model.checks import is_listed, number, shown, whole
from afn_model.config import LARGEST, TextConfig, check_numbers

MODEL_TYPE = "afn_voice"


@dataclass(frozen=True)
class CodecConfig:
    """The codec; by default that of the paper, 10.77 tokens of 72 codes a second; ValueError where a value is none.

    Args:
        sample_rate: Hz.
        window, hop: samples of the STFT's frames, of the encoder and of the decoder's head.
        widths: channels of the stages, the finest first.
        strides: of the convolution behind each stage.
        blocks: ConvNeXt blocks of a stage.
        kernel: taps of their depthwise convolution.
        latent: width of what is quantised.
        levels: of the residual quantiser.
        codes: of a level.
        power: exponent of the magnitudes that the encoder sees. The paper is silent; with 1, quiet consonants are
            hundreds of times smaller than vowels.
        codebook: how codes learn: "ema", a moving average of the residuals nearest to each, or "gradient", by a loss.
        decay: of the moving average, in a step.
        dead_below: a code used less than this share of its level's mean is started anew from a residual.
    """

    sample_rate: int = 44_100
    window: int = 32
    hop: int = 8
    widths: tuple[int, ...] = (384, 768, 1536)
    strides: tuple[int, ...] = (8, 8, 8)
    blocks: int = 3
    kernel: int = 7
    latent: int = 512
    levels: int = 72
    codes: int = 1024
    power: float = 0.3
    codebook: str = "ema"
    decay: float = 0.99
    dead_below: float = 0.05

    def __post_init__(self):
        check_numbers(self, "codec config")
        for name in ("widths", "strides"):
            values = getattr(self, name)
            if not is_listed(values) or not values:
                raise ValueError(f"codec config: {name} must be a list of whole numbers, got {shown(values)}")
            object.__setattr__(self, name, tuple(whole(v, f"codec config: one of {name}", 1, LARGEST) for v in values))
        if len(self.widths) != len(self.strides):
            raise ValueError(f"codec config: {len(self.widths)} widths but {len(self.strides)} strides")
        if self.window % (2 * self.hop):
            raise ValueError(f"codec config: window {self.window} must be a multiple of twice the hop, {self.hop}")
        if self.codebook not in ("ema", "gradient"):
            raise ValueError(f"codec config: codebook {shown(self.codebook)}: expected 'ema' or 'gradient'")
        if self.decay >= 1:
            raise ValueError(f"codec config: decay must be below 1, got {self.decay}")

    @property
    def frame(self) -> int:
        """Samples of an audio token."""
        return self.hop * math.prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Audio tokens a second."""
        return self.sample_rate / self.frame

    @property
    def look_ahead(self) -> int:
        """How many samples the decoder's output lies behind its tokens: the overlap of the inverse STFT."""
        return self.window - self.hop

    @property
    def bits_per_second(self) -> float:
        """Of all levels: levels x log2(codes) x frame_rate."""
        return self.levels * math.log2(self.codes) * self.frame_rate


@dataclass(frozen=True)
class TalkerConfig:
    """The talker; by default 649 million weights with AF-Next's tokens, against the paper's 644: 155 of the embeddings
    of 151,672 tokens, 441 of 29 layers, 51 of the mixture head. ValueError where a number is out of range.

    Args:
        text: the decoder's shape, and the vocabulary of the text that it reads.
        head_width, head_layers: of the network that gives a frame's mixture.
        components: Gaussians of the mixture.
        iterations: in which a frame's levels are filled.
        schedule: how many levels each of them keeps: "cosine" few at first, or "even".
        interleaved: a step's text and the frame before it have a position each, as in the paper; or they share one.
        floor: the least deviation of a Gaussian, in units of the codec's latents. Without one the likelihood of frames
            that repeat, as silence does, has no bound.
        prompt: frames of a speaker prompt that are read, at most.
        piece, longest: tokens and frames that are said in one context, at most: about what training has. Longer text is
            cut; 60 tokens of English are 18 s.
        temperature, noise: of sampling: of the components, and what the Gaussians' deviations are multiplied by.
    """

    text: TextConfig = field(
        default_factory=lambda: TextConfig(151_672, 1024, 29, 16, 4, 4096, rope_theta=1e6, max_positions=8192)
    )
    head_width: int = 4096
    head_layers: int = 3
    components: int = 1024
    iterations: int = 4
    schedule: str = "cosine"
    interleaved: bool = True
    floor: float = 0.02
    prompt: int = 64
    piece: int = 60
    longest: int = 240
    temperature: float = 1.0
    noise: float = 1.0

    def __post_init__(self):
        for name in ("head_width", "head_layers", "components", "iterations", "prompt", "piece", "longest"):
            whole(getattr(self, name), f"talker config: {name}", 1, LARGEST)
        if self.piece >= self.longest:
            raise ValueError(f"talker config: a piece of {self.piece} tokens needs more than {self.longest} frames")
        number(self.floor, "talker config: floor", above=0)
        for name in ("temperature", "noise"):
            if number(getattr(self, name), f"talker config: {name}") < 0:
                raise ValueError(f"talker config: {name} must be 0 or more, got {getattr(self, name)}")
        if self.schedule not in ("cosine", "even"):
            raise ValueError(f"talker config: schedule {shown(self.schedule)}: expected 'cosine' or 'even'")
        if not isinstance(self.interleaved, bool):
            raise ValueError(f"talker config: interleaved must be true or false, got {shown(self.interleaved)}")
        text = self.text
        if text.width % text.heads or text.head_dim % 2 or text.heads % text.kv_heads:
            raise ValueError(
                f"talker config: width {text.width}, {text.heads} heads, {text.kv_heads} KV heads: expected an even "
                "head dimension, and heads in groups"
            )


@dataclass(frozen=True)
class VoiceConfig:
    """A codec, and a talker where there is one yet."""

    codec: CodecConfig = field(default_factory=CodecConfig)
    talker: TalkerConfig | None = None


CODECS = {
    "af-next-talker": CodecConfig(),
    "tiny": CodecConfig(16_000, 640, 160, (96, 160), (2, 2), 2, 7, 64, 8, 256),
}
TALKERS = {
    "af-next-talker": TalkerConfig(),
    "tiny": TalkerConfig(
        TextConfig(1024, 160, 4, 5, 5, 480, rope_theta=1e4, max_positions=2048),
        head_width=256,
        iterations=2,
        schedule="even",
        temperature=0.7,
        noise=0.5,
        components=64,
        interleaved=False,
        floor=0.05,
        prompt=25,
        piece=12,
        longest=150,
    ),
}


def voice_preset(name: str) -> VoiceConfig:
    """ "af-next-talker", the full size, or "tiny", which learns on a CPU; ValueError for another name."""
    if name not in CODECS:
        raise ValueError(f"no voice {shown(name)}; there are {', '.join(CODECS)}")
    return VoiceConfig(CODECS[name], TALKERS.get(name))


def voice_json(config: VoiceConfig) -> dict[str, Any]:
    """What config.json holds of a VoiceConfig."""
    return {"architectures": ["AFVoice"], "model_type": MODEL_TYPE} | asdict(config)


def voice_config(raw: dict[str, Any]) -> VoiceConfig:
    """A VoiceConfig from what config.json holds; ValueError in one line."""
    if raw.get("model_type") != MODEL_TYPE:
        raise ValueError(f"model_type is {shown(raw.get('model_type'))}, expected {MODEL_TYPE!r}")
    talker = raw.get("talker")
    if isinstance(talker, dict):
        talker = talker | {"text": _read(TextConfig, talker.get("text"), "talker: text")}
    if talker is not None:
        talker = _read(TalkerConfig, talker, "talker")
    return VoiceConfig(_read(CodecConfig, raw.get("codec"), "codec"), talker)


def _read(cls: type, raw: Any, what: str) -> Any:
    if not isinstance(raw, dict):
        raise ValueError(f"{what} must be an object, got {shown(raw)}")
    known = {item.name for item in fields(cls)}
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"{what}: no field {shown(unknown[0])}; there are {', '.join(sorted(known))}")
    return cls(**raw)
