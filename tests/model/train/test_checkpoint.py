"""Checkpoints: whole or absent, the same bytes for any number of ranks, one clear line when they cannot be."""

import errno
import json
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from afn_distributed.shard import shard
from afn_model.train import checkpoint as state
from afn_model.train.checkpoint import Checkpoints, restore, training_state
from afn_model.train.optimiser import make_optimiser
from afn_model.train.staging import KeptStager
from tests.budget import assert_same_but_rounding
from tests.distributed.ranks import FORK, run
from tests.orders import in_orders

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
ROOT = Path(__file__).parents[3]


class Small(nn.Module):
    """Two blocks and a head; the first block is frozen, and in low precision where asked."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 5)
        self.blocks[0].requires_grad_(False)

    def loss(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x).square().mean()


def small(seed: int = 0, backwards: bool = False, width: int = 12):
    torch.manual_seed(seed)
    model = Small(width)
    named = list(model.named_parameters())
    return model, make_optimiser(named[::-1] if backwards else named, lr=1e-2, weight_decay=0.1)


def step(model, optimiser, number: int, rank: int = 0, world: int = 1):
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(number))
    (model.loss(x[rank::world]) / world).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def whole(model) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return {n: t.full_tensor() if hasattr(t, "full_tensor") else t.clone() for n, t in tensors.items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_loaded_run_goes_on_bit_for_bit(tmp_path):
    model, optimiser = small()
    for number in range(4):
        step(model, optimiser, number)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, training_state(model, optimiser), {"stage": "s", "position": [1, 2]})
    drawn = torch.rand(3)
    for number in range(4, 7):  # while it is written
        step(model, optimiser, number)
    wanted = whole(model)

    other, its = small(seed=1, backwards=True)
    other.blocks[0].load_state_dict(model.blocks[0].state_dict())
    path = checkpoints.latest()
    assert path == tmp_path / "step-00000004"
    tensors = training_state(other, its)
    assert "model.blocks.0.weight" not in tensors
    assert checkpoints.load(path, tensors) == {"stage": "s", "position": [1, 2]} == checkpoints.facts(path)
    restore(other, its, tensors)
    assert torch.equal(torch.rand(3), drawn)
    for number in range(4, 7):
        step(other, its, number)
    assert same(whole(other), wanted)


def test_state_before_the_first_step_is_that_of_a_fresh_run():
    (model, optimiser), (other, its) = small(), small()
    training_state(other, its)
    for number in range(3):
        step(model, optimiser, number)
        step(other, its, number)
    assert same(whole(model), whole(other))


def test_only_the_newest_are_kept_and_left_overs_go(tmp_path):
    (tmp_path / ".step-00000009").mkdir()
    (tmp_path / ".step-00000009" / "__0_0.distcp").write_text("half")
    (tmp_path / "notes").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (1, 2, 2, 10):
        checkpoints.save(number, {"x": torch.full((3,), number)}, {"step": number}, wait=number == 2)
    checkpoints.wait()
    assert sorted(os.listdir(tmp_path)) == ["notes", "step-00000002", "step-00000010"]
    assert checkpoints.facts(checkpoints.latest()) == {"step": 10}
    for keep, left in ((1, ["notes", "step-00000010"]), (0, ["notes"])):
        checkpoints.prune(keep)
        assert sorted(os.listdir(tmp_path)) == left


@pytest.mark.parametrize("harm", ["flip", "cut", "absent", "facts"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, harm):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(number, {"x": torch.arange(1000)}, {})
    file = next(checkpoints.latest().glob("__0_*"))
    data = file.read_bytes()
    if harm == "flip":
        file.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    elif harm == "cut":
        file.write_bytes(data[:-1])
    elif harm == "absent":
        file.unlink()
    else:
        (file.parent / "facts.json").write_text("{")
    with pytest.warns(UserWarning, match="step-00000002: passed over"):
        assert checkpoints.latest().name == "step-00000001"
    checkpoints.save(2, {"x": torch.arange(1000)}, {}, wait=True)
    assert checkpoints.latest().name == "step-00000002"


def test_a_whole_checkpoint_outlives_later_damaged_ones(tmp_path):
    """Going on from step 1, as step 2 is damaged, must not drop what it has just written for what cannot be read."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(2, {"x": torch.arange(1000)}, {}, wait=True)
    next((tmp_path / "step-00000002").glob("__0_*")).write_bytes(b"")
    with pytest.raises(ValueError, match="every checkpoint is damaged"), pytest.warns(UserWarning, match="passed over"):
        checkpoints.latest()
    checkpoints.save(1, {"x": torch.arange(1000)}, {}, wait=True)
    assert checkpoints.latest() == tmp_path / "step-00000001"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(1)}, "another model: the checkpoint lacks y"),
        ({"x": torch.zeros(3, 2)}, r"x is \(2, 3\) torch.float32, \(3, 2\) torch.float32 is wanted"),
        ({"x": torch.zeros(2, 3, dtype=torch.bfloat16)}, "torch.bfloat16 is wanted"),
        ({"x": None}, "also has x"),
    ],
)
def test_a_checkpoint_of_another_model(tmp_path, change, message):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.ones(2, 3), "z": torch.ones(2)}, {})
    tensors = {"x": torch.zeros(2, 3), "z": torch.zeros(2)} | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        checkpoints.load(checkpoints.latest(), tensors)
    assert not any(tensor.any() for tensor in tensors.values())


