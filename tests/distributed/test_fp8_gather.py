"""Weights that are gathered in FP8: one byte of each travels, and every rank has the codes of the whole weight."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import afn_kernels as ak
from afn_distributed.fp8_gather import FP8Weight, gather_in_fp8
from afn_distributed.shard import full_state_dict, gathered, shard
from afn_model.network.fp8_linear import SQUARE, FP8TrainingLinear
from tests.distributed.ranks import run

pytestmark = pytest.mark.slow
SHAPES = ((300, 144), (144, 300), (16, 144))  # out, in: blocks that ranks share, and ranks without a row


class CodedChain(nn.Module):
    """Two layers in FP8 with a norm between them, and a third beside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(FP8TrainingLinear.of(nn.Linear(k, n)) for n, k in SHAPES)
        self.norm = nn.RMSNorm(SHAPES[0][0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[1](self.norm(self.layers[0](x)))
        return x.sum() + self.layers[2](x).square().sum()


def changed(model: CodedChain) -> None:
    """What an optimiser writes."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.mul_(1.5 + number)


def same_as_alone(here, dtype: torch.dtype):
    alone, model = CodedChain(), CodedChain()
    shard(model, here, blocks=model.layers, compute_dtype=dtype)
    weights = [layer.weight for layer in model.layers]
    gather_in_fp8(weights)
    sent, plain = [], dist.all_gather_into_tensor
    dist.all_gather_into_tensor = lambda output_tensor, input_tensor, **more: (
        sent.append(input_tensor), plain(output_tensor=output_tensor, input_tensor=input_tensor, **more)
    )[1]  # fmt: skip
    torch.manual_seed(1)
    x = torch.randn(40, SHAPES[0][1], dtype=dtype)
    for _ in range(2):
        sent.clear()
        loss = model(x)
        # Of a layer: its weight's rows a byte each, and its bias.
        rows = [-(-n // here.world_size) for n, _ in SHAPES]
        layers = [r * k + r * dtype.itemsize for r, (_, k) in zip(rows, SHAPES, strict=True)]
        if here.world_size > 1:
            assert [part.nbytes for part in sent[1:]] == layers
            assert {part.dtype for part in sent[1:]} == {torch.uint8}
        loss.backward()
        assert len(sent) == (here.world_size > 1) * (1 + 2 * len(SHAPES)), "gathered again for the backward"
        found = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        if dtype == torch.float32:  # in bfloat16 biases and norm are rounded before they are used
            alone(x).backward()
            for name, p in alone.named_parameters():
                torch.testing.assert_close(found[name], here.world_size * p.grad, rtol=1e-5, atol=1e-5)
        with gathered(model):
            for own, other in zip(model.layers, alone.layers, strict=True):
                codes, scale = ak.quantize_fp8(other.weight.detach(), block=SQUARE)
                turned = ak.quantize_fp8(other.weight.detach(), block=SQUARE, transpose=True)
                assert isinstance(own.weight, FP8Weight)
                assert own.weight.dtype == dtype
                for one, two in zip(
                    (*own.weight.coded(False), *own.weight.coded(True)), (codes, scale, *turned), strict=True
                ):
                    assert torch.equal(one.float(), two.float())
                    assert one.stride() == two.stride() or not one.dim()
        for each in (alone, model):
            each.zero_grad()
            changed(each)
    whole = full_state_dict(model)
    if here.rank == 0:
        assert all(torch.equal(whole[name], tensor) for name, tensor in alone.state_dict().items())
    assert all(isinstance(weight, DTensor) and weight.dtype == torch.float32 for weight in weights)


@pytest.mark.parametrize(("world", "dtype"), [(1, torch.float32), (2, torch.bfloat16), (3, torch.float32)])
def test_codes_travel_and_are_those_of_the_whole_weight(world, dtype):
    run(world, same_as_alone, dtype)
