"""What is known of each training method before anything is loaded: its model, its parts, how its steps are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from afn_model.speech.voice import is_voice
from afn_model.weights.speech import is_speech

WHOLE, SPEECH, VOICE = "model", "speech", "voice"  # kinds of model folders


@dataclass(frozen=True)
class Method:
    """A training method.

    Args:
        model: kind of the model folder that it trains.
        parts: what a stage may train, by the name that ``trains`` gives it: the model's submodules.
        packed: whether it is trained on packed sequences, whose tokens a step counts; otherwise a step counts prompts.
        measured: values of a held-out evaluation, of which the first decides which is best unless a stage says another.
    """

    model: str
    parts: dict[str, tuple[str, ...]]
    packed: bool
    measured: tuple[str, ...]


PARTS = {
    "encoder": ("encoder",),
    "adaptor": ("adaptor",),
    "language_model": ("language_model", "lm_head"),
    "all": ("encoder", "adaptor", "language_model", "lm_head"),
}
METHODS = {
    "sft": Method(WHOLE, PARTS, True, ("loss",)),
    "asr": Method(SPEECH, {"encoder": ("encoder",), "decoder": ("decoder",)}, True, ("loss",)),
    "grpo": Method(WHOLE, PARTS, False, ("reward",)),
    "dpo": Method(WHOLE, PARTS, False, ("loss", "accuracy", "reward_margin")),
    "codec": Method(VOICE, {"codec": ("codec",)}, False, ("mel_distance",)),
    "talker": Method(VOICE, {"talker": ("talker",)}, False, ("loss", "frames", "end")),
}
PACKED = tuple(name for name, method in METHODS.items() if method.packed)
KINDS: dict[str, tuple[Callable[[str | Path], bool], str]] = {
    SPEECH: (is_speech, "an encoder with a decoder of its own, which method asr trains"),
    VOICE: (is_voice, "a codec and a talker, which methods codec and talker train"),
}


def model_kind(folder: str | Path) -> str:
    """The kind of a model folder, by its config.json."""
    return next((kind for kind, (holds, _) in KINDS.items() if holds(folder)), WHOLE)


def check_kind(folder: str | Path, stage: str, method: str) -> str:
    """The kind of a model folder.

    Args:
        folder: of the model.
        stage: its name, for the error.
        method: of the stage.

    Raises:
        ValueError: one line: another kind of model than the method trains.
    """
    found, wanted = model_kind(folder), METHODS[method].model
    if found != wanted:
        has = KINDS[found][1] if found in KINDS else f"no such {'decoder' if wanted == SPEECH else 'codec'}"
        raise ValueError(f"stage {stage}: method {method}, and {folder} has {has}")
    return found
