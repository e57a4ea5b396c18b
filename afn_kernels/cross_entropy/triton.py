"""Cross-entropy of rows of logits: a program per row. Its parts are those of linear_cross_entropy's kernels too.

An option that is off is None, which the compiler knows: no instruction is left of it.
"""

import torch
import triton
import triton.language as tl

from afn_kernels._triton_math import reciprocal
from afn_kernels.cross_entropy import config

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # where a running maximum begins: from −inf, a block of −inf makes NaN


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def tanh(b_x):
    """tanh in float32 within a few units in the last place, so that a small logit stays what it is.

    Below 0.6 the continued fraction u / (1 + u² / (3 + u² / (5 + u² / (7 + u² / 9)))), within 4e-10 there; above it
    (e − 1) / (e + 1) with e = exp(2u). Both share a division. Beyond 10 it is 1 in float32.
    """
    b_u, b_z = tl.abs(b_x), b_x * b_x
    b_e = exp(2 * tl.where(b_u > 10, 10.0, b_u))
    near = b_u < 0.6
    b_over = tl.where(near, b_u * (945 + b_z * (105 + b_z)), b_e - 1)
    b_t = b_over * reciprocal(tl.where(near, 945 + b_z * (420 + 15 * b_z), b_e + 1))
    return tl.where(b_x < 0, -b_t, b_t)


@triton.jit
def logit(b_x, bias, softcap, o, m_col):
    """What was loaded for the classes ``o`` as logits in float32, with bias and cap where there are any."""
    b_x = b_x.to(tl.float32)
    if bias is not None:
        b_x += tl.load(bias + o, mask=m_col, other=0.0).to(tl.float32)
    if softcap is not None:
        b_x = softcap * tanh(b_x * (1 / softcap))
    return b_x


@triton.jit
def row_softmax(p_row, bias, softcap, V: tl.constexpr, BLOCK_V: tl.constexpr, SUM: tl.constexpr):
    """A row's largest logit, the sum of exponentials relative to it, and with SUM the sum of the logits."""
    column = tl.arange(0, BLOCK_V)
    BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    b_top = tl.full([], LOWEST, tl.float32)
    b_totals = tl.zeros([BLOCK_V], tl.float32)
    b_sums = tl.zeros([BLOCK_V], tl.float32)
    b_next = tl.load(p_row + column, mask=column < V, other=float("-inf"))
    for i in range(BLOCKS):
        m_col = i * BLOCK_V + column < V
        b_x = logit(b_next, bias, softcap, i * BLOCK_V + column, m_col)
        if softcap is not None:
            b_x = tl.where(m_col, b_x, float("-inf"))
        o = (i + 1) * BLOCK_V + column  # on its way while this block is reduced
        b_next = tl.load(p_row + o, mask=o < V, other=float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_x))
        b_totals = b_totals * exp(b_top - b_new) + exp(b_x - b_new)
        if SUM:
            b_sums += tl.where(m_col, b_x, 0.0)
        b_top = b_new
    return b_top, tl.sum(b_totals), tl.sum(b_sums)


@triton.jit
def row_loss(b_target, b_top, b_log, b_sum, label_smoothing, z_loss, V: tl.constexpr):
    """Loss of a row. Differences are taken relative to its largest logit: a probability near 1 is exact."""
    b_near = b_target - b_top
    if label_smoothing is not None:
        b_near = (1 - label_smoothing) * b_near + label_smoothing * (b_sum / V - b_top)
    b_lse = b_top + b_log
    return b_log - b_near + z_loss * b_lse * b_lse


@triton.jit
def logit_gradient(b_x, softcap, label_smoothing, o, label, b_top, b_one, b_all, V: tl.constexpr):
    """Gradient of what came before bias and cap, from logits b_x: b_one times that of the loss.

    b_all is what an exponential relative to b_top is worth.
    """
    if label_smoothing is None:
        b_dx = exp(b_x - b_top) * b_all - tl.where(o == label, b_one, 0.0)
    else:
        b_dx = exp(b_x - b_top) * b_all - tl.where(o == label, (1 - label_smoothing) * b_one, 0.0)
        b_dx -= label_smoothing / V * b_one
    if softcap is not None:
        b_t = b_x * (1 / softcap)
        b_dx *= 1 - b_t * b_t
    return b_dx


