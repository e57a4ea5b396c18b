"""What a stage says of LoRA, and patterns of layers' names as peft has them; values alone, no tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from afn_model.checks import is_number, is_whole
from afn_model.train.values import known, shown

ALL_LINEAR = "all-linear"
MOST_RANK = 65_536
BASES = ("nf4", "int8")
# Parts that can have adapters, and the linear layers of each.
LINEAR = {
    "language_model": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "adaptor": ("linear_1", "linear_2"),
    "lm_head": ("lm_head",),
}
OWN = ("rank", "alpha", "targets", "rslora", "rank_pattern", "alpha_pattern")  # which an adapter folder brings itself
BESIDE = ("dropout", "base")
# A pattern of a hostile file must end: no repetition of a group, and few repetitions.
PATTERN = re.compile(r"[\w.^$|\\()\[\]*+?-]{1,200}")
MOST_REPEATS = 2


def check_lora(lora: Mapping[str, Any], modules: Iterable[str], adapter: bool, method: str, what: str) -> None:
    """Raises ValueError where a stage's ``lora`` is none.

    Args:
        lora: {rank, alpha} and, if wanted, targets, rslora, rank_pattern, alpha_pattern, dropout, base.
        modules: submodules that the stage trains.
        adapter: whether the stage goes on from an adapter, which then has the first six.
        method: of the stage.
        what: names it in errors.
    """
    known(lora, (*OWN, *BESIDE), what)
    modules = set(modules)
    parts = set() if adapter else targets_by_part(lora.get("targets"), what).keys()
    if missing := sorted(parts - modules):
        raise ValueError(f"{what} is for stages that train the {missing[0].replace('lm_head', 'language_model')}")
    if adapter:
        brought = [key for key in lora if key in OWN]
        if brought:
            raise ValueError(f"{what}: {', '.join(brought)} is the adapter's; beside one it takes {', '.join(BESIDE)}")
    elif not {"rank", "alpha"} <= lora.keys():
        raise ValueError(f"{what} needs a rank and an alpha")
    else:
        positive(lora["rank"], f"{what}: rank", whole=True)
        positive(lora["alpha"], f"{what}: alpha")
    for key, whole in (("rank_pattern", True), ("alpha_pattern", False)):
        for pattern, value in checked_patterns(lora.get(key), f"{what}: {key}").items():
            positive(value, f"{what}: {key}: {pattern}", whole=whole)
    if not isinstance(lora.get("rslora", False), bool):
        raise ValueError(f"{what}: rslora is {shown(lora['rslora'])}; true or false is expected")
    dropout, base = lora.get("dropout", 0), lora.get("base")
    if not (is_number(dropout) and 0 <= dropout < 1):
        raise ValueError(f"{what}: dropout is {shown(dropout)}; a share from 0 to below 1 is expected")
    if dropout and method != "sft":
        raise ValueError(f"{what}: dropout is for sft; {method} compares probabilities of the same weights")
    if base is not None and base not in BASES:
        raise ValueError(f"{what}: base is {shown(base)}; {' or '.join(BASES)} is expected")
    if base is not None and not adapter and "language_model" in modules - parts:
        raise ValueError(f"{what}: a base in {base} cannot train whole: the language_model needs targets")


def positive(value: Any, what: str, *, whole: bool = False) -> None:
    if whole and not (is_whole(value) and 1 <= value <= MOST_RANK):
        raise ValueError(f"{what} is {shown(value)}; a whole number from 1 to {MOST_RANK} is expected")
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{what} is {shown(value)}; a number above 0 is expected")


def targets_by_part(targets: Any, what: str) -> dict[str, tuple[str, ...]]:
    """Last names of the layers that get adapters, by part.

    Args:
        targets: a list of last names, or "all-linear", for the language model; or either by part; None for all of the
            language model's.
        what: names it in errors.

    Raises:
        ValueError: another part, or no such list.
    """
    if targets is None:
        targets = ALL_LINEAR
    by_part = targets if isinstance(targets, Mapping) else {"language_model": targets}
    known(by_part, LINEAR, f"{what}: targets")
    for names in by_part.values():
        listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        if names != ALL_LINEAR and not (listed and names):
            raise ValueError(f"{what}: targets is {shown(names)}; a list of layers' names or {ALL_LINEAR} is expected")
    if not by_part:
        raise ValueError(f"{what}: targets names no part; there are {', '.join(LINEAR)}")
    given = {part: by_part[part] for part in LINEAR if part in by_part}
    return {part: LINEAR[part] if names == ALL_LINEAR else tuple(names) for part, names in given.items()}


def checked_patterns(patterns: Any, what: str) -> dict[str, Any]:
    """A table by patterns; ValueError where it is none, or has a pattern that is not read here."""
    if patterns is None:
        return {}
    if not isinstance(patterns, Mapping):
        raise ValueError(f"{what} must be an object of layers' names or patterns, got {shown(patterns)}")
    for pattern in patterns:
        try:
            short = isinstance(pattern, str) and PATTERN.fullmatch(pattern) and not re.search(r"\)[*+?]", pattern)
            fits = short and len(re.findall(r"[*+?]", pattern)) <= MOST_REPEATS
            fits = fits and re.compile(pattern) is not None
        except re.error:
            fits = False
        if not fits:
            raise ValueError(f"{what}: {shown(pattern)} is neither a layer's name nor a simple pattern of names")
    return dict(patterns)


def by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that the name, or what follows one of its dots, matches; peft's rule."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
