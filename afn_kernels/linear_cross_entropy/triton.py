"""Logits in chunks of rows, turned into their own gradient in place; without gradient, logits that never leave a tile.

With gradients, every chunk of logits is one cuBLAS product [R, D] x [D, V]; a kernel reads it for the log-sum-exp and
replaces it by its gradient; two more products give the hidden states' and the weight's. That is 6 N V D operations for
N rows, where a backward that recomputed the logits would need 8, and the logits pass through memory once.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from afn_kernels import _triton
from afn_kernels.cross_entropy.config import walk
from afn_kernels.cross_entropy.triton import LN2, LOWEST, exp, logit, logit_gradient, row_loss, row_softmax
from afn_kernels.linear_cross_entropy import config

ALIGN = 64  # elements: rows of the chunk start on a line of 128 bytes


@triton.jit(do_not_specialize=["rows", "splits"])
def logsumexp_kernel(
    hidden, weight, bias, top, total, sums, softcap, rows, splits,
    D: tl.constexpr, V: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Maximum, sum of exponentials below it and, where there is a place for it, sum of the logits: for a block of rows
    over one part of the vocabulary.
    """
    program = tl.program_id(0)
    split = program % splits  # adjacent programs read the same rows (L2), concurrent waves read the same weight tile
    o_t = program // splits * BLOCK_T
    TILES: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    column = tl.arange(0, BLOCK_V)
    b_top = tl.full([BLOCK_T], LOWEST, tl.float32)
    b_total = tl.zeros([BLOCK_T], tl.float32)
    b_sum = tl.zeros([BLOCK_T], tl.float32)
    for tile in range(split * TILES // splits, (split + 1) * TILES // splits):
        b_x = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
        for o_d in range(0, D, BLOCK_D):
            b_h = hidden.load([o_t, o_d])
            b_w = weight.load([tile * BLOCK_V, o_d])
            b_x = tl.dot(b_h, b_w.T, b_x)
        o = tile * BLOCK_V + column
        m_col = o < V
        if bias is not None:
            b_x += tl.load(bias + o, mask=m_col, other=0.0).to(tl.float32)[None, :]
        b_x = logit(b_x, None, softcap, o, m_col)
        if sums is not None:
            b_sum += tl.sum(tl.where(m_col[None, :], b_x, 0.0), 1)
        b_x = tl.where(m_col[None, :], b_x, float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_x, 1))
        b_total = b_total * exp(b_top - b_new) + tl.sum(exp(b_x - b_new[:, None]), 1)
        b_top = b_new
    row = o_t + tl.arange(0, BLOCK_T)
    p = tl.cast(split, tl.int64) * rows + row
    m_row = row < rows
    tl.store(top + p, b_top, mask=m_row)
    tl.store(total + p, b_total, mask=m_row)
    if sums is not None:
        tl.store(sums + p, b_sum, mask=m_row)


