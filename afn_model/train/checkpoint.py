"""Checkpoints of a run: written while it goes on, whole or not at all, read by any number of ranks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

FACTS = "facts.json"
# A run of one process is meant, not an accident.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class Checkpoints:
    """Folders ``step-00000100`` with the tensors, and ``facts.json`` with the facts and a checksum of every file.

    All ranks make it, and call its methods, together. A folder of that name is whole: what is being written is hidden
    until every rank is done. At most one save is under way.

    Args:
        folder: made if need be; what an interrupted save left in it is removed.
        keep: how many checkpoints stay.

    Raises:
        ValueError: ``keep`` below 1.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep {keep} would leave no checkpoint")
        self.folder, self.keep = Path(folder), keep
        # A group of its own: a save must not come between the collectives of the training.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.rank = dist.get_rank() if self.group else 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            for left in self.folder.glob(".step-*"):
                shutil.rmtree(left)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.under_way: Future | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, wait: bool = False) -> None:
        """Copies the tensors to memory and writes them beside the run, which may go on and change them.

        Args:
            step: names the checkpoint; one of the same step is replaced.
            tensors: by name, plain ones the same on all ranks; DTensors are written by the ranks that hold them.
            facts: anything that JSON can say.
            wait: until it is written.

        Raises:
            OSError: the save before, or with ``wait`` this one, could not be written; earlier checkpoints are intact.
        """
        self.wait()
        text = json.dumps(facts)
        partial = self.folder / f".step-{step:08d}"
        if self.rank == 0 and partial.exists():
            shutil.rmtree(partial)
        if self.group:
            dist.barrier(self.group)
        partial.mkdir(exist_ok=True)
        writer = dcp.FileSystemWriter(partial, single_file_per_rank=True)
        where = {"process_group": self.group} if self.group else {"no_dist": True}
        written = dcp.async_save(dict(tensors), storage_writer=writer, **where)
        self.under_way = self.thread.submit(self._finish, step, partial, json.loads(text), written)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until the save under way, if any, is written.

        Raises:
            OSError: it could not be written; earlier checkpoints are intact.
        """
        if self.under_way is not None:
            try:
                self.under_way.result()
            finally:
                self.under_way = None

    def latest(self) -> Path | None:
        """The newest checkpoint whose checksums hold; a damaged one is passed over with a warning.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        self.wait()
        found = damaged = None
        if self.rank == 0:
            for path in reversed(self._finished()):
                damage = damage_of(path)
                if damage is None:
                    found = path.name
                    break
                warnings.warn(f"{path}: passed over, {damage}", stacklevel=2)
                damaged = f"{path.parent}: every checkpoint is damaged; remove the folder to begin the stage anew"
        name, damaged = self._from_first((found, damaged))
        if name is None and damaged:
            raise ValueError(damaged)
        return None if name is None else self.folder / name

    def facts(self, path: Path) -> dict[str, Any]:
        """The facts of a checkpoint.

        Raises:
            ValueError: the folder is no checkpoint.
        """
        return read_facts(path)["facts"]

    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Reads a checkpoint into tensors, in place; it may come from another number of ranks.

        Args:
            path: as ``latest`` returns it.
            tensors: what to fill, as ``training_state`` returns it. A random state that the checkpoint lacks is made
                from its name and the step.

        Returns:
            The checkpoint's facts.

        Raises:
            ValueError: other names, shapes or dtypes than the checkpoint's; nothing is changed then.
        """
        facts = self.facts(path)
        reader = dcp.FileSystemReader(path)
        stored = reader.read_metadata().state_dict_metadata
        compare(path, stored, tensors)
        for name in set(tensors) - set(stored):
            tensors[name].copy_(derived_random_state(name, path.name))
        where = {"process_group": self.group} if self.group else {"no_dist": True}
        dcp.load({name: tensor for name, tensor in tensors.items() if name in stored}, storage_reader=reader, **where)
        return facts

    def _finished(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))

    def _from_first(self, value: Any) -> Any:
        box = [value]
        if self.group:
            dist.broadcast_object_list(box, 0, self.group)
        return box[0]

    def _finish(self, step: int, partial: Path, facts: dict[str, Any], written: Future) -> None:
        """What follows the writing: checksums, facts, the real name, and fewer old checkpoints."""
        sums, failure = {}, None
        try:
            written.result()
            own = [f for f in partial.glob(f"__{self.rank}_*")]
            own += [partial / ".metadata"] if self.rank == 0 else []
            sums = {file.name: checksum(file) for file in own}
        except (Exception, dcp.api.CheckpointException) as error:  # which is no Exception
            failure = reason(error)
        everyone: list[Any] = [(sums, failure)]
        if self.group:
            everyone = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(everyone, (sums, failure), self.group)
        failure = next((found for _, found in everyone if found), None)
        if self.rank == 0 and failure is None:
            try:
                files = {name: value for part, _ in everyone for name, value in part.items()}
                publish(partial, self.folder / f"step-{step:08d}", {"step": step, "facts": facts, "files": files})
                # Later ones are damaged, or the run would have gone on from them.
                until = [path for path in self._finished() if path.name <= f"step-{step:08d}"]
                for other in set(self._finished()).difference(until[-self.keep :]):
                    remove(other)
            except OSError as error:
                failure = reason(error)
        failure = self._from_first(failure)
        if failure is not None:
            if self.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            steps = [int(path.name.removeprefix("step-")) for path in self._finished()]
            before = f"the previous one is step {steps[-1]}" if steps else "there is no previous one"
            raise OSError(f"checkpoint at step {step} could not be written: {failure}; {before}")


def publish(partial: Path, path: Path, facts: dict[str, Any]) -> None:
    """Writes the facts and gives a finished folder its name, all of it on the disk when this returns."""
    with (partial / FACTS).open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(partial)
    if path.exists():
        remove(path)
    os.replace(partial, path)
    sync(path.parent)


def sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Hides a checkpoint before it is taken apart, so that no half of one is ever seen."""
    hidden = path.with_name(f".{path.name}-old")
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def checksum(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=32)
    with file.open("rb") as stream:
        while part := stream.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()


