"""The MLP with a GELU: PyTorch's values and gradients, and modules in the place of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import afn_kernels as ak
from tests.budget import assert_within_budget, gradients
from tests.orders import in_orders


def plainly(mlp, x):
    return mlp.down_proj(F.gelu(mlp.up_proj(x)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_pytorchs(bias, dtype):
    mlp, x = ak.nn.MLP(24, 48, bias, dtype=dtype), torch.randn(3, 7, 24, dtype=dtype)

    def run(call, mlp, x):
        x = x.detach().requires_grad_()
        y = call(mlp, x)
        return [y.detach(), *gradients(y, (x, *mlp.parameters()))]

    found, same = run(lambda mlp, x: mlp(x), mlp, x), in_orders(lambda: run(plainly, mlp, x))
    wide = ak.nn.MLP(24, 48, bias, dtype=torch.float64)
    wide.load_state_dict(mlp.state_dict())
    exact = run(plainly, wide, x.double())
    for i, (mine, oracle, *others) in enumerate(zip(found, exact, *same, strict=True)):
        sums = {} if i < 2 else {"summed": 21, "rms": oracle.square().mean().sqrt().item()}
        assert_within_budget(mine, others, oracle, **sums)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Negated(nn.Module):
    def forward(self, weight):
        return -weight


def hooked(mlp):
    mlp.up_proj.register_forward_hook(lambda module, args, y: 3 * y)


def replaced(mlp):
    mlp.up_proj = Doubled(24, 48)


def parametrised(mlp):
    parametrize.register_parametrization(mlp.up_proj, "weight", Negated())


def assigned(mlp):
    mlp.up_proj.forward = lambda x: x @ mlp.up_proj.weight.T - 1


@pytest.mark.parametrize("change", [hooked, replaced, parametrised, assigned])
def test_what_stands_for_the_projection_is_called(change):
    mlp, x = ak.nn.MLP(24, 48), torch.randn(5, 24)
    before = mlp(x)
    change(mlp)
    torch.testing.assert_close(mlp(x), plainly(mlp, x))
    assert not torch.allclose(mlp(x), before)


def test_under_autocast():
    mlp, x = ak.nn.MLP(24, 48), torch.randn(5, 24)
    wide = ak.nn.MLP(24, 48, dtype=torch.float64)
    wide.load_state_dict(mlp.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        found, same = mlp(x).detach(), in_orders(lambda: plainly(mlp, x).detach())
    assert found.dtype == torch.bfloat16
    assert_within_budget(found, same, plainly(wide, x.double()).detach())