@triton.jit(do_not_specialize=["rows", "splits"])
def logprob_kernel(
    hidden, weight, bias, labels, top, total, sums, logprob, lse, label_smoothing, softcap, hidden_stride,
    weight_stride, rows, splits,
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
    b_target = tl.where(m_label, logit(tl.sum(b_sum), bias, softcap, label, m_label), float("nan"))
    b_near = b_target - b_max
    if label_smoothing is not None:
        b_mean = tl.sum(tl.load(sums + part.to(tl.int64) * rows + row, mask=m_part, other=0.0)) / V
        b_near = (1 - label_smoothing) * b_near + label_smoothing * (b_mean - b_max)
    tl.store(logprob + row, b_near - b_log)
    tl.store(lse + row, b_max + b_log)


@triton.jit
def softmax_kernel(
    logits, labels, bias, upstream, loss, scale, label_smoothing, softcap, z_loss,
    V: tl.constexpr, STRIDE: tl.constexpr, BLOCK_V: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """A row of logits to its loss, and in place to its gradient times ``scale`` and, if there is one, ``upstream``."""
    row = tl.program_id(0)
    p_row = logits + tl.cast(row, tl.int64) * STRIDE
    label = tl.load(labels + row)
    m_label = (label >= 0) & (label < V)
    b_target = logit(tl.load(p_row + label, mask=m_label, other=float("nan")), bias, softcap, label, m_label)
    b_top, b_total, b_sum = row_softmax(p_row, bias, softcap, V, BLOCK_V, label_smoothing is not None)
    b_log = tl.log2(b_total) * LN2
    if loss is not None:
        tl.store(loss + row, row_loss(b_target, b_top, b_log, b_sum, label_smoothing, z_loss, V))
    if GRADIENT:
        b_one = tl.where(m_label, scale, float("nan"))
        if upstream is not None:
            b_one *= tl.load(upstream + row)
        b_all = b_one * (1 + 2 * z_loss * (b_top + b_log)) / b_total
        column = tl.arange(0, BLOCK_V)
        BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
        for i in range(BLOCKS):
            o = (BLOCKS - 1 - i) * BLOCK_V + column  # backwards: what was read last is still in a cache
            m_col = o < V
            b_x = logit(tl.load(p_row + o, mask=m_col, other=0.0), bias, softcap, o, m_col)
            b_x = logit_gradient(b_x, softcap, label_smoothing, o, label, b_top, b_one, b_all, V)
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


def scale(dh: torch.Tensor, dw: torch.Tensor, db: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiplies all in place by a number that is on the device."""
    for x in (dh, dw, db):
        if x.numel():
            blocks = x.numel() // 4096
            grid = max(1, min(blocks, 4 * _triton.programs(x.device)))
            scale_kernel[(grid,)](x, factor, blocks, x.numel(), BLOCK=4096, num_warps=8)


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states, and a loss of logits. The weight has the dtype of the hidden states."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    label_smoothing: float
    softcap: float | None
    z_loss: float

    def gradients(self, need_dw: bool, need_db: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the gradients of weight and bias are added up, not yet written; empty where not needed."""
        dw = torch.empty(self.weight.shape if need_dw else (0,), dtype=dtype, device=self.weight.device)
        return dw, torch.empty(len(self.weight) if need_db else 0, dtype=torch.float32, device=dw.device)


def loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, ignore_index: int,
    mean: bool, label_smoothing: float, softcap: float | None, z_loss: float, supervised: int | None, need_dh: bool,
    need_dw: bool, need_db: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The loss, the gradients of the loss (empty where not needed), and the factor that they still lack."""
    rows = supervised_rows(labels, ignore_index, supervised)
    kept = labels if rows is None else labels.index_select(0, rows)
    divisor = max(len(kept), 1) if mean else 1
    # bfloat16 has the range to divide before the products, which spares a pass over the gradients where the upstream
    # gradient is 1. In float16 a probability divided by the number of rows would be nothing.
    early = 1 / divisor if hidden.dtype == torch.bfloat16 else 1.0
    head = Head(weight.to(hidden.dtype), bias, label_smoothing, softcap, z_loss)
    dw, db = head.gradients(need_dw, need_db, weight.dtype)
    if need_dh or need_dw or need_db or not fused(hidden, head.weight):
        terms = hidden.new_empty(len(kept), dtype=torch.float32)
        dh = chunks(hidden, head, kept, rows, loss=terms, scale=early, need_dh=need_dh, dw=dw, db=db)
    else:
        logprob, lse = forward(hidden, head, kept, rows)
        terms = z_loss * lse.square() - logprob
        dh = hidden.new_empty(0)
    loss = (terms.sum(dtype=torch.float64) / divisor).float()
    factor = torch.full((), 1 / divisor / early, dtype=torch.float32, device=hidden.device)
    if supervised is not None:  # a wrong number must not go unnoticed, nor be asked for
        right = (labels != ignore_index).sum() == supervised
        loss, factor = (torch.where(right, x, float("nan")) for x in (loss, factor))
    return loss, dh, dw, db, factor


def logprob(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
    ignore_index: int | None, label_smoothing: float, softcap: float | None, z_loss: float, supervised: int | None,
) -> torch.Tensor:  # fmt: skip
    """log p(target) of every row; with other options than a bias and a cap, the negated loss of every row."""
    rows = supervised_rows(targets, ignore_index, supervised)
    kept = targets if rows is None else targets.index_select(0, rows)
    head = Head(weight.to(hidden.dtype), bias, label_smoothing, softcap, z_loss)
    if fused(hidden, head.weight):
        found, lse = forward(hidden, head, kept, rows)
        if z_loss:
            found -= z_loss * lse.square()
    else:
        terms = hidden.new_empty(len(kept), dtype=torch.float32)
        chunks(hidden, head, kept, rows, loss=terms)
        found = -terms
    if rows is not None:
        found = found.new_zeros(len(targets)).index_copy_(0, rows, found)
    if supervised is not None:
        found = torch.where((targets != ignore_index).sum() == supervised, found, float("nan"))
    return found


def logprob_backward(
    dlogprob: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    targets: torch.Tensor, ignore_index: int | None, label_smoothing: float, softcap: float | None, z_loss: float,
    supervised: int | None, need_dh: bool, need_dw: bool, need_db: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """dh [T, D], dw [V, D] and db [V] in float32, empty where not needed.

    Logits and log-sum-exp are computed again: with that of the forward, from logits of another rounding, probabilities
    would not add up to 1.
    """
    rows = supervised_rows(targets, ignore_index, supervised)
    if rows is not None:
        targets, dlogprob = targets.index_select(0, rows), dlogprob.index_select(0, rows)
    head = Head(weight.to(hidden.dtype), bias, label_smoothing, softcap, z_loss)
    dw, db = head.gradients(need_dw, need_db, weight.dtype)
    dh = chunks(hidden, head, targets, rows, upstream=dlogprob, scale=-1.0, need_dh=need_dh, dw=dw, db=db)
    return dh, dw, db


def supervised_rows(labels: torch.Tensor, ignore_index: int | None, supervised: int | None) -> torch.Tensor | None:
    """Indices of the rows that have a label, None for all of them. Waits for the GPU unless their number is given."""
    if ignore_index is None or (supervised is None and labels.is_meta):
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
    hidden: torch.Tensor, head: Head, labels: torch.Tensor, rows: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp of the rows, from float32 logits that are never stored, and what the loss takes off it: log p(label),
    if nothing is smoothed.
    """
    (classes, width), tile, smoothing = head.weight.shape, config.tile(hidden.device), head.label_smoothing or None
    logprob = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
    lse = torch.empty_like(logprob)
    if not len(labels):
        return logprob, lse
    weight = head.weight
    w = TensorDescriptor(weight, weight.shape, weight.stride(), [tile.classes, tile.width])
    for a in range(0, len(labels), config.SEGMENT):
        b = min(a + config.SEGMENT, len(labels))
        part = hidden[a:b] if rows is None else hidden.index_select(0, rows[a:b])
        row_blocks = triton.cdiv(b - a, tile.tokens)
        splits = config.splits(row_blocks, triton.cdiv(classes, tile.classes), _triton.programs(hidden.device))
        top = torch.empty(splits, b - a, dtype=torch.float32, device=hidden.device)
        total = torch.empty_like(top)
        sums = None if smoothing is None else torch.empty_like(top)
        h = TensorDescriptor(part, part.shape, part.stride(), [tile.tokens, tile.width])
        logsumexp_kernel[(row_blocks * splits,)](
            h, w, head.bias, top, total, sums, head.softcap, b - a, splits, D=width, V=classes, BLOCK_T=tile.tokens,
            BLOCK_V=tile.classes, BLOCK_D=tile.width, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        logprob_kernel[(b - a,)](
            part, weight, head.bias, labels[a:b], top, total, sums, logprob[a:b], lse[a:b], smoothing, head.softcap,
            part.stride(0), weight.stride(0), b - a, splits, D=width, V=classes,
            BLOCK_D=min(4096, triton.next_power_of_2(width)), BLOCK_S=config.MOST_SPLITS, num_warps=4,
        )  # fmt: skip
    return logprob, lse


REDUCED = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
_sums_lock = threading.Lock()
_sums_users, _sums_before = 0, {}


@contextmanager
def float32_sums():
    """cuBLAS splits the 151,672 terms of a hidden gradient over several programs; their parts stay in float32 here.

    PyTorch lets it add them up in 16 bits by default. The setting is the process's: another thread that multiplies
    meanwhile gets the more accurate sums too. The first thread that comes in saves it, the last one out restores it.
    """
    global _sums_users, _sums_before
    settings = torch.backends.cuda.matmul
    with _sums_lock:
        if not _sums_users:
            _sums_before = {name: _setting(settings, name) for name in REDUCED}
            for name in REDUCED:
                setattr(settings, name, False)
        _sums_users += 1
    try:
        yield
    finally:
        with _sums_lock:
            _sums_users -= 1
            if not _sums_users:
                for name, value in _sums_before.items():
                    setattr(settings, name, value)


def _setting(settings, name: str) -> bool | tuple[bool, bool]:
    """As it is set: with whether products may be split at all, in a PyTorch that has that."""
    reduced = getattr(settings, name)
    try:
        return reduced, getattr(settings, f"{name}_split_k")
    except AttributeError:
        return reduced


@torch.no_grad()
@float32_sums()
def chunks(
    hidden: torch.Tensor, head: Head, labels: torch.Tensor, rows: torch.Tensor | None, *,
    upstream: torch.Tensor | None = None, loss: torch.Tensor | None = None, scale: float = 1.0, need_dh: bool = False,
    dw: torch.Tensor | None = None, db: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Walks over the logits once, a chunk of rows at a time. Fills ``loss``, ``dw`` and ``db`` (empty if not needed);
    returns dh, empty if not needed.

    dw is rounded to its dtype once per chunk: a float32 copy of it would be 2.2 GB.
    """
    weight, need_dw, need_db = head.weight, dw is not None and dw.numel() > 0, db is not None and db.numel() > 0
    count, classes, dtype, device = len(labels), len(weight), hidden.dtype, hidden.device
    allocate = torch.zeros if rows is not None else torch.empty
    dh = allocate(hidden.shape if need_dh else (0,), dtype=dtype, device=device)
    if not count:
        for x in (dw, db):
            if x is not None:
                x.zero_()
        return dh
    stride = triton.cdiv(classes, ALIGN) * ALIGN
    step = config.chunk_rows(count, stride * hidden.element_size())
    scratch = torch.empty(min(step, count), stride, dtype=dtype, device=device)[:, :classes]
    how = walk(classes, plain=head.bias is None and head.softcap is None and not head.label_smoothing)
    for a in range(0, count, step):
        b = min(a + step, count)
        x = scratch[: b - a]
        h = hidden[a:b] if rows is None else hidden.index_select(0, rows[a:b])
        torch.mm(h, weight.t(), out=x)
        softmax_kernel[(b - a,)](
            x, labels[a:b], head.bias, None if upstream is None else upstream[a:b],
            None if loss is None else loss[a:b], scale, head.label_smoothing or None, head.softcap, head.z_loss,
            V=classes, STRIDE=stride, BLOCK_V=how.block, GRADIENT=need_dh or need_dw or need_db, num_warps=how.warps,
        )  # fmt: skip
        if need_dh and rows is None:
            torch.mm(x, weight, out=dh[a:b])
        elif need_dh:
            dh.index_copy_(0, rows[a:b], torch.mm(x, weight, out=torch.empty(h.shape, dtype=dtype, device=device)))
        if need_dw:
            add_product(dw, x, h, first=not a)
        if need_db and not a:
            torch.sum(x, 0, dtype=torch.float32, out=db)
        elif need_db:
            db += x.sum(0, dtype=torch.float32)
    return dh


def add_product(dw: torch.Tensor, x: torch.Tensor, h: torch.Tensor, *, first: bool) -> None:
    """dw += xᵀ h, or dw = xᵀ h. Into a wider dw some classes at a time: the whole would be as large as the weight."""
    if dw.dtype == x.dtype:
        torch.mm(x.t(), h, out=dw) if first else dw.addmm_(x.t(), h)
        return
    for a in range(0, len(dw), config.PRODUCT):
        part = slice(a, a + config.PRODUCT)
        if first:
            dw[part] = torch.mm(x[:, part].t(), h)
        else:
            dw[part] += torch.mm(x[:, part].t(), h)
