"""Whether the kernels are right and which are fastest on the device that is here, and a file of it for impl="auto"."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from afn_kernels import _verdicts
from afn_kernels._registry import OPS

if TYPE_CHECKING:
    from afn_kernels.verify.report import Report


def verify(
    ops: Sequence[str] | None = None,
    *,
    impls: Sequence[str] | None = None,
    size: str | None = None,
    device: torch.device | str | None = None,
    isolated: bool | None = None,
    time: bool = True,
    keep_file: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Runs every implementation that can run here against float64, and times those that are right.

    An op's outputs and gradients may be as far from float64 as 2 · what plain PyTorch in the same precision loses, of
    several orders of summation and draws, + one rounding of the largest value. Each check runs from memory full of
    NaN, and again for equal bits: outputs always, gradients in PyTorch's deterministic mode. A check that raises or is
    wrong is a row, and the rest goes on.

    What is found is kept for ``impl="auto"`` in the user's cache (``AFN_CACHE``, else ``XDG_CACHE_HOME``), under the
    name of the device, its driver, torch, triton and the state of this library: what failed is never chosen, and what
    was measured faster at a call's kind and size comes first. ``AFN_VERDICTS=0`` in the environment ignores the file.

    Args:
        ops: names of ops; all unless told.
        impls: names of implementations; all unless told.
        size: "full", the shapes of a model of 7B and its audio encoder, up to 40 GB of a GPU's memory for a check
            (what does not fit is skipped), or "toy", small ones; by default full on a GPU, toy on a CPU.
        device: the current GPU, else the CPU, unless told.
        isolated: each op in a process of its own, so that one that ends (an illegal address, a hang) ends nothing
            else; by default on a GPU.
        time: whether implementations are timed.
        keep_file: whether the findings are kept for ``impl="auto"``.
        seed: of the inputs.
        progress: a line on stderr for every check.

    Returns:
        A ``Report`` with ``rows`` and ``failed``; ``print`` shows it as a table.

    Raises:
        ValueError: an op, an implementation or a size that does not exist; a device that is not here.
    """
    device_, size_, isolated_ = defaults(device, size, isolated)
    if wrong := unknown(ops, impls):
        raise ValueError(f"verify: {wrong}")
    runner = importlib.import_module(f"afn_kernels.verify.{'processes' if isolated_ else 'run'}")
    rows = []
    for row in runner.rows(size_, device_, ops=ops, impls=impls, seed=seed, time_them=time):
        rows.append(row)
        if progress and row["status"] != "timed":
            print(f"{row['op']}, {row['check']}: {row['impl']} {row['status']}", file=sys.stderr, flush=True)
    file = keep(device_, rows) if keep_file else ""
    report = importlib.import_module("afn_kernels.verify.report")
    ordered = importlib.import_module("afn_kernels.verify.run").ordered
    return report.Report(str(device_), size_, tuple(ordered(rows)), file)


def defaults(
    device: torch.device | str | None, size: str | None, isolated: bool | None
) -> tuple[torch.device, str, bool]:
    """Where, at which size and how, where a caller does not say.

    Raises:
        ValueError: the device is not here, or there is no such size.
    """
    gpu = torch.cuda.is_available()
    device = torch.device(("cuda" if gpu else "cpu") if device is None else device)
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not gpu):
        raise ValueError(f"verify: device={str(device)!r}, expected cpu, or cuda where PyTorch finds a GPU")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    size = size or ("full" if device.type == "cuda" else "toy")
    if size not in ("full", "toy"):
        raise ValueError(f"verify: size={size!r}, expected 'full' or 'toy'")
    return device, size, device.type == "cuda" if isolated is None else isolated


def unknown(ops: Sequence[str] | None, impls: Sequence[str] | None) -> str:
    """What of the names does not exist, in a line."""
    for name in ops or ():
        if name not in OPS:
            return f"no op {name!r}; there are {', '.join(sorted(OPS))}"
    known = sorted({row.name for op in OPS.values() for row in op.impls})
    for name in impls or ():
        if name not in known:
            return f"no implementation {name!r}; there are {', '.join(known)}"
    return ""


def keep(device: torch.device, rows: Iterable[Mapping[str, Any]]) -> str:
    """Writes the findings; the name of the file, or "" where the folder cannot be written, which a line says."""
    found = [
        dict(row) for row in rows if row["status"] in ("ok", "failed", "timed") and (row["impl"] or "seconds" in row)
    ]
    if not found:
        return ""
    try:
        return str(_verdicts.keep(device, found))
    except OSError as error:
        what = f"what verify found cannot be kept ({error})"
        print(f"afn_kernels: {what}; AFN_CACHE names another folder", file=sys.stderr)
        return ""