def test_a_part_that_cannot_be_read_is_one_line(tmp_path):
    """It was whole when its checksum was looked at, and is not when its tensors are read."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"model.x": torch.arange(1000.0)}, {}, wait=True)
    path, model = checkpoints.latest(), nn.ParameterDict({"x": torch.zeros(1000)})
    next(path.glob("__0_*")).write_bytes(b"")
    for read in (
        lambda: checkpoints.load(path, {"model.x": torch.zeros(1000)}),
        lambda: checkpoints.load_weights(path, model),
    ):
        with pytest.raises(ValueError, match=r"step-00000001: cannot be read: ") as error:
            read()
        assert "\n" not in str(error.value)
    (path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-00000001: cannot be read: "):
        checkpoints.load(path, {})


def test_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path).latest() is None
    with pytest.raises(ValueError, match="no checkpoint"):
        Checkpoints(tmp_path).facts(tmp_path)
    with pytest.raises(ValueError, match="keep 0"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize("where", ["tensors", "facts"])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, where):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.ones(5)}, {}, wait=True)
    with monkeypatch.context() as patched:

        def full(*_args, **_kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if where == "tensors":
            patched.setattr(dcp.FileSystemWriter, "write_data", full)
        else:
            patched.setattr(state, "publish", full)
        checkpoints.save(2, {"x": torch.ones(5)}, {})
        line = "^checkpoint at step 2 could not be written: No space left on device; the previous one is step 1$"
        with pytest.raises(OSError, match=line):
            checkpoints.wait()
    assert os.listdir(tmp_path) == ["step-00000001"]
    checkpoints.save(3, {"x": torch.ones(5)}, {}, wait=True)
    assert checkpoints.latest().name == "step-00000003"


LIMITED = """
import resource, sys, torch
from afn_model.train.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints.save(1, {"x": torch.ones(1000)}, {}, wait=True)
try:
    checkpoints.save(2, {"x": torch.ones(1_000_000)}, {}, wait=True)
except OSError as error:
    print(error)
