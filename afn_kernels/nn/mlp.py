"""Feed-forward layers."""

from torch import Tensor, nn

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
