"""Runs a function on several processes that talk by gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
import torch.multiprocessing

from afn_distributed import process

FORK = multiprocessing.get_context("forkserver")
# Imported once, by the process that all others are forked from.
FORK.set_forkserver_preload(["torch.distributed.fsdp", "afn_model.train.checkpoint", "afn_model.demo"])


def run(world: int, work: Callable, *args, join: bool = True):
    """Calls ``work(process, *args)`` on every rank.

    Whatever one of them raises is raised here, and ends the others; without ``join`` returns at once, with their
    ``processes``.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    where = (world, port, work, args)
    return torch.multiprocessing.start_processes(_rank, where, world, join, start_method="forkserver")


def _rank(rank: int, world: int, port: int, work: Callable, args: tuple) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    here = process.start("cpu", group=True, minutes=1)
    try:
        work(here, *args)
    finally:
        process.stop()
