"""Copies of a state in memory that stays."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.testing._internal.distributed.fake_pg import FakeStore

from afn_model.train import staging
from afn_model.train.staging import KeptStager


@pytest.fixture
def one_rank():
    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    yield
    dist.destroy_process_group()


def test_copies_are_taken_again_into_the_same_memory(monkeypatch):
    monkeypatch.setattr(staging, "CHUNK", 256)
    stager = KeptStager(pin=False)
    state = {
        "a": torch.arange(50.0),
        "b": torch.arange(15).view(3, 5),
        "large": torch.arange(100.0),
        "step": torch.tensor(7.0),
        "none": torch.empty(0, 4),
        "part": torch.arange(20.0)[::2].bfloat16(),
    }
    places = []
    for _ in range(2):
        first = stager.stage(state)
        wanted = {name: tensor.clone() for name, tensor in state.items()}
        for tensor in state.values():
            tensor.add_(1)
        assert all(torch.equal(first[name], wanted[name]) for name in state)
        assert all(first[name].dtype == wanted[name].dtype for name in state)
        places.append([tensor.data_ptr() for tensor in first.values()])
    assert places[0] == places[1]
    # 200 + 120 bytes, 400 in a chunk of their own, then the rest.
    assert [len(chunk) for chunk in stager.chunks] == [256, 256, 400, 256]


@pytest.mark.slow
def test_a_sharded_tensor_stays_one(one_rank):
    mesh = init_device_mesh("cpu", (1,))
    state = {"x": DTensor.from_local(torch.arange(6.0), mesh, [Replicate()])}
    staged = KeptStager(pin=False).stage(state)["x"]
    state["x"].to_local().zero_()
    assert isinstance(staged, DTensor)
    assert staged.placements == (Replicate(),)
    assert torch.equal(staged.to_local(), torch.arange(6.0))
