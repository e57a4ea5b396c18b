"""Runs a function, or the command line, on several processes that talk by gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing

from afn_distributed import process

FORK = multiprocessing.get_context("forkserver")
# Imported once, by the process that all others are forked from.
FORK.set_forkserver_preload(
    ["torch.distributed.fsdp", "torch._dynamo", "afn_model.train.trainer", "afn_model.cli.commands", "afn_model.demo"]
)


def run(world: int, work: Callable, *args, join: bool = True):
    """Calls ``work(process, *args)`` on every rank.

    Whatever one of them raises is raised here, and ends the others; without ``join`` returns at once, with their
    ``processes``.
    """
    where = (world, free_port(), work, args)
    return torch.multiprocessing.start_processes(_rank, where, world, join, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _is_rank(rank: int, world: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def _rank(rank: int, world: int, port: int, work: Callable, args: tuple) -> None:
    _is_rank(rank, world, port)
    here = process.start("cpu", group=True, minutes=1)
    try:
        work(here, *args)
    finally:
        process.stop()


class WarmCommand:
    """A command of ``bench.resume`` without the seconds that imports take, and without torchrun's agent.

    Like ``bench.resume.start`` it leads a session of its own, which holds all that it starts.
    """

    def __init__(self, arguments: list[str], log: Path):
        head, afn = arguments[: (cli := arguments.index("afn_model.cli"))], arguments[cli + 1 :]
        world = next((int(x.partition("=")[2]) for x in head if x.startswith("--nproc-per-node=")), 1)
        self.process = FORK.Process(target=_command, args=(world, afn, str(log)))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        self.process.join(seconds)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("afn", seconds or 0)
        return code


def _command(world: int, arguments: list[str], log: str) -> None:
    os.setsid()
    with open(log, "a") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    port, fork = free_port(), multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_afn, args=(rank, world, port, arguments)) for rank in range(1, world)]
    for rank in ranks:
        rank.start()
    _afn(0, world, port, arguments)
    for rank in ranks:
        rank.join()
    if any(rank.exitcode for rank in ranks):
        raise SystemExit(1)


def _afn(rank: int, world: int, port: int, arguments: list[str]) -> None:
    from afn_model.cli import main

    _is_rank(rank, world, port)
    if code := main(arguments):
        raise SystemExit(code)