@triton.jit(do_not_specialize=["ignore_index"])
def forward_kernel(
    logits, labels, loss, top, total, ignore_index, label_smoothing, softcap, z_loss,
    V: tl.constexpr, STRIDE: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    label = tl.load(labels + row)
    if label == ignore_index:
        tl.store(loss + row, 0.0)
        tl.store(top + row, 0.0)
        tl.store(total + row, 1.0)
    else:
        p_row = logits + tl.cast(row, tl.int64) * STRIDE
        m_label = (label >= 0) & (label < V)
        b_target = logit(tl.load(p_row + label, mask=m_label, other=float("nan")), None, softcap, label, m_label)
        b_top, b_total, b_sum = row_softmax(p_row, None, softcap, V, BLOCK_V, label_smoothing is not None)
        b_log = tl.log2(b_total) * LN2
        tl.store(loss + row, row_loss(b_target, b_top, b_log, b_sum, label_smoothing, z_loss, V))
        tl.store(top + row, b_top)
        tl.store(total + row, b_total)


@triton.jit(do_not_specialize=["ignore_index"])
def backward_kernel(
    dloss, logits, labels, top, total, dlogits, ignore_index, label_smoothing, softcap, z_loss,
    V: tl.constexpr, STRIDE: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    label = tl.load(labels + row)
    p_out = dlogits + tl.cast(row, tl.int64) * V
    column = tl.arange(0, BLOCK_V)
    BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    if label == ignore_index:
        for i in range(BLOCKS):
            o = i * BLOCK_V + column
            tl.store(p_out + o, tl.zeros([BLOCK_V], tl.float32).to(dlogits.dtype.element_ty), mask=o < V)
    else:
        p_row = logits + tl.cast(row, tl.int64) * STRIDE
        b_top, b_total = tl.load(top + row), tl.load(total + row)
        b_one = tl.where((label >= 0) & (label < V), tl.load(dloss + row), float("nan"))
        b_all = b_one * (1 + 2 * z_loss * (b_top + tl.log2(b_total) * LN2)) / b_total
        for i in range(BLOCKS):
            o = i * BLOCK_V + column
            m_col = o < V
            b_x = logit(tl.load(p_row + o, mask=m_col, other=0.0), None, softcap, o, m_col)
            b_x = logit_gradient(b_x, softcap, label_smoothing, o, label, b_top, b_one, b_all, V)
            tl.store(p_out + o, b_x.to(dlogits.dtype.element_ty), mask=m_col)


def forward(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, label_smoothing: float, softcap: float | None,
    z_loss: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The loss of every row, its largest logit, and its sum of exponentials relative to that."""
    rows, classes = logits.shape
    loss, top, total = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3))
    walk = config.walk(classes, plain=softcap is None and not label_smoothing)
    if rows:
        forward_kernel[(rows,)](
            logits, labels, loss, top, total, ignore_index, label_smoothing or None, softcap, z_loss,
            V=classes, STRIDE=logits.stride(0), BLOCK_V=walk.block, num_warps=walk.warps,
        )  # fmt: skip
    return loss, top, total


def backward(
    dloss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, top: torch.Tensor, total: torch.Tensor,
    ignore_index: int, label_smoothing: float, softcap: float | None, z_loss: float,
) -> torch.Tensor:  # fmt: skip
    """dlogits [T, V]."""
    rows, classes = logits.shape
    dlogits = torch.empty(rows, classes, dtype=logits.dtype, device=logits.device)
    walk = config.walk(classes, plain=softcap is None and not label_smoothing)
    if rows:
        backward_kernel[(rows,)](
            dloss, logits, labels, top, total, dlogits, ignore_index, label_smoothing or None, softcap, z_loss,
            V=classes, STRIDE=logits.stride(0), BLOCK_V=walk.block, num_warps=walk.warps,
        )  # fmt: skip
    return dlogits
