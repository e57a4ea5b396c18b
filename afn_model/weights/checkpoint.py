"""Checkpoint folders: safetensors in three layouts, read memory-mapped and written atomically.

transformers   model.language_model.*, lm_head.weight, model.audio_tower.*, model.multi_modal_projector.*
hub            language_model.model.*, language_model.lm_head.weight, audio_tower.*, multi_modal_projector.*
native         folders llm/ (Qwen2 names), sound_tower/, sound_mm_projector/ (layers.0, layers.2)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from afn_model.checks import said, shown
from afn_model.config import ModelConfig
from afn_model.files import PARTIAL, follow_umask, model_folder, read_json, write_json
from afn_model.weights.config_json import read_config, resolve_tokens, to_json

if TYPE_CHECKING:
    from afn_model.network.network import Network

Model = TypeVar("Model", bound="Network")
SHARD_BYTES = 5 * 10**9
# While converting, a shard's mapping is closed and reopened after this much, so its pages do not pile up.
REOPEN_BYTES = 64 * 2**20

# layout → our module → (folder, stored prefix)
LAYOUTS: dict[str, dict[str, tuple[str, str]]] = {
    "transformers": {
        "encoder.": ("", "model.audio_tower."),
        "adaptor.": ("", "model.multi_modal_projector."),
        "language_model.": ("", "model.language_model."),
        "lm_head.": ("", "lm_head."),
    },
    "hub": {
        "encoder.": ("", "audio_tower."),
        "adaptor.": ("", "multi_modal_projector."),
        "language_model.": ("", "language_model.model."),
        "lm_head.": ("", "language_model.lm_head."),
    },
    "native": {
        "encoder.": ("sound_tower", ""),
        "adaptor.linear_1.": ("sound_mm_projector", "layers.0."),
        "adaptor.linear_2.": ("sound_mm_projector", "layers.2."),
        "language_model.": ("llm", "model."),
        "lm_head.": ("llm", "lm_head."),
    },
}
PARTS = ("", "llm", "sound_tower", "sound_mm_projector")
# Weights that a save replaces, in the order of their removal; any other file in the folder is left alone.
OWN_WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "model-*-of-*.safetensors")
# Tables that some releases store and every reader computes.
IGNORED_ENDINGS = ("pos_emb.freqs", "pos_emb.inv_freq", "pos_emb.position_angles", "rotary_emb.inv_freq")
# As safetensors calls them, those that weights may have.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies, and what its shard's header says of it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def load(
    cls: type[Model],
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    rote: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Model:
    """A model from a checkpoint folder of any layout.

    Weights stay memory-mapped where neither dtype nor device changes; otherwise they are converted tensor by tensor,
    so that the peak is the model itself plus one piece of a shard.

    Args:
        cls: the model class.
        folder: a folder with config.json and safetensors.
        dtype: of the weights; default that of the stored head.
        device: where the weights go.
        rote: "checkpoint", "paper" or "none" in place of what the configuration says.
        on_step: called as on_step(done, total) after each tensor.

    Raises:
        ValueError: one line: no such folder, one without a model (what it holds is named), a configuration this code
            does not compute, pickle or quantised weights, a damaged shard, or a missing, unexpected or mis-shaped
            tensor.
    """
    model, stored = on_meta(cls, folder, rote)
    if dtype is None:
        dtype = DTYPES[stored["lm_head.weight"].dtype]
    fill(model, stored, dtype, torch.device(device), on_step)
    return model.eval()


def on_meta(cls: type[Model], folder: str | Path, rote: str | None = None) -> tuple[Model, dict[str, Stored]]:
    """A checkpoint folder's model without its weights, on the meta device, and where each of them lies.

    Raises:
        ValueError: as ``load``, but for what only reading a tensor shows.
    """
    folder = model_folder(folder)
    config = resolve_tokens(read_config(folder), folder)
    if rote is not None:
        config = replace(config, rote=replace(config.rote, reading=rote))
    stored = stored_tensors(folder, find_layout(folder))
    compare_layers(folder, config, stored)
    with torch.device("meta"), SkipInit():
        model = cls(config)
    wanted = model.state_dict()
    compare_names(folder, set(wanted), set(stored))
    compare_headers({name: tuple(tensor.shape) for name, tensor in wanted.items()}, stored)
    return model, {name: stored[name] for name in wanted}


class SkipInit(TorchFunctionMode):
    """Skips ``torch.nn.init``: on the meta device it sets nothing, but its first use takes PyTorch a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def find_layout(folder: Path) -> str:
    """The layout of a checkpoint folder, from the files and names in it."""
    if any(shard_files(folder / part) for part in PARTS[1:]):
        return "native"
    if not shard_files(folder):
        pickles = [p for part in PARTS for ending in ("*.bin", "*.pt", "*.pth") for p in (folder / part).glob(ending)]
        if pickles:
            raise ValueError(f"{min(pickles)}: weights in pickle files are refused; use safetensors")
        raise ValueError(f"{folder}: no safetensors weights")
    names = set(keys_of(folder))
    return "hub" if any(name.startswith("language_model.model.") for name in names) else "transformers"


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, following its index where there is one; none lies outside of it."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: weight_map must be an object of tensors and their shards")
        names = {name if isinstance(name, str) else shown(name) for name in weight_map.values()}
        for name in names:
            # A link inside the folder may lead elsewhere, as those of the hub's cache do.
            if not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
                raise ValueError(f"{index}: the shard {shown(name)} is no name of a safetensors file in this folder")
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: the index names this shard but it is missing")
        return [folder / name for name in sorted(names)]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def keys_of(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by its name, from the shards' headers."""
    keys: dict[str, Stored] = {}
    for file in shard_files(folder):
        with open_shard(file) as shard:
            for key in shard.keys():  # noqa: SIM118 (a shard is not a dict)
                if key in keys:
                    raise ValueError(f"{file}: {shown(key)} is in {keys[key].file.name} too")
                try:
                    header = shard.get_slice(key)
                    keys[key] = Stored(file, key, tuple(header.get_shape()), str(header.get_dtype()))
                except SafetensorError as error:
                    raise ValueError(f"{file}: {shown(key)} cannot be read: {said(error)}") from None
    return keys


def open_shard(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: damaged or not a safetensors file: {said(error)}") from error


def stored_tensors(folder: Path, layout: str) -> dict[str, Stored]:
    """Our name of every stored tensor, and where it lies; names that fit nothing keep their stored form."""
    tensors: dict[str, Stored] = {}
    table = LAYOUTS[layout]
    for part in sorted({part for part, _ in table.values()}):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder / part}: the {layout} layout needs this folder")
        keys = keys_of(folder / part)
        if not keys:
            raise ValueError(f"{folder / part}: no safetensors weights")
        for key, stored in keys.items():
            if not key.endswith(IGNORED_ENDINGS):
                tensors[our_name(key, part, table)] = stored
    return tensors


def our_name(key: str, part: str, table: dict[str, tuple[str, str]]) -> str:
    for ours, (folder, prefix) in table.items():
        if folder == part and key.startswith(prefix):
            return ours + key.removeprefix(prefix)
    return f"{part}/{key}" if part else key


def compare_names(folder: Path, wanted: set[str], found: set[str]) -> None:
    for what, names in (("missing", wanted - found), ("unexpected", found - wanted)):
        if names:
            first = ", ".join(sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{folder}: {len(names)} tensors {what}: {first}{more}")


def compare_layers(folder: Path, config: ModelConfig, stored: dict[str, Stored]) -> None:
    """ValueError where the configuration has other layers than the shards, before any of them is made."""
    for key, prefix, count in (
        ("audio_config", "encoder.layers.", config.audio.layers),
        ("text_config", "language_model.layers.", config.text.layers),
    ):
        held = len({name[len(prefix) :].partition(".")[0] for name in stored if name.startswith(prefix)})
        if count != held and (held or count > len(stored)):
            said = f"{key}.num_hidden_layers is {count}, but the weights have {held} layers"
            raise ValueError(f"{folder / 'config.json'}: {said}")


def compare_headers(wanted: dict[str, tuple[int, ...]], stored: dict[str, Stored]) -> None:
    """ValueError naming the first tensor of another shape than the model's, or of values that are no weights."""
    for name, shape in wanted.items():
        found = stored[name]
        if found.shape != shape:
            raise ValueError(f"{found.file}: {found.key} has shape {found.shape}, expected {shape}")
        if found.dtype not in DTYPES:
            raise ValueError(f"{found.file}: {found.key} is {found.dtype}, expected one of {', '.join(DTYPES)}")


def fill(
    model: torch.nn.Module,
    stored: dict[str, Stored],
    dtype: torch.dtype,
    device: torch.device,
    on_step: Callable[[int, int], None] | None,
) -> None:
    """Gives every parameter its stored values, shard by shard."""
    done = 0
    by_file: dict[Path, list[str]] = {}
    for name, place in stored.items():
        by_file.setdefault(place.file, []).append(name)
    for file, names in by_file.items():
        shard, taken = open_shard(file), 0
        for name in names:
            if taken > REOPEN_BYTES:
                shard, taken = open_shard(file), 0
            tensor = read_tensor(shard, file, stored[name].key)
            parameter = model.get_parameter(name)
            converted = tensor.to(device, dtype)
            taken += 0 if converted is tensor else tensor.nbytes
            set_parameter(model, name, converted, parameter.requires_grad)
            del tensor, converted
            done += 1
            if on_step is not None:
                on_step(done, len(stored))


def read_tensor(shard, file: Path, key: str) -> Tensor:
    try:
        return shard.get_tensor(key)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{file}: {shown(key)} cannot be read: {said(error)}") from error


def set_parameter(model: torch.nn.Module, name: str, value: Tensor, requires_grad: bool) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=requires_grad))


