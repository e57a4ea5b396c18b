"""LoRA adapters, trained in float32 beside frozen weights, in the peft file format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from afn_model.checks import number, said, shown, whole
from afn_model.files import atomic_path, read_json, write_json
from afn_model.hashing import key
from afn_model.train.lora_linear import LoRALinear, adapters, disabled, merge, replace
from afn_model.train.lora_settings import LINEAR, by_pattern, checked_patterns, targets_by_part
from afn_model.train.peft_config import PREFIX, PeftConfig, config_of, peft_name, read_config
from afn_model.train.quantise import QuantisedLinear
from afn_model.weights.checkpoint import DTYPES, LAYOUTS, our_name, set_parameter

if TYPE_CHECKING:
    from afn_model.afnext import AFNext

__all__ = ["CONFIG", "TARGETS", "WEIGHTS", "LoRALinear", "adapters", "add", "disabled", "load", "merge", "save"]
TARGETS = LINEAR["language_model"]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add(
    model: AFNext,
    rank: int,
    alpha: float,
    targets: Sequence[str] | str | Mapping[str, Sequence[str] | str] = TARGETS,
    *,
    seed: int = 0,
    rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    device: torch.device | None = None,
) -> None:
    """Gives linear layers adapters that change nothing yet, in place.

    A is uniform in ±1/√in, a function of the seed and the layer's number; B is zero. Of a part that has adapters
    nothing else trains from here on, nor of the head where the language model has them.

    Args:
        model: before it is sharded.
        rank: of the adapters.
        alpha: scale · rank, or scale · √rank with ``rslora``.
        targets: last part of the layers' names, or "all-linear" for those of ``TARGETS``, in the language model's
            blocks; or either by part: language_model, encoder, adaptor, lm_head.
        seed: of A.
        rslora: rank-stabilised scaling.
        rank_pattern, alpha_pattern: other ranks and alphas of layers whose name, or what follows a dot in it, is one
            of these names or matches one of these patterns: {"encoder.*": 4}.
        device: of the adapters, where the model's weights are still to be read; theirs if None.

    Raises:
        ValueError: a rank below 1 or above the layers' widths, an alpha that is no number, a target or a pattern that
            no layer has, or a model that has adapters already.
    """
    whole(rank, "LoRA rank", 1)
    number(alpha, "LoRA alpha")
    ranks, alphas = checked_patterns(rank_pattern, "rank_pattern"), checked_patterns(alpha_pattern, "alpha_pattern")
    if isinstance(targets, str) and targets != "all-linear":
        targets = (targets,)
    if adapters(model):
        raise ValueError("the model has LoRA adapters already")
    by_part = targets_by_part(targets, "LoRA")
    chosen: dict[str, tuple[int, float]] = {}
    for part, names in by_part.items():
        layers = linear_layers(model.get_submodule(part), part)
        unknown = set(names) - {name.rpartition(".")[2] for name in layers}
        if unknown or not names:
            there = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise ValueError(f"no LoRA target {', '.join(sorted(unknown)) or 'given'}; there are {there}")
        for name, layer in layers.items():
            if name.rpartition(".")[2] in names:
                here = whole(by_pattern(ranks, name, rank), f"rank of {name}", 1)
                if here > max(layer.in_features, layer.out_features):
                    widest = max(layer.in_features, layer.out_features)
                    raise ValueError(f"LoRA rank {here} is above the layers' width, {widest}")
                chosen[name] = here, number(by_pattern(alphas, name, alpha), f"alpha of {name}")
    for what, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if idle := [p for p in patterns if not any(by_pattern({p: True}, name, False) for name in chosen)]:
            raise ValueError(f"{what}: {shown(idle[0])} is the name of no layer that gets an adapter")
    for part in (*by_part, *(["lm_head"] if "language_model" in by_part else [])):
        model.get_submodule(part).requires_grad_(False)
    for index, (name, (here, scaled)) in enumerate(chosen.items()):
        layer = replace(model, name, here, scaled, rslora, device)
        generator = torch.Generator().manual_seed(key(seed, index) >> 1)
        bound = layer.in_features**-0.5
        with torch.no_grad():
            layer.lora_A.copy_(torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator))


def linear_layers(module: nn.Module, name: str) -> dict[str, Any]:
    """The linear layers of a part, quantised or not, by their whole name."""
    return {n: m for n, m in module.named_modules(prefix=name) if isinstance(m, (nn.Linear, QuantisedLinear))}


def save(model: nn.Module, folder: str | Path, *, saved: Iterable[str] = (), base: str | None = None) -> None:
    """Writes the adapters as peft does for ``MusicFlamingoForConditionalGeneration``. All ranks take part.

    Args:
        model: with adapters, sharded or not.
        folder: to write.
        saved: submodules that go into the same file whole, such as an adaptor that was trained beside the adapters:
            peft's ``modules_to_save``.
        base: name or folder of the model that the adapters belong on.

    Raises:
        ValueError: no adapters, some of each scaling, or one inside of a whole module.
    """
    layers, saved = adapters(model), tuple(saved)
    if not layers:
        raise ValueError("the model has no LoRA adapters to save")
    config = config_of(layers, saved, base)
    kept = {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("lora_A", "lora_B")}
    for module in saved:
        if inside := next((name for name in layers if f"{name}.".startswith(f"{module}.")), None):
            raise ValueError(f"{inside} has an adapter, so that {module} is not saved whole")
        own = model.get_submodule(module).named_parameters(prefix=module)
        kept |= dict(own)
    tensors = {}
    for name, weight in kept.items():
        weight = weight.detach()
        weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
        tensors[tensor_name(name)] = weight.cpu().contiguous()
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS}: {error}") from None
    write_json(folder / CONFIG, config)


def load(model: AFNext, folder: str | Path, device: torch.device | None = None) -> tuple[str, ...]:
    """Gives the model the adapters of a peft folder, and the modules that it has whole, in place.

    Args:
        model: without adapters.
        folder: with adapter_config.json and adapter_model.safetensors, for the transformers model.
        device: of what is loaded, where the model's weights are still to be read; theirs if None.

    Returns:
        Our names of the modules that were replaced whole (``modules_to_save``).

    Raises:
        ValueError: one line: no such files, damaged ones, another kind of adapter or a setting that is not computed
            here, by its name, or tensors for layers that the model lacks; nothing is changed.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no peft adapter: {name} is missing")
    if adapters(model):
        raise ValueError("the model has LoRA adapters already")
    raw = read_json(folder / CONFIG)
    try:
        config = read_config(raw)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, RuntimeError, AttributeError, KeyError) as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged or not a safetensors file: {said(error)}") from None
    if not tensors:
        raise ValueError(f"{folder / WEIGHTS}: holds no tensors")
    modules = outermost(name for name, _ in model.named_modules() if name and config.saves(name))
    whole_weights, by_layer = sorted_out(folder, tensors, modules)
    for name, parts in by_layer.items():
        check(model, folder, name, parts, config)
    check_whole(model, folder, whole_weights, modules)
    for name, parts in by_layer.items():
        layer = replace(model, name, *config.of(name), config.rslora, device)
        with torch.no_grad():
            layer.lora_A.copy_(parts["lora_A"])
            layer.lora_B.copy_(parts["lora_B"])
    with torch.no_grad():
        for name, tensor in whole_weights.items():
            own = model.get_parameter(name)
            if own.is_meta and device is not None:
                set_parameter(model, name, tensor.to(device, own.dtype), own.requires_grad)
            else:
                own.copy_(tensor)
    return modules


