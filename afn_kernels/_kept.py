"""Tensors made once and kept: the same ones whatever call happens to be the first to need them.

A tensor carries the mode in which it was made: one of ``torch.inference_mode`` cannot be saved for a backward, one
of a fake mode has no values, one allocated while a CUDA graph is captured belongs to the graph. ``lru_cache`` would
hand such a tensor to every later call.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from typing import TypeVar

import torch

Made = TypeVar("Made")
CPU = torch.device("cpu")


def kept(make: Callable[..., Made] | None = None, *, most: int | None = None, on_device: bool = False):
    """Calls ``make(*args)`` once for each set of arguments and keeps what it returns, as ``functools.lru_cache`` does.

    What is kept depends on the arguments alone: see ``made_alone``. While torch.compile traces and under fake tensors
    ``make`` is called in place and nothing is kept. On a stream that is being captured into a CUDA graph a table that
    is not there yet is an error, since a copy from the host would break the capture.

    Args:
        make: a function of hashable arguments, a ``torch.device`` among them where it makes tensors on one. It says
            the dtype of every tensor: the default one is the program's. Nobody may write into what it returns.
        most: how many results to keep; the oldest goes. None keeps all. What a graph was given stays.
        on_device: ``make`` copies nothing from the host: within a capture it is called in place, as a part of the
            graph.
    """
    if make is None:
        return partial(kept, most=most, on_device=on_device)
    table: dict[tuple, Made] = {}
    of_graphs: dict[tuple, Made] = {}  # a graph keeps an address for good, so these are never given back
    TABLES.extend((table, of_graphs))

    @wraps(make)
    def get(*args) -> Made:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not torch.Tensor:
            return make(*args)
        args = tuple(_indexed(x) if isinstance(x, torch.device) else x for x in args)
        device = next((x for x in args if isinstance(x, torch.device)), CPU)
        found = table.get(args)
        if found is None:
            found = of_graphs.get(args)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            if found is not None:
                table.pop(args, None)
                return of_graphs.setdefault(args, found)
            if on_device:
                return make(*args)
            refuse_capture(make.__module__.split(".")[1])
        if found is None:
            if most and len(table) >= most:
                if device.type == "cuda":  # kernels of other streams may still read what is given back
                    torch.cuda.synchronize(device)
                table.pop(next(iter(table)), None)
            found = table.setdefault(args, made_alone(partial(make, *args), device))
        return found

    return get


def refuse_capture(what: str) -> None:
    """For what has to be loaded or copied to the device before it can run there.

    Raises:
        RuntimeError: torch's current stream is being captured.
    """
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{what} is being captured for the first time; call it once before the capture")


def made_alone(make: Callable[[], Made], device: torch.device = CPU) -> Made:
    """``make()`` as if the program had done nothing else, ready for every stream.

    Modes of autograd, autocast and dispatch, the default device, the stream and the private memory of CUDA graphs
    belong to a thread, so a new thread has none of them. The default dtype belongs to the process, so ``make`` says its
    dtypes. Where no thread can start, as when Python is about to end, ``make`` is called in place.

    Raises:
        RuntimeError: a stream of ``device`` is being captured.
    """
    if device.type == "cuda":
        refuse_capture("a call that keeps tensors on the GPU")

    def alone() -> Made:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            made = make()
            if device.type == "cuda":
                torch.cuda.current_stream().synchronize()
        return made

    made: list[Made] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(alone())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="afn_kernels.made_alone")
    try:
        thread.start()
    except RuntimeError:
        with torch.inference_mode(False):
            return alone()
    thread.join()
    if failed:
        raise failed.pop()
    return made.pop()


def forget() -> None:
    """Empties every table, for tests."""
    for table in TABLES:
        table.clear()


def _indexed(device: torch.device) -> torch.device:
    """The device that a bare "cuda" stands for now."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


TABLES: list[dict] = []
