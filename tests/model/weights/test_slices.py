"""Weights read by slices: what a rank holds and no more, in small pieces, and one line where they cannot be."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from afn_distributed.process import Process
from afn_model import AFNext
from afn_model.config import preset
from afn_model.train.curriculum import Stage
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_model import stage_model
from afn_model.weights import slices
from afn_model.weights.checkpoint import SkipInit, Stored, on_meta
from afn_model.weights.slices import StoredWeights, held, pieces
from tests import tiny


@pytest.fixture
def fake_ranks():
    """This process as one of many ranks, whose messages go nowhere."""

    def join(rank: int, world: int) -> Process:
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        return Process(rank, world, 0, torch.device("cpu"), True)

    yield join
    dist.destroy_process_group()


@pytest.mark.parametrize("layout", ["transformers", "native"])
def test_a_whole_model_in_small_pieces(tmp_path, monkeypatch, layout):
    """Each tensor is read once, in pieces of a few rows, and goes to the dtype that its parameter has."""
    monkeypatch.setattr(slices, "PIECE", 1000)
    torch.manual_seed(0)
    whole = AFNext(tiny.config()).bfloat16()
    whole.save_pretrained(tmp_path, layout=layout)
    model, stored = on_meta(AFNext, tmp_path)
    kept = model.lm_head.weight
    model.encoder.bfloat16()
    weights = StoredWeights(stored)
    weights.fill(model, torch.device("cpu"))
    assert model.lm_head.weight is kept, "what is shared stays shared"
    for name, parameter in model.named_parameters():
        wanted = whole.get_parameter(name)
        assert parameter.dtype == (torch.bfloat16 if name.startswith("encoder.") else torch.float32)
        assert torch.equal(parameter, wanted.to(parameter.dtype)), name
        assert parameter.requires_grad == model.get_parameter(name).requires_grad
    assert weights.read == sum(parameter.nbytes for parameter in whole.parameters())
    widest = max(p[0].nbytes for p in whole.parameters())
    assert 500 < weights.largest <= max(1000, widest)


def test_what_cannot_be_read_is_named(tmp_path):
    AFNext(tiny.config()).save_pretrained(tmp_path)
    model, stored = on_meta(AFNext, tmp_path)
    with pytest.raises(ValueError, match=r"^no stored weights for lm_head.weight$"):
        StoredWeights({name: place for name, place in stored.items() if name != "lm_head.weight"}).fill(
            model, torch.device("cpu")
        )
    wrong = stored["lm_head.weight"]
    stored["lm_head.weight"] = Stored(wrong.file, "head", wrong.shape, wrong.dtype)
    with pytest.raises(ValueError, match=r"model.safetensors: 'head' cannot be read: ") as error:
        StoredWeights(stored).fill(model, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_scalar_and_nothing():
    stored = Stored(None, "x", (), "F32")
    assert list(pieces(torch.tensor(1.0), (), stored)) == [(slice(None), ())]
    assert not list(pieces(torch.empty(0, 4), (slice(3, 3), slice(0, 4)), stored))
    assert held(nn.Parameter(torch.zeros(2, 3)))[1] == (slice(0, 2), slice(0, 3))


@pytest.mark.slow
@pytest.mark.parametrize("world", [8, 128])
def test_bytes_that_a_rank_reads_at_full_size(fake_ranks, world):
    """Of 16.5 GB in bfloat16: an equal share, but for the encoder's frozen positions; pieces of 64 MiB at most."""
    here = fake_ranks(world // 2 + 1, world)
    with torch.device("meta"), SkipInit():
        model = AFNext(preset("af-next"))
    every = sum(parameter.numel() for parameter in model.parameters())
    positions = model.encoder.embed_positions.weight.numel()
    stage = Stage("mid", ("all",), {"a": 1.0}, batch_tokens=8192)
    found = stage_model(model, stage, RunLayout(dtype="bfloat16"), here, reference=False).model
    read = largest = 0
    for name, parameter in found.named_parameters():
        target, where = held(parameter)
        stored = Stored(None, name, tuple(parameter.shape), "BF16")
        rows = 0
        for at, part in pieces(target, where, stored):
            size = 2 * torch.Size([p.stop - p.start for p in part]).numel()
            read, largest, rows = read + size, max(largest, size), rows + at.stop - at.start
        assert rows == (len(target) if target.numel() else 0), name
    share = 2 * (every - positions) / world + 2 * positions
    assert share * 0.99 < read < share * 1.01
    assert largest <= 64 * 2**20