print(checkpoints.latest().name)
"""


def test_a_file_that_may_not_grow(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("checkpoint at step 2 could not be written: ")
    assert lines[0].endswith("File too large; the previous one is step 1")
    assert lines[1] == "step-00000001"
    assert os.listdir(tmp_path) == ["step-00000001"]


def save_for_ever(folder: str, ready) -> None:
    checkpoints = Checkpoints(folder)
    ready.set()
    for number in range(1, 10_000):
        checkpoints.save(number, {"x": torch.full((500_000,), float(number))}, {"step": number})


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
    draw = random.Random(0)
    for number in range(8):
        ready = FORK.Event()
        victim = FORK.Process(target=save_for_ever, args=(str(tmp_path / str(number)), ready))
        victim.start()
        assert ready.wait(60)
        until = time.monotonic() + 60
        while number % 2 and time.monotonic() < until and not list((tmp_path / str(number)).glob("step-*")):
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.4))
        victim.kill()
        victim.join()
    found = 0
    for folder in tmp_path.iterdir():
        checkpoints = Checkpoints(folder)
        path = checkpoints.latest()
        if path is not None:
            found += 1
            x = torch.zeros(500_000)
            facts = checkpoints.load(path, {"x": x})
            assert (x == facts["step"]).all()
            assert path.name == f"step-{facts['step']:08d}"
        assert not list(folder.glob(".*"))
    assert found >= 4


def resharded(here, folder: str, load: bool, save: bool, steps: range):
    model, optimiser = small(seed=5 if load else 0)
    if load:
        model.blocks[0].load_state_dict(small()[0].blocks[0].state_dict())
    shard(model, here, blocks=model.blocks, compute_dtype=torch.float32, forwards=("loss",))
    optimiser = make_optimiser(list(model.named_parameters()), lr=1e-2, weight_decay=0.1)
    checkpoints = Checkpoints(folder)
    checkpoints.stager = KeptStager(pin=False)  # as for a GPU, but that no memory is locked
    if load:
        tensors = training_state(model, optimiser)
        assert checkpoints.load(checkpoints.latest(), tensors) == {"step": steps.start}
        restore(model, optimiser, tensors)
    for number in steps:
        step(model, optimiser, number, here.rank, here.world_size)
    if save:
        checkpoints.save(steps.stop, training_state(model, optimiser), {"step": steps.stop})
        # Collectives of the run go on meanwhile.
        step(model, optimiser, 99, here.rank, here.world_size)
        checkpoints.wait()
    checkpoints.close()


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_the_same(tmp_path):
    model, optimiser = small()
    for number in range(3):
        step(model, optimiser, number)
    Checkpoints(tmp_path).save(3, training_state(model, optimiser), {"step": 3}, wait=True)
    run(2, resharded, str(tmp_path), True, True, range(3, 5))
    run(4, resharded, str(tmp_path), True, True, range(5, 7))
    files = json.loads((tmp_path / "step-00000007" / "facts.json").read_text())["files"]
    assert {name[:3] for name in files} == {"__0", "__1", "__2", "__3", ".me"}
    other, its = small(seed=1)
    other.blocks[0].load_state_dict(model.blocks[0].state_dict())
    checkpoints = Checkpoints(tmp_path)
    tensors = training_state(other, its)
    checkpoints.load(checkpoints.latest(), tensors)
    restore(other, its, tensors)

    def alone(steps: int):
        """One rank from the start: Adam amplifies what the first steps lose, in every order."""
        model, optimiser = small()
        for number in range(steps):
            step(model, optimiser, number)
        return whole(model)

    assert_same_but_rounding(whole(other), in_orders(lambda: alone(7)))
    step(other, its, 7)
    assert_same_but_rounding(whole(other), in_orders(lambda: alone(8)))


def failing(here, folder: str):
    checkpoints = Checkpoints(folder)
    x = torch.arange(10.0)
    checkpoints.save(1, {"x": x, f"rng.{here.rank}": torch.get_rng_state()}, {}, wait=True)
    if here.rank == 1:

        def full(*_args, **_kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        dcp.FileSystemWriter.write_data = full
    checkpoints.save(2, {"x": x, f"rng.{here.rank}": torch.get_rng_state()}, {})
    with pytest.raises(OSError, match=r"step 2 .*: No space left on device; the previous one is step 1"):
        checkpoints.wait()
    hashed, plain = [], state.fingerprint
    state.fingerprint = lambda path: hashed.append(path.name) or plain(path)
    assert checkpoints.latest().name == "step-00000001"
    assert {name[:3] for name in hashed} == ({"__0", ".me"} if here.rank == 0 else {"__1"}), "each its own"
    if here.rank == 1:
        next(checkpoints.folder.glob("step-*/__1_*")).write_bytes(b"")
    torch.distributed.barrier()
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ValueError, match="every checkpoint is damaged"):
        checkpoints.latest()
    assert len(caught) == (here.rank == 0)


def test_a_disk_full_for_one_rank_fails_the_save_on_all(tmp_path):
    run(2, failing, str(tmp_path))
    assert os.listdir(tmp_path) == ["step-00000001"]