def outermost(names: Iterable[str]) -> tuple[str, ...]:
    """Of the modules those that are not inside of another."""
    found: list[str] = []
    for name in names:
        if not any(name.startswith(f"{other}.") for other in found):
            found.append(name)
    return tuple(found)


def sorted_out(
    folder: Path, tensors: dict[str, Tensor], modules: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Weights of whole modules by our name, and the parts of adapters by layer and part."""
    whole_weights: dict[str, Tensor] = {}
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        ours = our_name(name.removeprefix(PREFIX), "", LAYOUTS["transformers"])
        if any(ours.startswith(f"{module}.") for module in modules) and ".lora_" not in ours:
            whole_weights[ours] = tensor
            continue
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        ours = our_name(layer.removeprefix(PREFIX) + ".", "", LAYOUTS["transformers"]).removesuffix(".")
        if part in by_layer.setdefault(ours, {}):
            raise ValueError(f"{folder / WEIGHTS}: two tensors are {part} of {ours}")
        by_layer[ours][part] = tensor
    return whole_weights, by_layer


def check(model: nn.Module, folder: Path, name: str, parts: dict[str, Tensor], config: PeftConfig) -> None:
    """Raises ValueError where an adapter does not fit the model."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{folder}: an adapter for {shown(name)}, which the model lacks") from None
    if set(parts) != {"lora_A", "lora_B"} or not isinstance(layer, (nn.Linear, QuantisedLinear)):
        raise ValueError(f"{folder}: {name} cannot have the adapter {', '.join(sorted(parts))}")
    a, b = parts["lora_A"], parts["lora_B"]
    rank, stated = a.shape[0] if a.dim() else 0, config.of(name)[0]
    if rank != stated:
        raise ValueError(f"{folder}: {name} has an adapter of rank {rank}, but {CONFIG} says {stated}")
    wanted = ((rank, layer.in_features), (layer.out_features, rank))
    if (tuple(a.shape), tuple(b.shape)) != wanted:
        raise ValueError(f"{folder}: {name} has adapters {tuple(a.shape)} and {tuple(b.shape)}, expected {wanted}")
    for part, tensor in parts.items():
        check_values(folder, f"{part} of {name}", tensor)


def check_whole(model: nn.Module, folder: Path, weights: dict[str, Tensor], modules: tuple[str, ...]) -> None:
    """Raises ValueError where the weights of whole modules are not those of the model's modules."""
    wanted = {name: p for m in modules for name, p in model.get_submodule(m).named_parameters(prefix=m)}
    for what, names in (("lacks", wanted.keys() - weights), ("also has", weights.keys() - wanted)):
        if names:
            raise ValueError(f"{folder}: of modules_to_save it {what} {', '.join(map(shown, sorted(names)[:3]))}")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{folder}: {name} is {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}")
        check_values(folder, name, tensor)


def check_values(folder: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES.values():
        raise ValueError(f"{folder}: {name} is {tensor.dtype}, expected floating-point weights")
    if not tensor.isfinite().all():
        raise ValueError(f"{folder}: {name} holds NaN or infinity")


def tensor_name(name: str) -> str:
    """The name in peft's file of an adapter's or a layer's tensor."""
    owner, _, leaf = name.rpartition(".")
    return f"{peft_name(owner)}.{leaf}" + (".weight" if leaf.startswith("lora_") else "")
