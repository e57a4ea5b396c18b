"""Logits in chunks of rows, turned into their own gradient in place; without gradient, logits that never leave a tile.

With gradients, every chunk of logits is one cuBLAS product [R, D] x [D, V]; a kernel reads it for the log-sum-exp and
replaces it by its gradient; two more products give the hidden states' and the weight's. That is 6 N V D operations for
N rows, where a backward that recomputed the logits would need 8, and the logits pass through memory once.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from afn_kernels import _triton
from afn_kernels.linear_cross_entropy import config

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
ALIGN = 64  # elements: rows of the chunk start on a line of 128 bytes


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2E)


@triton.jit(do_not_specialize=["rows", "splits"])
def logsumexp_kernel(
    hidden, weight, top, total, rows, splits,
    D: tl.constexpr, V: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials below it, for a block of rows over one part of the vocabulary."""
    program = tl.program_id(0)
    split = program % splits  # adjacent programs read the same rows (L2), concurrent waves read the same weight tile
    o_t = program // splits * BLOCK_T
    TILES: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    column = tl.arange(0, BLOCK_V)
    b_top = tl.full([BLOCK_T], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_T], tl.float32)
    for tile in range(split * TILES // splits, (split + 1) * TILES // splits):
        b_x = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
        for o_d in range(0, D, BLOCK_D):
            b_h = hidden.load([o_t, o_d])
            b_w = weight.load([tile * BLOCK_V, o_d])
            b_x = tl.dot(b_h, b_w.T, b_x)
        b_x = tl.where((tile * BLOCK_V + column < V)[None, :], b_x, float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_x, 1))
        b_total = b_total * exp(b_top - b_new) + tl.sum(exp(b_x - b_new[:, None]), 1)
        b_top = b_new
    row = o_t + tl.arange(0, BLOCK_T)
    p = tl.cast(split, tl.int64) * rows + row
    m_row = row < rows
    tl.store(top + p, b_top, mask=m_row)
    tl.store(total + p, b_total, mask=m_row)