def check_destination(source: str | Path, destination: str | Path, *, overwrite: bool) -> None:
    """Asks before a conversion replaces a model: ``save`` does so unasked, as training must.

    Raises:
        ValueError: the destination is the source or a part of it, or holds a model and ``overwrite`` is not given.
    """
    source, destination = Path(source), Path(destination)
    if destination.resolve() in [(source / part).resolve() for part in PARTS]:
        raise ValueError(f"{destination}: is what is converted; another folder is needed")
    names = [*OWN_WEIGHTS, "config.json"]
    held = sorted(file for part in PARTS for name in names for file in (destination / part).glob(name))
    if held and not overwrite:
        raise ValueError(f"{destination}: holds a model already ({held[0].name}); --overwrite replaces it")


def save(model: Network, folder: str | Path, layout: str = "transformers") -> None:
    """Writes config.json and sharded safetensors, in the place of any checkpoint the folder holds.

    Everything is written to a temporary folder inside ``folder`` and then renamed into place, so that a save that
    fails leaves the earlier checkpoint as it was.

    Args:
        model: the model.
        folder: created if need be.
        layout: "transformers", "hub" or "native".

    Raises:
        ValueError: another layout name, a folder that is a file, or weights in FP8 or few bits, which no layout has.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no checkpoint layout {layout!r}; there are {', '.join(LAYOUTS)}")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, not a folder to save a checkpoint in")
    table = LAYOUTS[layout]
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"{name} is {tensor.dtype}, which no checkpoint has: save the model as it was loaded")
        ours = next(prefix for prefix in table if name.startswith(prefix))
        part, prefix = table[ours]
        parts.setdefault(part, {})[prefix + name.removeprefix(ours)] = tensor
    config = to_json(model.config, DTYPE_NAMES[model.dtype])
    generation = {"eos_token_id": config["eos_token_id"], "repetition_penalty": model.config.repetition_penalty}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL) as temporary:
        staged = Path(temporary)
        for part, tensors in parts.items():
            save_shards(staged / part, tensors)
        write_json(staged / "config.json", config)
        write_json(staged / "generation_config.json", generation)
        if layout == "native":
            write_json(staged / "llm" / "config.json", config["text_config"])
            write_json(staged / "sound_tower" / "config.json", config["audio_config"])
        publish(staged, folder)


def publish(staged: Path, folder: Path) -> None:
    """Moves a finished checkpoint into place, then removes what an earlier one in the same folder leaves behind."""
    new = sorted(p.relative_to(staged) for p in staged.rglob("*") if p.is_file())
    # An index after its shards and config.json last: what names a file comes after it.
    for path in sorted(new, key=lambda p: (p.suffix == ".json", p.name == "config.json")):
        (folder / path).parent.mkdir(exist_ok=True)
        os.replace(staged / path, folder / path)
    for part in PARTS:
        home = folder / part
        stale = [p for pattern in OWN_WEIGHTS for p in home.glob(pattern) if p.relative_to(folder) not in new]
        if part and stale and Path(part, "config.json") not in new:
            stale += home.glob("config.json")
        for file in stale:
            file.unlink()
        if part and home.is_dir() and not any(home.iterdir()):
            home.rmdir()


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """One model.safetensors, or numbered shards with an index when it would pass ``SHARD_BYTES``."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for name, shard in zip(names, shards, strict=True):
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in shard.items()}
        try:
            save_file(whole, folder / name, metadata={"format": "pt"})
            follow_umask(folder / name)
        except SafetensorError as error:
            raise OSError(f"{folder / name}: {error}") from None
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
