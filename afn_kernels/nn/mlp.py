"""Feed-forward layers."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

from afn_kernels.bias_gelu import bias_gelu
from afn_kernels.geglu import geglu
from afn_kernels.swiglu import swiglu


class SwiGLU(nn.Module):
    """y = W_down (silu(W_gate x) · W_up x): the MLP of Llama and Qwen2, with their keys, over ``swiglu``.

    Args:
        width: D, the last axis of x and y.
        hidden: D', between the projections.
        bias: whether the three projections have biases.
        device, dtype: of the parameters.
        impl: as ``swiglu`` takes it.

    Returns:
        Called with x [..., D]: [..., D].

    Raises:
        ValueError: what ``swiglu`` raises.
    """

    def __init__(self, width: int, hidden: int, bias: bool = False, device=None, dtype=None, *, impl: str = "auto"):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias, device, dtype)
        self.up_proj = nn.Linear(width, hidden, bias, device, dtype)
        self.down_proj = nn.Linear(hidden, width, bias, device, dtype)
        self.impl = impl

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), impl=self.impl))


class GeGLU(SwiGLU):
    """y = W_down (GELU(W_gate x) · W_up x): the MLP of Gemma, with its keys, over ``geglu``.

    Args:
        width: D, the last axis of x and y.
        hidden: D', between the projections.
        bias: whether the three projections have biases.
        device, dtype: of the parameters.
        approximate: "none" or "tanh", which Gemma has.
        impl: as ``geglu`` takes it.

    Returns:
        Called with x [..., D]: [..., D].

    Raises:
        ValueError: what ``geglu`` raises.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        bias: bool = False,
        device=None,
        dtype=None,
        *,
        approximate: str = "none",
        impl: str = "auto",
    ):
        super().__init__(width, hidden, bias, device, dtype, impl=impl)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        y = geglu(self.gate_proj(x), self.up_proj(x), approximate=self.approximate, impl=self.impl)
        return self.down_proj(y)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class MLP(nn.Module):
    """y = W_down GELU(W_up x + b_up) + b_down: the MLP of Whisper and GPT-2, over ``bias_gelu``.

    The bias of ``up_proj`` is added by ``bias_gelu`` while that is a plain torch.nn.Linear. Once somebody wraps,
    replaces or hooks it (LoRA, quantisation, a parametrisation, FSDP of the module itself), it is called as it is, and
    GELU is applied to what it returns.

    Args:
        width: D, the last axis of x and y.
        hidden: D', between the projections.
        bias: whether the two projections have biases.
        device, dtype: of the parameters.
        impl: as ``bias_gelu`` takes it.

    Returns:
        Called with x [..., D]: [..., D].

    Raises:
        ValueError: what ``bias_gelu`` raises.
    """

    def __init__(self, width: int, hidden: int, bias: bool = True, device=None, dtype=None, *, impl: str = "auto"):
        super().__init__()
        self.up_proj = nn.Linear(width, hidden, bias, device, dtype)
        self.down_proj = nn.Linear(hidden, width, bias, device, dtype)
        self.impl = impl

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj
        if up.bias is not None and called_plainly(up):
            y = F.linear(x, up.weight)
            return self.down_proj(bias_gelu(y, up.bias, impl=self.impl))
        return self.down_proj(F.gelu(up(x)))


def called_plainly(linear: nn.Module) -> bool:
    """Whether calling it is F.linear with its parameters and nothing else."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    return (
        type(linear) is nn.Linear
        and not any(hooks)
        and "forward" not in linear.__dict__
        and not _module._has_any_global_hook()
    )