def read_facts(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no checkpoint: {error}") from None
    if not isinstance(found, dict) or not {"facts", "files"} <= found.keys():
        raise ValueError(f"{path}: no checkpoint: {FACTS} lacks its facts or files")
    return found


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, in a few words."""
    try:
        for name, wanted in read_facts(path)["files"].items():
            if checksum(path / name) != wanted:
                return f"{name} is damaged: its checksum differs"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def reason(error: BaseException) -> str:
    """One line on why a save failed; that of the operating system where it gave one."""
    seen, waiting = set(), [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        # What ranks raised, in an error that gathers them.
        waiting += [failed[0] for failed in getattr(found, "failures", {}).values()]
        waiting += [found.__cause__, found.__context__]
    return (str(error).strip() or repr(error)).splitlines()[0]


def compare(path: Path, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a checkpoint's tensors are not the ones wanted."""
    for what, names in (
        ("lacks", set(tensors) - set(stored)),
        ("also has", set(stored) - set(tensors)),
    ):
        names = sorted(name for name in names if not name.startswith("rng."))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{path}: of another model: the checkpoint {what} {', '.join(names[:3])}{more}")
    for name, tensor in tensors.items():
        found = stored.get(name)
        if isinstance(found, TensorStorageMetadata):
            old, new = (found.size, found.properties.dtype), (tensor.shape, tensor.dtype)
            if old != new:
                now = f"{tuple(new[0])} {new[1]} is wanted"
                raise ValueError(f"{path}: of another model: {name} is {tuple(old[0])} {old[1]}, {now}")


def training_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a run needs to go on, by name: trained weights, their optimiser state, this rank's random state.

    The tensors are the run's own: loading into them restores it, but for what ``restore`` does.

    Args:
        model: sharded or not; frozen weights are left out.
        optimiser: over the model's trained parameters, in any order; gets its (zero) state if it has not stepped yet.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ready(optimiser)
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            for key, value in optimiser.state[parameter].items():
                tensors[f"optimiser.{names[id(parameter)]}.{key}"] = value
            if "step" in group:  # where apex counts
                tensors[f"optimiser.{names[id(parameter)]}.step"] = torch.tensor(group["step"])
    return tensors | {name: state for name, (state, _) in random_states().items()}


def restore(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts what ``Checkpoints.load`` read into place.

    Raises:
        KeyError: tensors of another model.
    """
    with torch.no_grad():
        for name, own in training_state(model, optimiser).items():
            if own is not tensors[name]:
                own.copy_(tensors[name])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimiser.param_groups:
        if "step" in group:
            group["step"] = int(tensors[f"optimiser.{names[id(group['params'][0])]}.step"])
    for name, (_, put) in random_states().items():
        put(tensors[name])


def ready(optimiser: torch.optim.Optimizer) -> None:
    """Makes the state that an optimiser otherwise makes at its first step, and leaves everything else as it is."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if optimiser.state:
        return
    rates, gradients = [group["lr"] for group in optimiser.param_groups], [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    optimiser.step()
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
        if "step" in group:
            group["step"] = 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
        if "step" in optimiser.state[parameter]:
            optimiser.state[parameter]["step"].zero_()


def random_states() -> dict[str, tuple[Tensor, Any]]:
    """This rank's global random states and what sets them."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    states = {f"rng.{rank}": (torch.get_rng_state(), torch.set_rng_state)}
    if torch.cuda.is_available():
        states[f"rng.cuda.{rank}"] = (torch.cuda.get_rng_state(), torch.cuda.set_rng_state)
    return states


def derived_random_state(name: str, step: str) -> Tensor:
    """A random state for a rank that the checkpoint does not know."""
    seed = int.from_bytes(hashlib.blake2b(f"{name} {step}".encode(), digest_size=7).digest(), "big")
    return torch.Generator("cuda" if ".cuda." in name else "cpu").manual_seed(seed).get_state()
