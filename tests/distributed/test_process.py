"""Ranks: sums and objects over them, and what the others see when one dies."""

import os
import signal
import time

import pytest
import torch
from afn_distributed import process

from tests.distributed.ranks import run


def together(here):
    rank = torch.tensor([float(here.rank), 1.0])
    assert process.sum_over(rank).tolist() == [3.0, 3.0]
    assert rank.tolist() == [here.rank, 1.0]
    assert process.broadcast_object({"from": here.rank}, 1) == {"from": 1}
    process.barrier()


def test_what_ranks_share():
    run(3, together)


def death(here, folder: str):
    process.barrier()
    if here.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        process.sum_over(torch.ones(1))
    with open(f"{folder}/{here.rank}", "w") as file:
        file.write(str(time.monotonic() - began))


def test_a_dead_peer_is_noticed_at_once(tmp_path):
    survivor, victim = run(2, death, str(tmp_path), join=False).processes
    victim.join(60)
    survivor.join(60)
    assert victim.exitcode == -signal.SIGKILL
    assert float((tmp_path / "0").read_text()) < 5


def test_a_rank_alone_needs_no_group():
    here = process.start("cpu")
    assert (here.rank, here.world_size, here.group) == (0, 1, False)
    assert not torch.distributed.is_initialized()
    assert process.sum_over(torch.tensor(3.0)) == 3
    assert process.broadcast_object("x") == "x"
    process.barrier()
    process.stop()


def test_a_device_that_is_not_there():
    if torch.cuda.device_count() < 64:
        with pytest.raises(ValueError, match="rank 0 wants cuda:64, but this machine has"):
            process.start("cuda:64")
