"""What a model is made of, as data: dataclasses, presets, and config.json as the released checkpoints write it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from afn_model.checks import number, shown, whole

LARGEST = 1 << 24  # of a width, a vocabulary or a number of layers


@dataclass(frozen=True)
class AudioConfig:
    """The audio encoder (AF-Whisper): Whisper-large-v3's shape by default; ValueError where a size is none."""

    n_mels: int = 128
    width: int = 1280
    layers: int = 32
    heads: int = 20
    ffn: int = 5120
    max_positions: int = 1500

    def __post_init__(self):
        check_numbers(self, "audio config")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class TextConfig:
    """The language model: Qwen2.5-7B's shape with AF-Next's context by default; ValueError where a number is none."""

    vocab_size: int = 151_672
    width: int = 3584
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    ffn: int = 18_944
    rope_theta: float = 15_300_000.0
    max_positions: int = 131_072
    rms_eps: float = 1e-6

    def __post_init__(self):
        check_numbers(self, "text config")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class SpeechConfig:
    """The audio encoder with a text decoder of its own, as it is pre-trained; ValueError where a number is none.

    By default AF-Whisper's decoder (Goel et al., 2025, arXiv:2507.08128, appendix): 24 layers, 8 heads, 1,024 wide.

    Args:
        audio: the encoder.
        vocab_size: tokens of the decoder; its head is tied to their embeddings.
        width, layers, heads, ffn: of the decoder.
        max_positions: tokens of a text, prompt included.
        positions: "learned", as Whisper has them, or "rotary" (of ``rope_theta``).
        pooled: whether it reads frames of 40 ms, as AF-Next's language model does, or Whisper's of 20 ms.
        audio_token_id: placeholder of a frame of 40 ms in prompts, which the decoder does not read.
        stop_token_ids: that end a text.
        ctc: whether the encoder has a CTC head for training, from what the decoder hears to vocab_size tokens and,
            last, the blank.
    """

    audio: AudioConfig = field(default_factory=AudioConfig)
    vocab_size: int = 51_866
    width: int = 1024
    layers: int = 24
    heads: int = 8
    ffn: int = 4096
    max_positions: int = 448
    positions: str = "learned"
    rope_theta: float = 10_000.0
    pooled: bool = False
    audio_token_id: int = 51_865
    stop_token_ids: tuple[int, ...] = (50_257,)
    ctc: bool = False

    def __post_init__(self):
        check_numbers(self, "speech config")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"speech config: width {self.width} over {self.heads} heads gives no even head dimension")
        if self.positions not in ("learned", "rotary"):
            raise ValueError(f"speech config: positions {shown(self.positions)}: expected 'learned' or 'rotary'")
        for name in ("pooled", "ctc"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"speech config: {name} must be true or false, got {shown(getattr(self, name))}")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def vocabulary(self) -> int:
        return self.vocab_size

    @property
    def rote(self) -> RoteConfig:
        return RoteConfig("none")


@dataclass(frozen=True)
class RoteConfig:
    """Rotary time embedding.

    Args:
        reading: "checkpoint" rotates the encoder's output (released weights), "paper" gives the language model's
            rotary embedding timestamps for positions, "none" is Audio Flamingo 3.
        theta, period, fraction, window_factor, frame_factor: of the checkpoint reading; see ``afn_kernels.rote``.
            A config.json has one number, ``rope_theta``, for both theta and period.
        accurate: checkpoint reading with float64 phases instead of the released integration's float32 order.
        text_step: paper reading, how many 40 ms units a text token takes.
        clock: paper reading, whether several clips "continue" one clock or each "restart"s it.
    """

    reading: str = "checkpoint"
    theta: float = 1200.0
    period: float = 1200.0
    fraction: float = 0.2
    window_factor: float = 1.0
    frame_factor: float = 2 * math.pi
    accurate: bool = False
    text_step: float = 1.0
    clock: str = "continue"

    def __post_init__(self):
        check_numbers(self, "rote")
        if self.fraction > 1:
            raise ValueError(f"rote fraction must be at most 1, got {self.fraction}")
        if not isinstance(self.accurate, bool):
            raise ValueError(f"rote accurate must be true or false, got {shown(self.accurate)}")
        if self.reading not in ("checkpoint", "paper", "none"):
            raise ValueError(f"rote reading {shown(self.reading)}: expected 'checkpoint', 'paper' or 'none'")
        if self.clock not in ("continue", "restart"):
            raise ValueError(f"rote clock {shown(self.clock)}: expected 'continue' or 'restart'")


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. Token ids are those of its tokenizer, resolved by string when a checkpoint is read."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    rote: RoteConfig = field(default_factory=RoteConfig)
    audio_token_id: int = 151_669
    audio_bos_token_id: int | None = 151_670
    audio_eos_token_id: int | None = 151_671
    stop_token_ids: tuple[int, ...] = (151_645, 151_643)
    repetition_penalty: float = 1.2

    @property
    def vocabulary(self) -> int:
        return self.text.vocab_size

    def __post_init__(self):
        whole(self.audio_token_id, "audio_token_id")
        for name in ("audio_bos_token_id", "audio_eos_token_id"):
            if getattr(self, name) is not None:
                whole(getattr(self, name), name)
        for token in self.stop_token_ids:
            whole(token, "a stop token's id")
        number(self.repetition_penalty, "repetition_penalty", above=0)
        for name, part, width, heads in (
            ("audio", self.audio, self.audio.width, self.audio.heads),
            ("text", self.text, self.text.width, self.text.heads),
        ):
            if width % heads or (width // heads) % 2:
                raise ValueError(
                    f"{name} config: width {width} over {heads} heads gives no even head dimension: {part}"
                )
        if self.text.heads % self.text.kv_heads:
            raise ValueError(
                f"text config: {self.text.heads} heads are not a multiple of {self.text.kv_heads} KV heads"
            )


def check_numbers(config: Any, what: str) -> None:
    """ValueError where a size is no whole number from 1, or another number not finite and above 0."""
    for item in fields(config):
        value, name = getattr(config, item.name), f"{what}: {item.name}"
        if item.type == "int":
            whole(value, name, 1, 2**31 - 1 if item.name == "max_positions" else LARGEST)
        elif item.type == "float" and not (item.name == "text_step" and value == 0):  # text may take no time
            number(value, name, above=0)


Config = ModelConfig  # the former name, until the next version


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named configuration. ``changes`` replace top-level fields, for example ``rote=RoteConfig("paper")``.

    Raises:
        ValueError: no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)


PRESETS = {
    "tiny": ModelConfig(
        audio=AudioConfig(width=128, layers=3, heads=2, ffn=512),
        text=TextConfig(vocab_size=1024, width=128, layers=3, heads=2, kv_heads=1, ffn=384, max_positions=4096),
    ),
    "small": ModelConfig(
        audio=AudioConfig(width=512, layers=8, heads=8, ffn=2048),
        text=TextConfig(vocab_size=4096, width=512, layers=8, heads=8, kv_heads=2, ffn=1408, max_positions=32_768),
    ),
    "af-next": ModelConfig(),
    "af3": ModelConfig(
        text=TextConfig(vocab_size=151_672, rope_theta=1_000_000.0, max_positions=32_768),
        rote=RoteConfig("none"),
        audio_bos_token_id=None,
        audio_eos_token_id=None,
    ),
}
