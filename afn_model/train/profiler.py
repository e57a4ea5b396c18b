"""A profiler over a few steps of a run, and a memory snapshot when the GPU runs out of memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from afn_model.files import write_text

HISTORY = 100_000  # allocations kept for the snapshot
STEP = "ProfilerStep"  # the name of the profiler's own event for a step


@contextmanager
def profile_window(folder: str | Path, first: int, last: int) -> Iterator[profile]:
    """Profiles the steps ``first`` to ``last`` (both included) of this process, counted from 0.

    Call ``.step()`` of what is yielded after every step. Writes FOLDER/trace-FIRST-LAST.json.gz for chrome://tracing or
    ui.perfetto.dev, and FOLDER/kernels-FIRST-LAST.txt, the time of every kernel. A run that ends inside the window
    writes what there is.

    Raises:
        ValueError: a window that ends before it begins.
    """
    if not 0 <= first <= last:
        raise ValueError(f"profiler window from step {first} to {last}: expected 0 <= first <= last")
    folder = Path(folder)

    def write(profiled: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(folder / f"trace-{first}-{last}.json.gz"))
        steps = len({e.name for e in profiled.events() if e.name.startswith(STEP)}) or 1
        write_text(folder / f"kernels-{first}-{last}.txt", table(kernels(profiled), steps))
        print(f"profile of steps {first} to {last}: {folder}", flush=True)

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    warm = min(first, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*warmup.*")
        steps = schedule(skip_first=first - warm, wait=0, warmup=warm, active=last - first + 1, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write, acc_events=True) as window:
        yield window


def kernels(profiled: profile) -> list[dict[str, Any]]:
    """Time by kernel, longest first: name, calls, ms, share. Kernels of a GPU; on a CPU operators by their own time."""
    by_name: dict[str, list[float]] = {}
    events = profiled.events() or []
    on_gpu = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    for event in on_gpu or events:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if not event.name.startswith(STEP) and not getattr(event, "is_user_annotation", False):
            row = by_name.setdefault(event.name, [0, 0.0])
            row[0] += 1
            row[1] += spent / 1e3
    total = sum(ms for _, ms in by_name.values()) or 1.0
    ordered = sorted(by_name.items(), key=lambda x: -x[1][1])
    return [{"name": n, "calls": calls, "ms": ms, "share": ms / total} for n, (calls, ms) in ordered if ms > 0]


def table(rows: list[dict[str, Any]], steps: int) -> str:
    """``kernels`` as text, times and calls per step."""
    lines = [f"{'ms/step':>10}{'share':>8}{'calls':>9}  kernel"]
    lines += [f"{x['ms'] / steps:>10.3f}{x['share']:>8.1%}{x['calls'] / steps:>9.1f}  {x['name'][:160]}" for x in rows]
    return "\n".join(lines) + "\n"


@contextmanager
def snapshot_on_oom(folder: str | Path, stacks: bool = False) -> Iterator[None]:
    """Writes FOLDER/out-of-memory.pickle where the GPU runs out of memory inside the block, and says what to lower.

    Args:
        folder: of the stage.
        stacks: also keep the Python stack of every allocation, which costs some speed.

    Raises:
        torch.OutOfMemoryError: the same error, with one line of what can be done.
    """
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.memory._record_memory_history(context="all" if stacks else None, max_entries=HISTORY)
    try:
        yield
    except torch.OutOfMemoryError as error:
        file = Path(folder) / "out-of-memory.pickle"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(file))
        free, there = torch.cuda.mem_get_info()
        raise torch.OutOfMemoryError(
            f"the GPU is out of memory ({free / 1e9:.1f} of {there / 1e9:.1f} GB free); what held it is in {file}, for "
            "pytorch.org/memory_viz. Lower the stage's context, set the layout's recompute to full, shard over more "
            f"ranks, or train with lora. {str(error).partition(chr(10))[0]}".rstrip()
        ) from error
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
