"""What a model is made of, as data: dataclasses, presets, and config.json as the released checkpoints write it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class AudioConfig:
    """The audio encoder (AF-Whisper): Whisper-large-v3's shape by default."""

    n_mels: int = 128
    width: int = 1280
    layers: int = 32
    heads: int = 20
    ffn: int = 5120
    max_positions: int = 1500

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class TextConfig:
    """The language model: Qwen2.5-7B's shape with AF-Next's context by default."""

    vocab_size: int = 151_672
    width: int = 3584
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    ffn: int = 18_944
    rope_theta: float = 15_300_000.0
    max_positions: int = 131_072
    rms_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


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
        if self.reading not in ("checkpoint", "paper", "none"):
            raise ValueError(f"rote reading {self.reading!r}: expected 'checkpoint', 'paper' or 'none'")
        if self.clock not in ("continue", "restart"):
            raise ValueError(f"rote clock {self.clock!r}: expected 'continue' or 'restart'")


@dataclass(frozen=True)
class Config:
    """A whole model. Token ids are those of its tokenizer, resolved by string when a checkpoint is read."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    rote: RoteConfig = field(default_factory=RoteConfig)
    audio_token_id: int = 151_669
    audio_bos_token_id: int | None = 151_670
    audio_eos_token_id: int | None = 151_671
    stop_token_ids: tuple[int, ...] = (151_645, 151_643)
    repetition_penalty: float = 1.2

    def __post_init__(self):
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


def preset(name: str, **changes: Any) -> Config:
    """A named configuration. ``changes`` replace top-level fields, for example ``rote=RoteConfig("paper")``.

    Raises:
        ValueError: no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)


PRESETS = {
    "tiny": Config(
        audio=AudioConfig(width=128, layers=3, heads=2, ffn=512),
        text=TextConfig(vocab_size=1024, width=128, layers=3, heads=2, kv_heads=1, ffn=384, max_positions=4096),
    ),
    "small": Config(
        audio=AudioConfig(width=512, layers=8, heads=8, ffn=2048),
        text=TextConfig(vocab_size=4096, width=512, layers=8, heads=8, kv_heads=2, ffn=1408, max_positions=32_768),
    ),
    "af-next": Config(),
    "af3": Config(
        text=TextConfig(vocab_size=151_672, rope_theta=1_000_000.0, max_positions=32_768),
        rote=RoteConfig("none"),
        audio_bos_token_id=None,
        audio_eos_token_id=None,
    ),
}
