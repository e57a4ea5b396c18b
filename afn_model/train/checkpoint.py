"""Checkpoints of a run: written while it trains, complete or not at all, read by any number of ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from afn_distributed.process import destroy
from afn_model.files import fingerprint, sync, write_json
from afn_model.hashing import text_key
from afn_model.train.optimiser_offload import refresh, settle, stored
from afn_model.train.staging import KeptStager

FACTS = "facts.json"
# DCP warns where there is no process group; a run of one process needs none.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class Checkpoints:
    """Folders ``step-00000100`` with the tensors, and ``facts.json`` with the facts and a checksum of every file.

    All ranks construct it and call its methods together. A folder of that name is complete: a save
    writes to a hidden folder, which gets its name when every rank is done. At most one save is pending.

    Args:
        folder: created if need be; what an interrupted save left in it is removed.
        keep: number of checkpoints to keep.
        pin: copy tensors of a GPU to page-locked memory, which stays for the next save.

    Raises:
        ValueError: ``keep`` below 1.
    """

    def __init__(self, folder: str | Path, keep: int = 2, *, pin: bool = False):
        if keep < 1:
            raise ValueError(f"keep {keep} would leave no checkpoint")
        self.folder, self.keep = Path(folder), keep
        # A process group of its own, so that a save's collectives cannot interleave with those of the training.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if self.group else (0, 1)
        self.stager = KeptStager() if pin else None
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            for left in self.folder.glob(".step-*"):
                shutil.rmtree(left)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        *,
        wait: bool = False,
        spare: int | None = None,
    ) -> None:
        """Copies the tensors to memory and writes them in the background; training may go on and change them.

        Args:
            step: names the checkpoint; one of the same step is replaced.
            tensors: by name; plain ones are equal on all ranks, DTensors are written by the ranks that hold them.
            facts: anything that JSON can hold.
            wait: return only when it is written.
            spare: step of a checkpoint that is kept beside the newest ones.

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
        written = dcp.async_save(dict(tensors), storage_writer=writer, async_stager=self.stager, **where)
        self.pending = self.thread.submit(self._finish, step, partial, json.loads(text), written, spare)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the pending save, if any, is written.

        Raises:
            OSError: it could not be written; earlier checkpoints are intact.
        """
        if self.pending is not None:
            try:
                self.pending.result()
            finally:
                self.pending = None

    def close(self) -> None:
        """Ends what writes, after ``wait``: its thread, memory and process group, all ranks together."""
        self.thread.shutdown()
        self.stager = None
        if self.group:
            destroy([self.group])
            self.group = None

    def failed(self) -> bool:
        """Whether the pending save is known to have failed; ``wait`` says why."""
        return self.pending is not None and self.pending.done() and self.pending.exception() is not None

    def latest(self) -> Path | None:
        """The newest checkpoint whose checksums match; a damaged one is passed over with a warning.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        self.wait()
        found = self._from_first(finished(self.folder)[::-1])
        newest = self.first_whole(found)
        if found and newest is None:
            raise ValueError(f"{self.folder}: every checkpoint is damaged; remove the folder to begin the stage anew")
        return newest

    def first_whole(self, paths: Sequence[Path]) -> Path | None:
        """The first checkpoint whose checksums match, of the same ones on all ranks; each rank reads its share."""
        for path in paths:
            damage = self._first_of(damage_of(path, self.rank, self.world))
            if damage is None:
                return path
            if self.rank == 0:
                warnings.warn(f"{path}: passed over, {damage}", stacklevel=2)
        return None

    def prune(self, keep: int, spare: int | None = None) -> None:
        """Removes all but the newest checkpoints; that of the step ``spare`` stays unless none does. ``wait`` first."""
        if self.rank == 0:
            found = finished(self.folder)
            spared = [] if spare is None or not keep else [self.at(spare)]
            for path in found[: len(found) - keep]:
                if path not in spared:
                    remove(path)

    def facts(self, path: Path) -> dict[str, Any]:
        """The facts of a checkpoint.

        Raises:
            ValueError: the folder is no checkpoint.
        """
        return read_facts(path)["facts"]

    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Reads a checkpoint into tensors, in place; another number of ranks may have written it.

        Args:
            path: as ``latest`` returns it.
            tensors: what to fill, as ``training_state`` returns it. A random state that the checkpoint lacks is derived
                from its name and the step.

        Returns:
            The checkpoint's facts.

        Raises:
            ValueError: other names, shapes or dtypes than the checkpoint's; nothing is changed then.
        """
        facts = self.facts(path)
        reader = dcp.FileSystemReader(path)
        stored = stored_metadata(path, reader)
        compare(path, stored, tensors)
        for name in set(tensors) - set(stored):
            tensors[name].copy_(derived_random_state(name, path.name))
        self._read(path, reader, {name: tensor for name, tensor in tensors.items() if name in stored})
        return facts

    def load_weights(self, path: Path, model: nn.Module) -> set[str]:
        """Reads the trained weights of a checkpoint of any run into a model; returns their names.

        Raises:
            ValueError: a checkpoint that cannot be read, or has weights that the model has not, or of other shapes.
        """
        reader = dcp.FileSystemReader(path)
        there = {n: m for n, m in stored_metadata(path, reader).items() if n.startswith("model.")}
        settle()
        own = {f"model.{name}": stored(parameter) for name, parameter in model.named_parameters()}
        own |= {f"model.{name}": buffer for name, buffer in moving(model).items()}
        read = {
            name: torch.empty_like(own[name], dtype=found.properties.dtype)
            for name, found in there.items()
            if name in own and isinstance(found, TensorStorageMetadata)
        }
        compare(path, there, read)
        self._read(path, reader, read)
        for name, tensor in read.items():
            own[name].copy_(tensor)
        for parameter in model.parameters():
            refresh(parameter)
        return {name.removeprefix("model.") for name in read}

    def at(self, step: int) -> Path:
        """The checkpoint of a step, whether it is there or not."""
        return self.folder / f"step-{step:08d}"

    def _read(self, path: Path, reader: dcp.FileSystemReader, tensors: dict[str, Tensor]) -> None:
        where = {"process_group": self.group} if self.group else {"no_dist": True}
        try:
            dcp.load(tensors, storage_reader=reader, **where)
        except (Exception, dcp.api.CheckpointException) as error:  # CheckpointException derives from BaseException
            raise ValueError(f"{path}: cannot be read: {reason(error)}") from error

    def _first_of(self, value: Any) -> Any:
        """The value of the first rank that has one, on every rank."""
        everyone = [value]
        if self.group:
            everyone = [None] * self.world
            dist.all_gather_object(everyone, value, self.group)
        return next((each for each in everyone if each is not None), None)

    def _from_first(self, value: Any) -> Any:
        box = [value]
        if self.group:
            dist.broadcast_object_list(box, 0, self.group)
        return box[0]

    def _finish(self, step: int, partial: Path, facts: dict[str, Any], written: Future, spare: int | None) -> None:
        """After the tensors are written: checksums, facts, the rename, and removal of old checkpoints."""
        sums, failure = {}, None
        try:
            written.result()
            own = [f for f in partial.glob(f"__{self.rank}_*")]
            own += [partial / ".metadata"] if self.rank == 0 else []
            sums = {file.name: fingerprint(file) for file in own}
        except (Exception, dcp.api.CheckpointException) as error:  # CheckpointException derives from BaseException
            failure = reason(error)
        everyone: list[Any] = [(sums, failure)]
        if self.group:
            everyone = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(everyone, (sums, failure), self.group)
        failure = next((each for _, each in everyone if each), None)
        if self.rank == 0 and failure is None:
            try:
                files = {name: value for part, _ in everyone for name, value in part.items()}
                publish(partial, self.at(step), {"step": step, "facts": facts, "files": files})
                # A checkpoint of a later step is damaged, or the run would have resumed from it.
                until = [path for path in finished(self.folder) if path.name <= f"step-{step:08d}"]
                spared = [] if spare is None else [self.at(spare)]
                for other in set(finished(self.folder)).difference(until[-self.keep :], spared):
                    remove(other)
            except OSError as error:
                failure = reason(error)
        failure = self._from_first(failure)
        if failure is not None:
            if self.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            steps = [int(path.name.removeprefix("step-")) for path in finished(self.folder)]
            before = f"the previous one is step {steps[-1]}" if steps else "there is no previous one"
            raise OSError(f"checkpoint at step {step} could not be written: {failure}; {before}")


def finished(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def find(path: Path) -> list[Path]:
    """The checkpoints that may be meant: the folder itself, or those in it, the newest first.

    Raises:
        ValueError: there is none.
    """
    if (path / FACTS).is_file():
        return [path]
    if found := finished(path) or finished(path / "checkpoints"):
        return found[::-1]
    hint = "; a model folder is given with --base" if (path / "config.json").is_file() else ""
    raise ValueError(f"{path}: no checkpoint, as RUN/STAGE/checkpoints/step-00000100 is one{hint}")


def publish(partial: Path, path: Path, facts: dict[str, Any]) -> None:
    """Writes the facts and renames the finished folder; everything is on the disk when this returns."""
    write_json(partial / FACTS, facts)
    sync(partial)
    if path.exists():
        remove(path)
    os.replace(partial, path)
    sync(path.parent)


def remove(path: Path) -> None:
    """Hides a checkpoint before deleting it, so that a partly deleted one is never taken for a checkpoint."""
    hidden = path.with_name(f".{path.name}-old")
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def read_facts(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no checkpoint: {error}") from None
    if not isinstance(content, dict) or not {"facts", "files"} <= content.keys():
        raise ValueError(f"{path}: no checkpoint: {FACTS} lacks its facts or files")
    return content


def damage_of(path: Path, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with a rank's share of the files of a checkpoint, in a few words; None where nothing is."""
    try:
        for name, wanted in read_facts(path)["files"].items():
            wrote = re.match(r"__(\d+)_", name)  # a rank reads first what it has written, if there are as many ranks
            if (int(wrote[1]) if wrote else 0) % world == rank and fingerprint(path / name) != wanted:
                return f"{name} is damaged: its checksum differs"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def stored_metadata(path: Path, reader: dcp.FileSystemReader) -> dict[str, Any]:
    try:
        return reader.read_metadata().state_dict_metadata
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """One line on why a save failed: the operating system's reason where there is one."""
    seen, waiting = set(), [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        # CheckpointException.failures holds what each rank raised.
        waiting += [failed[0] for failed in getattr(cause, "failures", {}).values()]
        waiting += [cause.__cause__, cause.__context__]
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
        saved = stored.get(name)
        if isinstance(saved, TensorStorageMetadata):
            old, new = (saved.size, saved.properties.dtype), (tensor.shape, tensor.dtype)
            if old != new:
                now = f"{tuple(new[0])} {new[1]} is wanted"
                raise ValueError(f"{path}: of another model: {name} is {tuple(old[0])} {old[1]}, {now}")


def training_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a run needs to resume, by name: trained weights, their optimiser state, this rank's random state.

    Weights and optimiser state are the run's own tensors: loading into them restores most of it, ``restore`` the rest.

    Args:
        model: sharded or not; frozen weights are left out.
        optimiser: over the model's trained parameters, in any order; its state is created if it has not stepped yet.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ready(optimiser)
    settle()
    tensors = {f"model.{name}": stored(p) for name, p in model.named_parameters() if p.requires_grad}
    tensors |= {f"model.{name}": buffer for name, buffer in moving(model).items()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            for key, value in optimiser.state[parameter].items():
                tensors[f"optimiser.{names[id(parameter)]}.{key}"] = value
            if "step" in group:  # apex keeps the step in the group
                tensors[f"optimiser.{names[id(parameter)]}.step"] = torch.tensor(group["step"])
    return tensors | {name: state for name, (state, _) in random_states().items()}


def moving(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that training changes, by name: those that modules list in ``moving``."""
    found = {}
    for prefix, module in model.named_modules():
        for name in getattr(module, "moving", ()):
            found[f"{prefix}.{name}".removeprefix(".")] = module.get_buffer(name)
    return found


def restore(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Applies what ``Checkpoints.load`` read to the model, the optimiser and the random states.

    Raises:
        KeyError: tensors of another model.
    """
    with torch.no_grad():
        for name, own in training_state(model, optimiser).items():
            if own is not tensors[name]:
                own.copy_(tensors[name])
    for parameter in model.parameters():
        refresh(parameter)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimiser.param_groups:
        if "step" in group:
            group["step"] = int(tensors[f"optimiser.{names[id(group['params'][0])]}.step"])
    for name, (_, put) in random_states().items():
        put(tensors[name])


def ready(optimiser: torch.optim.Optimizer) -> None:
    """Creates the state that an optimiser otherwise creates at a parameter's first step, and changes nothing else."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    new = [parameter for parameter in parameters if not optimiser.state.get(parameter)]
    if not new:
        return
    before = [(group["lr"], group.get("step", 0)) for group in optimiser.param_groups]
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    for parameter in new:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    optimiser.step()
    for group, (rate, step) in zip(optimiser.param_groups, before, strict=True):
        group["lr"] = rate
        if "step" in group:
            group["step"] = step
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for parameter in new:
        if "step" in optimiser.state[parameter]:
            optimiser.state[parameter]["step"].zero_()


def random_states() -> dict[str, tuple[Tensor, Any]]:
    """This rank's global random states by name, and the function that sets each."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    states = {f"rng.{rank}": (torch.get_rng_state(), torch.set_rng_state)}
    if torch.cuda.is_available():
        states[f"rng.cuda.{rank}"] = (torch.cuda.get_rng_state(), torch.cuda.set_rng_state)
    return states


def derived_random_state(name: str, step: str) -> Tensor:
    """A random state for a rank that the checkpoint lacks."""
    seed = text_key(f"{name} {step}") >> 1  # manual_seed takes 63 bits
    return torch.Generator("cuda" if ".cuda." in name else "cpu").manual_seed(seed).get_state()
