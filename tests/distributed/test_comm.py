"""Messages: the same between threads as between processes, counted, in order, and an error where a rank is missing."""

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from afn_distributed.comm import GroupComm, in_threads, virtual_group

from tests.distributed.ranks import run

COUNTS = [[0, 3, 1], [2, 0, 0], [5, 1, 2]]  # elements from each of three ranks to each
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool)


def conversation(comm) -> dict[str, Any]:
    """Every kind of message between three ranks; what this rank has in the end, and the bytes that it sent."""
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        send = (100 * comm.rank + torch.arange(sum(COUNTS[comm.rank]))).to(dtype)
        received = comm.all_to_all(send, COUNTS[comm.rank], [row[comm.rank] for row in COUNTS])
        found[f"all to all {dtype}"] = received
    after, before = (comm.rank + 1) % 3, (comm.rank - 1) % 3
    # A tensor that is not contiguous, to one neighbour; two more to the other, both on their way at once.
    square = torch.arange(6.0).view(2, 3) + 10 * comm.rank
    parts = [torch.empty(3, 2), torch.empty(2, dtype=torch.bfloat16), torch.empty(4, dtype=torch.int64)]
    waits = [
        comm.exchange({after: square.T}, {before: parts[0]}),
        comm.exchange({before: square[0, :2].bfloat16()}, {after: parts[1]}),
        comm.exchange({before: torch.arange(4) + comm.rank}, {after: parts[2]}),
    ]
    for wait in waits:
        wait()
    found |= {f"exchange {number}": part for number, part in enumerate(parts)}
    # Rank 0 sends to rank 2 alone, and rank 1 has no part in it.
    alone = torch.empty(2)
    sends, receives = {0: ({2: torch.tensor([7.0, 8.0])}, {}), 2: ({}, {0: alone})}.get(comm.rank, ({}, {}))
    comm.exchange(sends, receives)()
    found["alone"] = alone if comm.rank == 2 else None
    found["nothing"] = comm.all_to_all(torch.empty(0), [0, 0, 0], [0, 0, 0])
    found["objects"] = comm.gather_objects({"rank": comm.rank, "text": "ä" * comm.rank})
    return found | {"sent": comm.sent}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def like_threads(process):
    comms = virtual_group(3)
    wanted = in_threads(lambda rank: conversation(comms[rank]), 3)[process.rank]
    same(conversation(GroupComm(dist.group.WORLD)), wanted)


def test_processes_get_what_threads_get():
    run(3, like_threads)


def test_what_threads_get():
    comms = virtual_group(3)
    for rank, found in enumerate(in_threads(lambda rank: conversation(comms[rank]), 3)):
        before, after = (rank - 1) % 3, (rank + 1) % 3
        firsts = [list(itertools.accumulate(row, initial=0))[rank] for row in COUNTS]
        elements = [100 * i + firsts[i] + n for i in range(3) for n in range(COUNTS[i][rank])]
        for dtype in DTYPES:
            assert found[f"all to all {dtype}"].tolist() == torch.tensor(elements, dtype=torch.int64).to(dtype).tolist()
        assert found["exchange 0"].tolist() == [[10 * before + n, 10 * before + n + 3] for n in range(3)]
        assert found["exchange 1"].tolist() == [10 * after, 10 * after + 1]
        assert found["exchange 2"].tolist() == [after, after + 1, after + 2, after + 3]
        assert found["alone"] is None or found["alone"].tolist() == [7, 8]
        assert found["objects"] == [{"rank": one, "text": "ä" * one} for one in range(3)]
        to_others = sum(COUNTS[rank]) - COUNTS[rank][rank]
        sent = to_others * sum(dtype.itemsize for dtype in DTYPES) + 6 * 4 + 2 * 2 + 4 * 8
        assert found["sent"] == sent + (8 if rank == 0 else 0)


def test_a_message_is_a_copy():
    """A thread may overwrite what it has sent."""
    a, b = virtual_group(2)
    x = torch.ones(3)
    a.exchange({1: x}, {})()
    x.zero_()
    received = torch.empty(3)
    b.exchange({}, {0: received})()
    assert received.tolist() == [1, 1, 1]


def test_messages_are_matched_in_the_order_of_posting():
    """Waiting for the second receive does not give it the first message."""
    a, b = virtual_group(2)
    received = [torch.empty(1), torch.empty(1)]
    waits = [b.exchange({}, {0: one}) for one in received]
    for value in (1.0, 2.0):
        a.exchange({1: torch.tensor([value])}, {})()
    for wait in reversed(waits):
        wait()
    assert [one.item() for one in received] == [1, 2]


def test_a_rank_that_never_comes_is_named():
    comms = virtual_group(2, patience=0.2)
    with pytest.raises(RuntimeError, match=r"rank 0: nothing from rank 1 in 0\.2 s"):
        comms[0].all_to_all(torch.zeros(2), [1, 1], [1, 1])


def test_threads_return_in_order_and_raise_what_was_raised():
    assert in_threads(lambda rank: rank**2, 4) == [0, 1, 4, 9]

    def work(rank):
        if rank == 2:
            raise KeyError("lost")
        return rank

    with pytest.raises(KeyError, match="lost"):
        in_threads(work, 4)
