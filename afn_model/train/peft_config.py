"""peft's adapter_config.json: what is written of a model's adapters, and what of one is read or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from afn_model.checks import number, shown, whole
from afn_model.train.lora_linear import LoRALinear
from afn_model.train.lora_settings import by_pattern, checked_patterns
from afn_model.weights.checkpoint import LAYOUTS

PREFIX = "base_model.model."
# Of peft's options, those that are read, or that say how an adapter was trained or found its layers, of which the
# tensors' names are proof. Any other that is set changes what an adapter computes.
READ = (
    "peft_type", "lora_alpha", "use_rslora", "bias", "init_lora_weights", "r", "rank_pattern", "alpha_pattern",
    "modules_to_save",
)  # fmt: skip
HARMLESS = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "megatron_core",
    "qalora_group_size", "runtime_config",
)  # fmt: skip
# Ways to begin that leave the base as it is; pissa, olora, corda, loftq and others take their share out of it.
BEGINNINGS = (None, True, False, "gaussian", "orthogonal")


def peft_name(name: str) -> str:
    """A layer's or a part's name in peft's file for the transformers model."""
    ours, (_, theirs) = next(entry for entry in LAYOUTS["transformers"].items() if f"{name}.".startswith(entry[0]))
    return PREFIX + (theirs + f"{name}.".removeprefix(ours)).removesuffix(".")


@dataclass(frozen=True)
class PeftConfig:
    """What is read of a configuration: ``r`` and ``lora_alpha``, for layers by pattern, and whole modules by name."""

    rank: int
    alpha: float
    rslora: bool = False
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    saved: tuple[str, ...] = ()

    def of(self, name: str) -> tuple[int, float]:
        """(rank, alpha) of our layer of that name."""
        theirs = peft_name(name).removeprefix(PREFIX)
        return by_pattern(self.ranks, theirs, self.rank), by_pattern(self.alphas, theirs, self.alpha)

    def saves(self, name: str) -> bool:
        """Whether our module of that name is one of those that are saved whole."""
        return peft_name(name).removeprefix(PREFIX).endswith(self.saved)


def read_config(config: dict[str, Any]) -> PeftConfig:
    """What an adapter_config.json says.

    Raises:
        ValueError: another kind of adapter, or a setting that changes what it computes and is not read.
    """
    if config.get("peft_type") != "LORA":
        raise ValueError(f"not a plain LoRA adapter: peft_type is {shown(config.get('peft_type'))}")
    bias, beginning = config.get("bias", "none"), config.get("init_lora_weights")
    if bias != "none":
        raise ValueError(f"not a plain LoRA adapter: bias is {shown(bias)}")
    if beginning not in BEGINNINGS:
        raise ValueError(f"init_lora_weights is {shown(beginning)}: such an adapter belongs to changed base weights")
    unread = [name for name, value in config.items() if value and name not in READ and name not in HARMLESS]
    if unread:
        raise ValueError(f"not a plain LoRA adapter: {', '.join(map(str, unread))}")
    rslora, saved = config.get("use_rslora") or False, config.get("modules_to_save") or []
    if not isinstance(rslora, bool):
        raise ValueError(f"use_rslora must be true or false, got {shown(rslora)}")
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        raise ValueError(f"modules_to_save must be a list of names, got {shown(saved)}")
    if config.get("lora_alpha") is None:
        raise ValueError("lora_alpha is missing")
    ranks = checked_patterns(config.get("rank_pattern"), "rank_pattern")
    alphas = checked_patterns(config.get("alpha_pattern"), "alpha_pattern")
    return PeftConfig(
        rank=whole(config.get("r", 8), "r", 1),
        alpha=number(config["lora_alpha"], "lora_alpha"),
        rslora=rslora,
        ranks={name: whole(rank, f"rank_pattern.{name}", 1) for name, rank in ranks.items()},
        alphas={name: number(alpha, f"alpha_pattern.{name}") for name, alpha in alphas.items()},
        saved=tuple(saved),
    )


def config_of(layers: Mapping[str, LoRALinear], saved: Iterable[str], base: str | None) -> dict[str, Any]:
    """The configuration of a model's adapters.

    Args:
        layers: by name.
        saved: modules that are saved whole.
        base: name of the model that they belong on.

    Raises:
        ValueError: adapters of both scalings.
    """
    if len({layer.rslora for layer in layers.values()}) > 1:
        raise ValueError("some adapters have rank-stabilised scaling and others not: peft's format has one for all")
    first = next(iter(layers.values()))
    names = {name: peft_name(name).removeprefix(PREFIX) for name in layers}
    usual, other = {}, {}
    for key in ("rank", "alpha"):
        found = {names[name]: getattr(layer, key) for name, layer in layers.items()}
        usual[key] = Counter(found.values()).most_common(1)[0][0]
        other[key] = {name: exact(value) for name, value in found.items() if value != usual[key]}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": usual["rank"],
        "lora_alpha": exact(usual["alpha"]),
        "rank_pattern": other["rank"],
        "alpha_pattern": other["alpha"],
        "use_rslora": first.rslora,
        "lora_dropout": next((layer.dropout.share for layer in layers.values() if layer.dropout), 0.0),
        "bias": "none",
        # Whole names: the encoder has layers of the same last names.
        "target_modules": list(names.values()),
        "modules_to_save": [peft_name(name).removeprefix(PREFIX) for name in saved] or None,
        "inference_mode": True,
    }


def exact(value: float) -> float:
    """A whole number as one."""
    return int(value) if value == int(value) else value
