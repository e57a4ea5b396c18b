"""What every backward of attention returns, without values."""

import torch
from torch import Tensor


def empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, need_dq: bool, need_dkv: bool, need_carry: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and those of the carry, in the shapes and strides that a backward gives them; empty if not needed."""
    dlse_c = q.new_empty((q.shape[1], q.shape[0]) if need_carry else 0, dtype=torch.float32)
    return (
        q.new_empty(q.shape if need_dq else 0),
        k.new_empty(k.shape if need_dkv else 0),
        v.new_empty(v.shape if need_dkv else 0),
        q.new_empty(q.shape if need_carry else 0, dtype=torch.float32),
        dlse_c.t() if need_carry else dlse_c,
    )
