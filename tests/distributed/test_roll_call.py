"""A rank that ends is named by all others: between processes, and word by word between threads."""

import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist
from afn_distributed.hybrid import SequenceParallel
from afn_distributed.plan import make_plan
from afn_distributed.process import Process
from afn_distributed.roll_call import RankEnded, roll_call

from bench.sequence_parallel import one_rank
from tests.distributed.inputs import qkv
from tests.distributed.ranks import run

BROKEN = "Connection closed by peer [127.0.0.1]:4711\nand where that was"


def one_dies(process, folder, how):
    """Rank 2 of four ends inside attention; what the others say goes to files."""
    sp_group = SequenceParallel.of(process, 1, 4)
    plan = make_plan([0, 64], ring=4, heads=4, kv_heads=2, head_dim=8)
    parts = qkv(64, 4, 2)
    try:
        with roll_call(process):
            one_rank(sp_group, plan, *parts)
            if process.rank == 2:
                how()
            one_rank(sp_group, plan, *parts)
    except RankEnded as error:
        (folder / str(process.rank)).write_text(str(error))


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def at_fault():
    raise ValueError("this is no recording")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (killed, "rank 2 of 4 has ended without a word"),
        (at_fault, "rank 2 failed first: ValueError: this is no recording"),
    ],
)
def test_a_rank_that_ends_is_named_by_all_others(how, said, tmp_path):
    """They stop by themselves: nobody ends them from outside."""
    began = time.perf_counter()
    for process in run(4, one_dies, tmp_path, how, join=False).processes:
        process.join(30)
        assert process.exitcode is not None
    assert time.perf_counter() - began < 30
    found = {int(file.name): file.read_text() for file in tmp_path.iterdir()}
    assert found == {rank: f"rank {rank}: {said}" for rank in (0, 1, 3)}


def a_rank(store, rank, ranks):
    return Process(rank, ranks, rank, torch.device("cpu"), True, store)


def test_a_broken_connection_though_all_are_there():
    store, over = dist.HashStore(), threading.Event()

    def other():
        with roll_call(a_rank(store, 1, 2)):
            over.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    with (
        pytest.raises(RankEnded, match=r"rank 0: a connection broke, though every rank still answers: .*:4711$"),
        roll_call(a_rank(store, 0, 2)),
    ):
        raise RuntimeError(BROKEN)
    over.set()
    thread.join(10)


def test_what_was_found_first_is_repeated_later():
    """The first to notice names ranks 1 and 2; a rank that notices later says the same, not that rank 0 ended."""
    store = dist.HashStore()
    for rank in (0, 3):
        if rank == 0:
            # Rank 3 is still there when rank 0 calls.
            dist.PrefixStore("roll_call", store).set("here/3", "")
        with (
            pytest.raises(RankEnded, match=f"rank {rank}: rank 1, 2 of 4 has ended without a word"),
            roll_call(a_rank(store, rank, 4), patience=0.3),
        ):
            raise RuntimeError(BROKEN)


def test_errors_of_this_rank_pass_and_are_told():
    store = dist.HashStore()
    with pytest.raises(ValueError, match="a line"), roll_call(a_rank(store, 1, 2)):
        raise ValueError("a line\nand another")
    assert dist.PrefixStore("roll_call", store).get("fault/1") == b"ValueError: a line"
    with (
        pytest.raises(RankEnded, match=r"rank 0: rank 1 failed first: ValueError: a line$"),
        roll_call(a_rank(store, 0, 2), patience=5),
    ):
        raise RuntimeError(BROKEN)


def test_a_rank_alone_is_left_alone():
    with pytest.raises(RuntimeError, match="Connection closed") as raised, roll_call(a_rank(None, 0, 1)):
        raise RuntimeError(BROKEN)
    assert not isinstance(raised.value, RankEnded)
