"""A block through torch.compile in the trainer: the losses of an eager run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.resume import prepare
from tests.budget import assert_same_but_rounding
from tests.model.train.test_adapt import LAYOUT, go
from tests.orders import in_orders

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
LORA = {"rank": 2, "alpha": 4, "targets": ["q_proj"], "dropout": 0.1, "base": "int8"}


@pytest.mark.slow
def test_a_compiled_block_gives_the_losses_of_an_eager_one(tmp_path, monkeypatch):
    """With adapters, their dropout, a base in few bits and recomputation: captured whole and differentiated ahead of
    time, as for a GPU. One block stands for all, and the kernels that Inductor would write are left out.
    """
    prepare(tmp_path)
    blocks, plain, names = [], nn.Module.compile, iter(range(99))

    def second_alone(self, **kwargs):
        blocks.append(self)
        if len(blocks) == 2:  # its input has a gradient, which that of the first has not
            plain(self, **kwargs, fullgraph=True, backend="aot_eager")

    def losses(**changes):
        layout = replace(LAYOUT, recompute="full", **changes)
        found = go(tmp_path, tmp_path / str(next(names)), layout, trains=("language_model",), lora=LORA, steps=2)
        return torch.tensor([[row["loss"], row["grad_norm"]] for row in found])

    monkeypatch.setattr(nn.Module, "compile", second_alone)
    torch._dynamo.utils.counters.clear()
    found = losses(compile=True)
    assert len(blocks) == 3, "two of the language model and the encoder's"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_same_but_rounding(found, in_orders(losses, 2))
