"""Host memory: pieces that begin anew when all are free, what a machine has, and copies in order."""

import gc
from pathlib import Path

import pytest
import torch

from afn_model.train import host_memory
from afn_model.train.host_memory import Arena, Lane, available

CPU = torch.device("cpu")


class PieceOwner:
    """What a piece of an arena belongs to."""


def test_memory_is_zeros_of_its_size():
    found = host_memory.host_memory(1000, CPU)
    assert (found.dtype, found.shape) == (torch.uint8, (1000,))
    assert not found.any()
    assert host_memory.host_memory(0, CPU).numel() == 0
    with pytest.raises(ValueError, match=r"the host has no 1000000000\.0 GB for what is offloaded: "):
        host_memory.host_memory(10**18, CPU)


def test_an_arena_begins_anew_when_nothing_is_in_use(monkeypatch):
    monkeypatch.setattr(host_memory, "CHUNK", 1000)
    arena, owners = Arena(CPU), [PieceOwner() for _ in range(4)]
    one, two, three = (arena.take(torch.empty(n), owner) for n, owner in zip((100, 40, 300), owners, strict=False))
    assert [len(chunk) for chunk in arena.chunks] == [1600, 4800]
    assert (one.data_ptr(), two.data_ptr()) == (arena.chunks[0].data_ptr(), arena.chunks[0].data_ptr() + 512)
    assert three.data_ptr() == arena.chunks[1].data_ptr()
    del owners[:2]
    gc.collect()
    assert arena.live == 1
    owners.clear()
    gc.collect()
    assert arena.live == 0
    again = arena.take(torch.empty(7, 5, dtype=torch.bfloat16), owner := PieceOwner())
    assert again.data_ptr() == arena.chunks[0].data_ptr()
    assert (again.shape, again.dtype, len(arena.chunks)) == ((7, 5), torch.bfloat16, 2)
    del owner


def test_what_a_machine_has(tmp_path, monkeypatch):
    read, files = Path.read_text, {"/proc/meminfo": "MemTotal: 90 kB\nMemAvailable:  50 kB\n"}

    def text(path, **options):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", text)
    assert available() == 50 * 1024
    files |= {"/sys/fs/cgroup/memory.max": "40000\n", "/sys/fs/cgroup/memory.current": "30000\n"}
    assert available() == 10_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert available() == 50 * 1024
    monkeypatch.setattr(Path, "read_text", read)
    assert 0 < available() < float("inf")


def test_on_a_cpu_a_copy_is_done_when_it_returns():
    lane, to = Lane(CPU), torch.zeros(3)
    assert lane.copy(to, torch.ones(3), lane.reached()) is None
    lane.wait(None)
    assert to.tolist() == [1, 1, 1]