@triton.jit(do_not_specialize=["rows", "splits"])
def logprob_kernel(
    hidden, weight, labels, top, total, logprob, lse, hidden_stride, weight_stride, rows, splits,
    D: tl.constexpr, V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The parts of a row together, and the logit of its label as a product of two vectors."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK_S)
    m_part = part < splits
    b_top = tl.load(top + part.to(tl.int64) * rows + row, mask=m_part, other=float("-inf"))
    b_total = tl.load(total + part.to(tl.int64) * rows + row, mask=m_part, other=0.0)
    b_max = tl.max(b_top)
    b_log = tl.log2(tl.sum(b_total * exp(b_top - b_max))) * LN2
    label = tl.load(labels + row)
    m_label = (label >= 0) & (label < V)
    width = tl.where(m_label, D, 0)
    column = tl.arange(0, BLOCK_D)
    b_sum = tl.zeros([BLOCK_D], tl.float32)
    for o_d in range(0, D, BLOCK_D):
        m_d = o_d + column < width
        b_h = tl.load(hidden + row * hidden_stride + o_d + column, mask=m_d, other=0.0).to(tl.float32)
        b_sum += b_h * tl.load(weight + label * weight_stride + o_d + column, mask=m_d, other=0.0).to(tl.float32)
    b_target = tl.where(m_label, tl.sum(b_sum), float("nan"))
    tl.store(logprob + row, (b_target - b_max) - b_log)
    tl.store(lse + row, b_max + b_log)


@triton.jit
def softmax_kernel(
    logits, labels, upstream, loss, scale, z_loss,
    V: tl.constexpr, STRIDE: tl.constexpr, BLOCK_V: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """A row of logits to its loss, and in place to its gradient times ``scale`` and, if there is one, ``upstream``.

    Sums and differences are taken relative to the row's largest logit, so that a probability near 1 is exact.
    """
    row = tl.program_id(0)
    p_row = logits + tl.cast(row, tl.int64) * STRIDE
    label = tl.load(labels + row)
    m_label = (label >= 0) & (label < V)
    b_target = tl.load(p_row + label, mask=m_label, other=float("nan")).to(tl.float32)
    column = tl.arange(0, BLOCK_V)
    BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    b_top = float("-inf")
    b_totals = tl.zeros([BLOCK_V], tl.float32)
    b_next = tl.load(p_row + column, mask=column < V, other=float("-inf"))
    for i in range(BLOCKS):
        b_x = b_next.to(tl.float32)
        o = (i + 1) * BLOCK_V + column  # on its way while this block is reduced
        b_next = tl.load(p_row + o, mask=o < V, other=float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_x))
        b_totals = b_totals * exp(b_top - b_new) + exp(b_x - b_new)
        b_top = b_new
    b_total = tl.sum(b_totals)
    b_log = tl.log2(b_total) * LN2
    b_lse = b_top + b_log
    if loss is not None:
        tl.store(loss + row, b_log - (b_target - b_top) + z_loss * b_lse * b_lse)
    if GRADIENT:
        b_one = tl.where(m_label, scale, float("nan"))
        if upstream is not None:
            b_one *= tl.load(upstream + row)
        b_all = b_one * (1 + 2 * z_loss * b_lse) / b_total
        for i in range(BLOCKS):
            o = (BLOCKS - 1 - i) * BLOCK_V + column  # backwards: what was read last is still in a cache
            m_col = o < V
            b_x = tl.load(p_row + o, mask=m_col, other=0.0).to(tl.float32)
            b_x = exp(b_x - b_top) * b_all - tl.where(o == label, b_one, 0.0)
            tl.store(p_row + o, b_x.to(logits.dtype.element_ty), mask=m_col)


@triton.jit(do_not_specialize=["blocks", "size"])
def scale_kernel(x, factor, blocks, size, BLOCK: tl.constexpr):
    """x times a factor in place; not even a read where it is 1."""
    b_factor = tl.load(factor)
    if b_factor != 1:
        program = tl.program_id(0)
        column = tl.arange(0, BLOCK)
        for i in range(program, blocks, tl.num_programs(0)):
            p_x = x + tl.cast(i, tl.int64) * BLOCK + column
            tl.store(p_x, (tl.load(p_x).to(tl.float32) * b_factor).to(x.dtype.element_ty))
        if program == 0:  # whole blocks have no mask, so that they are read 16 bytes at a time
            o = tl.cast(blocks, tl.int64) * BLOCK
            p_x, m_tail = x + o + column, column < size - o
            b_x = tl.load(p_x, mask=m_tail, other=0.0).to(tl.float32) * b_factor
            tl.store(p_x, b_x.to(x.dtype.element_ty), mask=m_tail)


def scale(dh: torch.Tensor, dw: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiplies both in place by a number that is on the device."""
    for x in (dh, dw):
        if x.numel():
            blocks = x.numel() // 4096
            grid = max(1, min(blocks, 4 * _triton.programs(x.device)))
            scale_kernel[(grid,)](x, factor, blocks, x.numel(), BLOCK=4096, num_warps=8)


def loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, ignore_index: int, mean: bool, z_loss: float,
    supervised: int | None, need_dh: bool, need_dw: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The loss, the gradients of the loss (empty where not needed), and the factor that they still lack."""
    rows = supervised_rows(labels, ignore_index, supervised)
    kept = labels if rows is None else labels.index_select(0, rows)
    divisor = max(len(kept), 1) if mean else 1
    # bfloat16 has the range to divide before the products, which spares a pass over the gradients where the upstream
    # gradient is 1. In float16 a probability divided by the number of rows would be nothing.
    early = 1 / divisor if hidden.dtype == torch.bfloat16 else 1.0
    if need_dh or need_dw or not fused(hidden, weight):
        terms = hidden.new_empty(len(kept), dtype=torch.float32)
        dh, dw = chunks(
            hidden, weight, kept, rows, loss=terms, scale=early, z_loss=z_loss, need_dh=need_dh, need_dw=need_dw
        )
    else:
        logprob, lse = forward(hidden, weight, kept, rows)
        terms = z_loss * lse.square() - logprob
        dh, dw = hidden.new_empty(0), weight.new_empty(0)
    loss = (terms.sum(dtype=torch.float64) / divisor).float()
    factor = torch.full((), 1 / divisor / early, dtype=torch.float32, device=hidden.device)
    if supervised is not None:  # a wrong number must not go unnoticed, nor be asked for
        right = (labels != ignore_index).sum() == supervised
        loss, factor = (torch.where(right, x, float("nan")) for x in (loss, factor))
    return loss, dh, dw, factor


def logprob(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p(target) of every row."""
    if fused(hidden, weight):
        return forward(hidden, weight, targets, None)[0]
    terms = hidden.new_empty(len(targets), dtype=torch.float32)
    chunks(hidden, weight, targets, None, loss=terms)
    return -terms


def logprob_backward(
    dlogprob: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, need_dh: bool,
    need_dw: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """dh [T, D] and dw [V, D], empty where not needed.

    Logits and log-sum-exp are computed again: with that of the forward, from logits of another rounding, probabilities
    would not add up to 1.
    """
    return chunks(hidden, weight, targets, None, upstream=dlogprob, scale=-1.0, need_dh=need_dh, need_dw=need_dw)


def supervised_rows(labels: torch.Tensor, ignore_index: int, supervised: int | None) -> torch.Tensor | None:
    """Indices of the rows that have a label, None for all of them. Waits for the GPU unless their number is given."""
    if supervised is None and labels.is_meta:
        return None
    if supervised is None:
        rows = (labels != ignore_index).nonzero().squeeze(1)
        return None if len(rows) == len(labels) else rows
    if supervised == len(labels):
        return None
    return (labels == ignore_index).argsort(stable=True)[:supervised]


def fused(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether logsumexp_kernel can run: 16-bit matrix instructions, rows that start at multiples of 16 bytes."""
    gathered = hidden.shape[1] % 8 == 0  # supervised rows are copied next to each other
    return (
        hidden.element_size() == 2
        and gathered
        and all(x.data_ptr() % 16 == 0 and x.stride(0) % 8 == 0 for x in (hidden, weight))
    )


def forward(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(label) and log-sum-exp of the rows, from float32 logits that are never stored."""
    (classes, width), tile = weight.shape, config.TILE
    logprob = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
    lse = torch.empty_like(logprob)
    if not len(labels):
        return logprob, lse
    w = TensorDescriptor(weight, weight.shape, weight.stride(), [tile.classes, tile.width])
    for a in range(0, len(labels), config.SEGMENT):
        b = min(a + config.SEGMENT, len(labels))
        part = hidden[a:b] if rows is None else hidden.index_select(0, rows[a:b])
        row_blocks = triton.cdiv(b - a, tile.tokens)
        splits = config.splits(row_blocks, triton.cdiv(classes, tile.classes), _triton.programs(hidden.device))
        top = torch.empty(splits, b - a, dtype=torch.float32, device=hidden.device)
        total = torch.empty_like(top)
        h = TensorDescriptor(part, part.shape, part.stride(), [tile.tokens, tile.width])
        logsumexp_kernel[(row_blocks * splits,)](
            h, w, top, total, b - a, splits, D=width, V=classes, BLOCK_T=tile.tokens, BLOCK_V=tile.classes,
            BLOCK_D=tile.width, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        logprob_kernel[(b - a,)](
            part, weight, labels[a:b], top, total, logprob[a:b], lse[a:b], part.stride(0), weight.stride(0), b - a,
            splits, D=width, V=classes, BLOCK_D=min(4096, triton.next_power_of_2(width)), BLOCK_S=config.MOST_SPLITS,
            num_warps=4,
        )  # fmt: skip
    return logprob, lse


@torch.no_grad()
def chunks(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor | None, *,
    upstream: torch.Tensor | None = None, loss: torch.Tensor | None = None, scale: float = 1.0,
    z_loss: float = 0.0, need_dh: bool = False, need_dw: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Walks over the logits once, a chunk of rows at a time. Fills ``loss``; returns dh and dw, empty if not needed.

    dw is rounded to its dtype once per chunk: a float32 copy of it would be 2.2 GB.
    """
    count, classes, dtype, device = len(labels), len(weight), hidden.dtype, hidden.device
    allocate = torch.zeros if rows is not None else torch.empty
    dh = allocate(hidden.shape if need_dh else (0,), dtype=dtype, device=device)
    dw = (torch.empty if count else torch.zeros)(weight.shape if need_dw else (0,), dtype=dtype, device=device)
    if not count:
        return dh, dw
    stride = triton.cdiv(classes, ALIGN) * ALIGN
    step = config.chunk_rows(count, stride * hidden.element_size())
    scratch = torch.empty(min(step, count), stride, dtype=dtype, device=device)[:, :classes]
    walk = config.walk(classes)
    for a in range(0, count, step):
        b = min(a + step, count)
        x = scratch[: b - a]
        h = hidden[a:b] if rows is None else hidden.index_select(0, rows[a:b])
        torch.mm(h, weight.t(), out=x)
        softmax_kernel[(b - a,)](
            x, labels[a:b], None if upstream is None else upstream[a:b], None if loss is None else loss[a:b], scale,
            z_loss, V=classes, STRIDE=stride, BLOCK_V=walk.block, GRADIENT=need_dh or need_dw, num_warps=walk.warps,
        )  # fmt: skip
        if need_dh and rows is None:
            torch.mm(x, weight, out=dh[a:b])
        elif need_dh:
            dh.index_copy_(0, rows[a:b], torch.mm(x, weight, out=torch.empty(h.shape, dtype=dtype, device=device)))
        if need_dw and not a:
            torch.mm(x.t(), h, out=dw)
        elif need_dw:
            dw.addmm_(x.t(), h)
    return dh, dw
