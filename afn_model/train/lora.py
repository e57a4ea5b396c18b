"""LoRA adapters, trained in float32 beside frozen weights, in the peft file format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from afn_model.checks import number, said, shown, whole
from afn_model.files import atomic_path, read_json, write_json
from afn_model.hashing import key
from afn_model.weights.checkpoint import DTYPES, LAYOUTS, our_name

if TYPE_CHECKING:
    from afn_model.afnext import AFNext

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Layers whose weight goes into a fused kernel, past the layer's own forward.
FUSED = ("lm_head", "fc1", "linear_1")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Of peft's options, those that are read, or that say how an adapter was trained or found its layers, of which the
# tensors' names are proof. Any other that is set changes what an adapter computes.
READ = ("peft_type", "lora_alpha", "use_rslora", "bias", "init_lora_weights", "r", "rank_pattern")
HARMLESS = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "megatron_core",
    "qalora_group_size", "runtime_config",
)  # fmt: skip
# Ways to begin that leave the base as it is; pissa, olora, corda, loftq and others take their share out of it.
BEGINNINGS = (None, True, False, "gaussian", "orthogonal")


class LoRALinear(nn.Linear):
    """y = W x + b + scale · B A x, with W and b frozen, A [rank, in] and B [out, rank] float32 parameters."""

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.scale, self.active = rank, scale, True
        self.weight, self.bias = base.weight, base.bias
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        where = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, **where))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **where))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if not self.active:
            return y
        low = F.linear(x, self.lora_A.to(x.dtype))
        return y + F.linear(low, self.lora_B.to(x.dtype)) * self.scale

    def merged(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """W + scale · B A, in the weight's dtype."""
        return (weight.float() + self.scale * (b.float() @ a.float())).to(weight.dtype)

    def fold(self, state: dict[str, Tensor], name: str) -> None:
        """Adds the adapter to the weight in a state dictionary that holds both, whole."""
        a, b = (state.pop(f"{name}.{part}") for part in ("lora_A", "lora_B"))
        state[f"{name}.weight"] = self.merged(state[f"{name}.weight"], a, b)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's adapters by the name of their layer."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def add(model: AFNext, rank: int, alpha: float, targets: Sequence[str] | str = TARGETS, *, seed: int = 0) -> None:
    """Gives linear layers of the language model's blocks adapters that change nothing yet, in place.

    A is uniform in ±1/√in, a function of the seed and the layer's number; B is zero. Of the language model and its head
    nothing else trains from here on.

    Args:
        model: before it is sharded.
        rank: of the adapters.
        alpha: scale · rank.
        targets: last part of the layers' names, or "all-linear" for those of ``TARGETS``.
        seed: of A.

    Raises:
        ValueError: a rank below 1 or above the layers' widths, an alpha that is no number, a target that no layer has,
            or a model that has adapters already.
    """
    whole(rank, "LoRA rank", 1)
    number(alpha, "LoRA alpha")
    if isinstance(targets, str):
        targets = TARGETS if targets == "all-linear" else (targets,)
    if adapters(model):
        raise ValueError("the model has LoRA adapters already")
    layers = {
        name: module
        for name, module in model.language_model.named_modules(prefix="language_model")
        if isinstance(module, nn.Linear)
    }
    unknown = set(targets) - {name.rpartition(".")[2] for name in layers}
    if unknown or not targets:
        there = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
        raise ValueError(f"no LoRA target {', '.join(sorted(unknown)) or 'given'}; there are {there}")
    chosen = [name for name in layers if name.rpartition(".")[2] in targets]
    widest = max(max(layers[name].weight.shape) for name in chosen)
    if rank > widest:
        raise ValueError(f"LoRA rank {rank} is above the layers' width, {widest}")
    for part in (model.language_model, model.lm_head):
        part.requires_grad_(False)
    for index, name in enumerate(chosen):
        layer = replace(model, name, rank, alpha / rank)
        generator = torch.Generator().manual_seed(key(seed, index) >> 1)
        bound = layer.in_features**-0.5
        with torch.no_grad():
            layer.lora_A.copy_(torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator))


