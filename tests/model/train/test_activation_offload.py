"""Activation offload: the same gradients bit for bit, few blocks' inputs on the device, nothing read too early."""

import gc

import pytest
import torch
from torch import nn

from afn_model.train import activation_offload
from afn_model.train.activation_checkpoint import MODES, _checkpointed, checkpoint_blocks
from afn_model.train.activation_offload import ActivationOffload
from tests.model.train import late
from tests.model.train.test_activation_checkpoint import batch_of
from tests.tiny import tiny

CPU = torch.device("cpu")


@pytest.fixture(params=["at once", "late"])
def offload(request, monkeypatch):
    monkeypatch.setattr(activation_offload, "LEAST", 1)
    if request.param == "late":
        late.lanes(monkeypatch, activation_offload)
    yield ActivationOffload(CPU)
    if request.param == "late":
        late.finish()


class WatchedBlock(nn.Module):
    """A block of two inputs that notes how many of all blocks' inputs are on the device."""

    def __init__(self, offload, seen):
        super().__init__()
        self.linear, self.offload, self.seen = nn.Linear(8, 8), offload, seen

    def forward(self, x, residual):
        if self.offload is not None:
            found = [saved for block in self.offload.blocks.values() for saved in block]
            self.seen.append((len(found), sum(saved.there is not None for saved in found)))
        return torch.tanh(self.linear(x) + residual), x


def gradients(offload, seen=None, passes=2, blocks=6):
    """Of two backwards, between them a forward whose graph is dropped."""
    torch.manual_seed(0)
    net = nn.ModuleList(WatchedBlock(offload, seen) for _ in range(blocks))
    for block in net:
        block.forward = _checkpointed(block, block.forward, offload)

    def loss(number):
        x = residual = torch.randn(4 + number, 8, generator=torch.Generator().manual_seed(number)).requires_grad_()
        x = residual * 2
        for block in net:
            x, residual = block(x, residual)
        return (x * residual).sum()

    for number in range(passes):
        loss(number).backward()
        loss(10)
    return [p.grad for p in net.parameters()]


def test_two_blocks_inputs_are_on_the_device(offload):
    seen = []
    found = gradients(offload, seen)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(None), strict=True))
    assert max(kept for kept, _ in seen) == 12
    assert max(there for _, there in seen) == 2, "beside those that a block has been given again"
    assert [there for _, there in seen].count(0) == 2, "one block ahead, but for the first block in each backward"
    gc.collect()
    assert offload.arena.live == 0
    assert len(offload.arena.chunks) == 1


@pytest.mark.parametrize("frozen", [(), ("encoder", "adaptor", "language_model.embed_tokens")], ids=len)
def test_gradients_of_a_model_are_the_same_bit_for_bit(offload, frozen):
    def of(mode, where):
        model, processor = tiny()
        for name, parameter in model.named_parameters():
            if name.startswith(frozen):
                parameter.requires_grad_(False)
        model.train()
        checkpoint_blocks(model, mode, where)
        loss = model.loss(batch_of(processor))
        live = offload.arena.live
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, live

    wanted, _ = of("none", None)
    # Two encoder blocks and two of the decoder, of two inputs each but for the first; frozen ones have no gradient.
    inputs = (
        {"encoder": 3, "selective": 3 + 2, "full": 3 + 3} if not frozen else {"encoder": 0, "selective": 2, "full": 2}
    )
    for mode in MODES[1:]:
        found, live = of(mode, offload)
        assert live == inputs[mode], mode
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_graph_may_be_gone_through_twice(offload):
    x = torch.randn(4, 8).requires_grad_()
    block = WatchedBlock(None, [])
    block.forward = _checkpointed(block, block.forward, offload)
    loss = block(*block(x * 2, x))[0].sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, x)[0], first)
