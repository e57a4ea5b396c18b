"""How often the host waits for the device in a forward and backward of the supervised loss, counted without a GPU.

    python -m bench.syncs --out bench/results/cpu/syncs.jsonl

A tiny model runs on a CPU behind tensors that say they are on another device. What a GPU would make the host wait for
is counted as it passes: values read back (``item``, ``nonzero``, an index by a mask, copies to the host) and copies
from the host's pageable memory. Kernels themselves run as one op here: what happens inside of them is not seen.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_map

import afn_kernels as ak
import afn_model
from afn_distributed import plan
from afn_distributed.comm import in_threads
from afn_distributed.hybrid import SequenceParallel
from afn_model import AFNext
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.bootstrap.tiny import untrained
from afn_model.prompt.batch import Batch

DEVICE = torch.device("lazy")  # autograd computes its gradients in the caller's thread, as for a CPU
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "unique_consecutive")
FOLDERS = ("afn_model/", "afn_distributed/", "distributed/", "afn_kernels/")
ROOT = Path(afn_model.__file__).parents[1]
SPLITS = {"one rank": None, "ulysses 3": (3, 1), "ulysses 2 with uneven heads, ring 2": (2, 2), "ring 4": (1, 4)}


ABOUT = """\
The supervised loss of a tiny model, forward and backward, of the second micro-batch; of ranks that share it, the one
that waits most. Counted on a CPU by `python -m bench.syncs`, which sees what PyTorch's operations make the host wait
for and not what happens inside of a kernel's launch: the `nonzero` of a reference stands in for a kernel that has none.
Nothing here ran on a GPU. The last column is of a micro-batch that was prepared before; preparing it is two copies."""


class OnDevice(Tensor):
    """A CPU tensor that says it is on ``DEVICE``."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        facts = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return Tensor._make_wrapper_subclass(cls, values.shape, **facts, device=DEVICE)  # pyright: ignore

    def __init__(self, values: Tensor):
        self.values = values

    def __getitem__(self, index: Any) -> Tensor:
        # PyTorch would make a tensor on the device of a list without asking the mode.
        index = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(one) if isinstance(one, list) else one for one in index))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return ran(func, args, kwargs or {})


def ran(func: Any, args: tuple, kwargs: dict) -> Any:
    """The op on the values; its results are where its arguments are, or where it is asked to make them."""
    found = [x for x in leaves((args, kwargs)) if isinstance(x, OnDevice)]
    wanted = kwargs.get("device")
    here = DEVICE.type == torch.device(wanted).type if wanted is not None else bool(found)
    kwargs = kwargs | ({"device": torch.device("cpu")} if wanted is not None else {})
    name = func.overloadpacket.__name__
    if name == "_to_copy" and wanted is None:
        here = bool(found)
    plain = func(*tree_map(values_of, args), **tree_map(values_of, kwargs))
    if name.endswith("_") and not name.endswith("__") and found and isinstance(args[0], Tensor):
        return args[0]
    if name == "_local_scalar_dense" or not here:
        return plain
    return tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, plain)


def values_of(x: Any) -> Any:
    return x.values if isinstance(x, OnDevice) else x


