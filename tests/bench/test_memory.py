"""The table of memory: whole, below what a GPU has, and what a count gives now."""

import gc
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from afn_model.train.run_layout import for_stage, read_layout
from bench import memory
from bench.memory import MOST, RANKS, RESERVE, cases, count, counting, markdown

ROOT = Path(__file__).parents[2]
FILE = ROOT / memory.OUT
ROWS = memory.read(FILE)
CASES = {(case.stage.name, case.layout): case for case in cases()}
# The one with the least room, and the one with the least to do.
COUNTED = [("pre-2", "8gpu"), ("pre-1", "gpu")]


@pytest.mark.parametrize("key", CASES, ids=" on ".join)
def test_what_is_shipped_is_in_the_table_and_fits(key):
    case, row = CASES[key], ROWS[key]
    layout = for_stage(read_layout(case.layout), case.stage)
    assert (row["ranks"], row["shipped"], row["context"]) == (RANKS[case.layout], case.shipped, case.stage.context)
    assert all(row[name] == getattr(layout, name) for name in ("recompute", "ulysses", "ring")), "the layout changed"
    parts = sum(row[name] for name in ("states", "gradients", "activations", "working", "reserve"))
    assert row["reserve"] == RESERVE
    assert abs(parts - row["total"]) < 6 * 0.05 + 1e-9  # each is rounded to 0.1
    if case.shipped:
        assert row["total"] < MOST
        assert row["loading"] + RESERVE < MOST
        assert row.get("rollout", 0.0) < MOST


def test_the_document_is_the_tables():
    assert set(ROWS) == set(CASES)
    assert FILE.with_suffix(".md").read_text() == markdown(list(ROWS.values()))
    doubtful = [row for row in ROWS.values() if row["total"] >= MOST]
    assert doubtful
    assert markdown(doubtful[:1]).count("| no, not shipped |") == 1


@pytest.mark.slow
@pytest.mark.parametrize("key", COUNTED, ids=" on ".join)
def test_a_count_gives_what_the_table_says(key):
    """To a hundredth: what the table is good for where another release keeps a little more."""
    found, row = count(CASES[key]), ROWS[key]
    for name in ("states", "gradients", "total"):
        assert abs(found[name] - row[name]) <= 0.01 * row["total"], name


def test_storages_are_counted_while_they_are_there():
    with counting() as found:
        x = torch.empty(1 << 20)
        view = x.view(2, -1)
        assert found.now == 4 << 20
        y = view * 2
        assert found.now == 8 << 20
        del x
        gc.collect()
        assert found.now == 8 << 20, "a view holds the storage"
        y.untyped_storage().resize_(0)
        assert found.now == 4 << 20
        y.untyped_storage().resize_(4 << 20)
        del view, y
        gc.collect()
        assert (found.now, found.peak) == (0, 8 << 20)
        table = torch.arange(5) + torch.tensor([1, 2, 3, 4, 5])
        assert table.tolist() == [1, 3, 5, 7, 9], "the host computes"
    assert type(torch.empty(1 << 20)) is torch.Tensor


class CountedBlock(torch.nn.Module):
    """x + W₂ relu(W₁ x), with 0.5 M weights."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(256, 1024, bias=False), torch.nn.Linear(1024, 256, bias=False)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def stack(mesh):
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    model = torch.nn.Sequential(CountedBlock(), CountedBlock(), CountedBlock())
    for block in model:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def test_the_count_is_that_of_pytorchs_tracker_where_both_can_be_asked():
    """Its tracker takes one forward and backward of blocks that are sharded one by one."""
    with memory.ranks(4):
        mesh = init_device_mesh("cpu", (4,))
        with FakeTensorMode(allow_non_fake_inputs=True):
            model, x = stack(mesh), torch.randn(512, 256, dtype=torch.bfloat16)
            tracker = FSDPMemTracker(model)
            tracker.track_inputs((x,))
            with tracker:
                model(x).sum().backward()
            expected = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
        del model, x
        with counting() as found:
            model = stack(mesh)
            gc.collect()
            x = torch.randn(512, 256, dtype=torch.bfloat16)
            found.peak = found.now
            model(x).sum().backward()
        assert found.peak == expected > 0
        del model, x


def test_a_batch_is_as_long_as_the_bin_and_as_its_audio():
    config = memory.ModelConfig()
    for tokens, seconds in ((8192, 30.0), (24_576, 600.0), (500, 30.0)):
        batch = memory.packed(config, tokens, seconds)
        assert len(batch.input_ids) == len(batch.labels) == int(batch.cu_seqlens[-1]) == tokens
        assert int(batch.window_tokens.sum()) == int((batch.input_ids == config.audio_token_id).sum()) > 0.8 * tokens
        assert int(batch.windows_per_audio.sum()) == len(batch.samples) == len(batch.pcm)
        assert 0 < batch.supervised < 0.1 * tokens


def test_one_gpu_cannot_hold_a_full_fine_tune():
    assert ROWS["finetune 8K", "gpu"]["states"] > memory.GPU
