"""Which rank has ended, when the others notice that one has."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from afn_distributed.process import Process

# How gloo, NCCL and the store say that a peer is no longer there.
GONE = re.compile(r"Connection (closed|reset|refused)|closed by peer|remote process exited|Broken pipe|TCPStore", re.I)


class RankEnded(RuntimeError):
    """Another rank ended while this one worked with it."""


@contextmanager
def roll_call(process: Process, patience: float = 3.0) -> Iterator[None]:
    """Work that all ranks do together: where one of them ends, every other one says which.

    A connection that breaks does not say whose end it was. The rank that sees it calls the roll: a thread of every
    living rank answers over the store, and who does not answer in time has ended. gloo sees a broken connection at
    once; under NCCL a rank may wait until torchrun or the group's time-out ends it.

    Args:
        process: this rank.
        patience: seconds to wait for answers.

    Raises:
        RankEnded: another rank ended, with its number where that could be found out. What this rank itself raises goes
            its way, and the others are told.
    """
    if process.store is None:
        yield
        return
    store: Any = dist.PrefixStore("roll_call", process.store)  # torch declares no clone()
    done = threading.Event()
    listener = threading.Thread(target=_answer, args=(store.clone(), process.rank, done), daemon=True)
    listener.start()
    try:
        yield
    except Exception as error:
        lost = isinstance(error, RuntimeError) and GONE.search(str(error))
        if not lost:
            with suppress(RuntimeError):  # a store that is gone is no reason to hide what happened
                store.set(f"fault/{process.rank}", f"{type(error).__name__}: {error}".splitlines()[0][:500])
            raise
        raise RankEnded(f"rank {process.rank}: {_who(store, process, patience, str(error))}") from error
    finally:
        done.set()
        listener.join(patience)


def _answer(store: dist.Store, rank: int, done: threading.Event) -> None:
    with suppress(RuntimeError):
        while not done.wait(0.25):
            if store.check(["call"]):
                store.set(f"here/{rank}", "")
                return


def _who(store: dist.Store, process: Process, patience: float, seen: str) -> str:
    try:
        store.set("call", "")
        others = [rank for rank in range(process.world) if rank != process.rank]
        until = time.monotonic() + patience
        while True:
            faults = [rank for rank in others if store.check([f"fault/{rank}"])]
            silent = [rank for rank in others if not store.check([f"here/{rank}"])]
            if store.check(["ended"]):
                return store.get("ended").decode()
            if faults or not silent or time.monotonic() > until:
                break
            time.sleep(0.1)
        if faults:
            found = "; ".join(f"rank {rank} failed first: {store.get(f'fault/{rank}').decode()}" for rank in faults)
        elif silent:
            found = f"rank {', '.join(map(str, silent))} of {process.world} has ended without a word"
        else:
            found = f"a connection broke, though every rank still answers: {seen.splitlines()[0]}"
        # Those who notice only when this rank ends shall not take it for the cause.
        store.set("ended", found)
        return found
    except RuntimeError:
        return "another rank has ended, and with it the store that could say which; rank 0, unless torchrun holds it"