def leaves(tree: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(tree)


class Waits(TorchDispatchMode):
    """Counts, by the line of this project that is behind each, what the host would wait for."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if reason := waits(func, args, kwargs):
            self.found[f"{reason}: {line()}"] += 1
        return ran(func, args, kwargs)


def waits(func: Any, args: tuple, kwargs: dict) -> str:
    """Why an op makes the host wait; nothing where it does not."""
    name = func.overloadpacket.__name__
    tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, OnDevice)]
    away = [x for x in tensors if not isinstance(x, OnDevice)]
    if name in ("_to_copy", "copy_"):
        wanted = kwargs.get("device")
        target = DEVICE.type if name == "copy_" and isinstance(args[0], OnDevice) else ""
        target = torch.device(wanted).type if wanted is not None else target
        if (here and target == "cpu") or (name == "copy_" and here and not target):
            return "copy to the host"
        unasked = not kwargs.get("non_blocking") and not (name == "copy_" and len(args) > 2 and args[2])
        return "copy from the host" if target == DEVICE.type and away and unasked else ""
    if not here:
        return ""
    if name in READS:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return name
    indices = [x for x in leaves(args[1:2]) if isinstance(x, Tensor)] if name in ("index", "index_put_") else []
    if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
        return "index by a mask"
    if any(not isinstance(x, OnDevice) for x in indices):
        return "index on the host"
    assert all(x.dim() == 0 for x in away), f"{func}: a GPU computes with no tensor of the host"
    return ""


def line() -> str:
    """The innermost line of the project's packages on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        name = next((folder for folder in FOLDERS if f"/{folder}" in path and "site-packages" not in path), "")
        if name:
            return f"{name}{path.rsplit(f'/{name}', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "autograd"


def to_device(model: nn.Module) -> nn.Module:
    """The model with its parameters on ``DEVICE``, in place."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.data), parameter.requires_grad)
    return model


def a_batch() -> tuple[AFNext, Batch]:
    """A model with six query and three KV heads, and a batch with recordings and text alone."""
    sizes = {"width": 192, "layers": 2, "heads": 6, "kv_heads": 3}
    model, processor = untrained(0, ["What? yes it is no system user assistant"] * 4, **sizes)
    processor.pcm_dtype = torch.int16

    def talk(seconds: float, said: str) -> list[dict]:
        wave = 0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0)).numpy()
        audio = [{"type": "audio", "audio": wave}] if seconds else []
        asked = {"role": "user", "content": [*audio, {"type": "text", "text": "What?"}]}
        return [asked, {"role": "assistant", "content": said}]

    talks = [talk(1.3, "yes it is"), talk(2.2, "no"), talk(0, "yes no"), talk(0.4, "it is")]
    return model, processor(talks, training=True)


def counted(model: AFNext, prepared: Callable[[], Any], sp_group: SequenceParallel | None) -> Counter[str]:
    """What the host waits for in one forward and backward of a batch, which is prepared before the counting."""
    with Waits():
        batch = prepared()
    with Waits() as waits:
        options = {} if sp_group is None else {"sp_group": sp_group}
        model.loss(batch, **options).backward()
    return waits.found


def made_here(make: Callable[[], Any], device: torch.device) -> Any:
    """In the place of ``made_alone``, whose thread has no mode: it waits for all work on the device."""
    mode = _get_current_dispatch_mode()
    if isinstance(mode, Waits) and device.type == DEVICE.type:
        mode.found[f"a table that is kept: {line()}"] += 1
    return make()


def tensor_here(*args: Any, device: Any = None, plain: Callable[..., Tensor] = torch.tensor, **kwargs: Any) -> Tensor:
    """``torch.tensor``, which asks no mode: a tensor of the host and a copy of it."""
    found = plain(*args, **kwargs)
    return found if device is None else found.to(device)


def count(split: tuple[int, int] | None, ahead: bool) -> Counter[str]:
    """What a rank's host waits for in a warm micro-batch; that of the rank that waits most.

    Args:
        split: Ulysses and ring ranks that share the batch; None for one rank.
        ahead: whether the batch was prepared and copied before.
    """
    model, batch = a_batch()
    groups = SequenceParallel.virtual(*split) if split else [None]
    copies = [to_device(copy.deepcopy(model)) for _ in groups]

    def of_rank(rank: int) -> Counter[str]:
        def prepared() -> Any:
            return copies[rank].prepare(batch, groups[rank]) if ahead else batch

        counted(copies[rank], prepared, groups[rank])  # makes what is kept
        return counted(copies[rank], prepared, groups[rank])

    patches = mock.patch.object(plan, "made_alone", made_here), mock.patch.object(torch, "tensor", tensor_here)
    with ak.prefer("reference"), patches[0], patches[1]:
        return max(in_threads(of_rank, len(groups)), key=Counter.total)


def measure(ahead: bool) -> list[dict]:
    rows = []
    for name, split in SPLITS.items():
        found = count(split, ahead)
        rows.append({"split": name, "waits": found.total(), "where": dict(found.most_common())})
        print(f"{name}: {found.total()}", *(f"  {n} x {what}" for what, n in found.most_common()), sep="\n", flush=True)
    return rows


def table(records: list[dict]) -> str:
    """The first and the last record as Markdown."""
    first, last = records[0], records[-1]
    before = {row["split"]: row for row in first["rows"]}
    lines = [
        "# How often the host waits for the device in a micro-batch",
        "",
        *ABOUT.splitlines(),
        "",
        f"| ranks that share a batch | {first['commit']} | {last['commit']} |",
        "|---|---|---|",
        *(f"| {row['split']} | {before[row['split']]['waits']} | {row['waits']} |" for row in last["rows"]),
        "",
        f"What they were at {first['commit']}:",
        "",
    ]
    for row in first["rows"]:
        lines += [f"{row['split']}:", "", *(f"- {n} x {what}" for what, n in row["where"].items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="append the record to this file, and write the table beside it")
    parser.add_argument("--unprepared", action="store_true", help="count what preparing the batch waits for too")
    args = parser.parse_args()
    command = ["git", "-C", str(ROOT), "describe", "--always"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    record = {"benchmark": "syncs", "commit": commit, "rows": measure(not args.unprepared)}
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        records = [json.loads(one) for one in args.out.read_text().splitlines()]
        args.out.with_suffix(".md").write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    main()
