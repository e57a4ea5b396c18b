"""Names the rank that ended when a collective of the other ranks fails."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from afn_distributed.process import Process

# Error texts of gloo, NCCL and the store when a peer has ended.
GONE = re.compile(r"Connection (closed|reset|refused)|closed by peer|remote process exited|Broken pipe|TCPStore", re.I)


class RankEnded(RuntimeError):
    """Another rank ended during work of all ranks."""


@contextmanager
def roll_call(process: Process, patience: float = 3.0) -> Iterator[None]:
    """A context for work of all ranks: if a rank ends inside, every other rank raises an error that names it.

    A broken connection does not say which rank ended. The rank that notices it sets a key in the store; a thread of
    each living rank answers by setting another key, and a rank that does not answer in time has ended. gloo notices a
    broken connection at once; under NCCL a rank may wait until torchrun or the group's time-out ends it.

    Args:
        process: this rank; without a store the context does nothing.
        patience: seconds to wait for answers.

    Raises:
        RankEnded: another rank ended; the message has its number if that could be found out. An exception of this rank
            itself passes unchanged, and its text is written to the store for the other ranks.
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
            with suppress(RuntimeError):  # the store may be gone; the exception itself matters more
                store.set(f"fault/{process.rank}", f"{type(error).__name__}: {error}".splitlines()[0][:500])
            raise
        raise RankEnded(f"rank {process.rank}: {_who(store, process, patience, str(error))}") from error
    finally:
        done.set()
        listener.join(patience)


def _answer(store: dist.Store, rank: int, done: threading.Event) -> None:
    """Answers a roll call of another rank, until ``done``."""
    with suppress(RuntimeError):
        while not done.wait(0.25):
            if store.check(["call"]):
                store.set(f"here/{rank}", "")
                return


def _who(store: dist.Store, process: Process, patience: float, seen: str) -> str:
    """Asks every rank to answer and reports those that do not; ``seen``: this rank's own error."""
    try:
        store.set("call", "")
        others = [rank for rank in range(process.world_size) if rank != process.rank]
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
            found = f"rank {', '.join(map(str, silent))} of {process.world_size} has ended without a word"
        else:
            found = f"a connection broke, though every rank still answers: {seen.splitlines()[0]}"
        # This rank ends next. Ranks that notice only then must report the first cause, not this rank.
        store.set("ended", found)
        return found
    except RuntimeError:
        return "another rank has ended, and with it the store that could say which; rank 0, unless torchrun holds it"