def replace(model: nn.Module, name: str, rank: int, scale: float) -> LoRALinear:
    layer = LoRALinear(model.get_submodule(name), rank, scale)
    model.set_submodule(name, layer)
    return layer


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Adds the adapters to their layers' weights and leaves plain layers, in place; not for sharded models."""
    for name, layer in adapters(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.merged(layer.weight, layer.lora_A, layer.lora_B), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is what it was before its adapters were added."""
    layers = [layer for layer in adapters(model).values() if layer.active]
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer in layers:
            layer.active = True


def peft_name(name: str) -> str:
    """The layer's name in peft's file for the transformers model."""
    ours, (_, theirs) = next(entry for entry in LAYOUTS["transformers"].items() if f"{name}.".startswith(entry[0]))
    return PREFIX + theirs + name.removeprefix(ours)


def save(model: nn.Module, folder: str | Path) -> None:
    """Writes the adapters as peft does for ``MusicFlamingoForConditionalGeneration``. All ranks take part.

    Raises:
        ValueError: no adapters, or adapters of several scales.
    """
    layers = adapters(model)
    if not layers:
        raise ValueError("the model has no LoRA adapters to save")
    kinds = {(layer.rank, layer.scale) for layer in layers.values()}
    if len(kinds) > 1:
        raise ValueError(f"adapters of several ranks and scales: {sorted(kinds)}")
    tensors = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part).detach()
            weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
            tensors[f"{peft_name(name)}.{part}.weight"] = weight.cpu().contiguous()
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    rank, scale = kinds.pop()
    alpha = rank * scale
    # Whole names: the encoder has layers of the same last names.
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [peft_name(name).removeprefix(PREFIX) for name in layers],
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS}: {error}") from None
    write_json(folder / CONFIG, config)


def load(model: AFNext, folder: str | Path) -> None:
    """Gives the model the adapters of a peft folder, in place.

    Args:
        model: without adapters.
        folder: with adapter_config.json and adapter_model.safetensors, for the transformers model.

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
    config = read_json(folder / CONFIG)
    try:
        alpha, ranks = check_config(config)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, RuntimeError, AttributeError, KeyError) as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged or not a safetensors file: {said(error)}") from None
    if not tensors:
        raise ValueError(f"{folder / WEIGHTS}: holds no tensors")
    adapters_by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        ours = our_name(layer.removeprefix(PREFIX) + ".", "", LAYOUTS["transformers"]).removesuffix(".")
        if part in adapters_by_layer.setdefault(ours, {}):
            raise ValueError(f"{folder / WEIGHTS}: two tensors are {part} of {ours}")
        adapters_by_layer[ours][part] = tensor
    for name, parts in adapters_by_layer.items():
        check(model, folder, name, parts, ranks)
    for name, parts in adapters_by_layer.items():
        rank = len(parts["lora_A"])
        root = math.sqrt(rank) if config.get("use_rslora") else rank
        layer = replace(model, name, rank, alpha / root)
        with torch.no_grad():
            layer.lora_A.copy_(parts["lora_A"])
            layer.lora_B.copy_(parts["lora_B"])


def check_config(config: dict[str, Any]) -> tuple[float, set[int]]:
    """(lora_alpha, the ranks) of an adapter_config.json.

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
    if not isinstance(config.get("use_rslora") or False, bool):
        raise ValueError(f"use_rslora must be true or false, got {shown(config['use_rslora'])}")
    if config.get("lora_alpha") is None:
        raise ValueError("lora_alpha is missing")
    ranks = config.get("rank_pattern") or {}
    if not isinstance(ranks, dict):
        raise ValueError(f"rank_pattern must be an object, got {shown(ranks)}")
    several = {f"rank_pattern.{name}": rank for name, rank in ranks.items()} | {"r": config.get("r", 8)}
    return number(config["lora_alpha"], "lora_alpha"), {whole(rank, name, 1) for name, rank in several.items()}


def check(model: nn.Module, folder: Path, name: str, parts: dict[str, Tensor], ranks: set[int]) -> None:
    """Raises ValueError where an adapter does not fit the model."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{folder}: an adapter for {shown(name)}, which the model lacks") from None
    if set(parts) != {"lora_A", "lora_B"} or not isinstance(layer, nn.Linear) or name.endswith(FUSED):
        raise ValueError(f"{folder}: {name} cannot have the adapter {', '.join(sorted(parts))}")
    a, b = parts["lora_A"], parts["lora_B"]
    rank = a.shape[0] if a.dim() else 0
    if rank not in ranks:
        raise ValueError(f"{folder}: {name} has an adapter of rank {rank}, but {CONFIG} says {sorted(ranks)}")
    wanted = ((rank, layer.in_features), (layer.out_features, rank))
    if (tuple(a.shape), tuple(b.shape)) != wanted:
        raise ValueError(f"{folder}: {name} has adapters {tuple(a.shape)} and {tuple(b.shape)}, expected {wanted}")
    for part, tensor in parts.items():
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"{folder}: {part} of {name} is {tensor.dtype}, expected floating-point weights")
        if not tensor.isfinite().all():
            raise ValueError(f"{folder}: {part} of {name} holds NaN or infinity")
