"""One launch: every program reads one split of one sequence's cache for one KV head, the last to arrive merges.

The splits are chosen on the device from ``lengths``: the keys of the whole batch divided by the programs there are,
so that long and short sequences share the machine evenly and one captured graph serves every length. Splits of a fixed
size may be more than the programs, which then take every so-manieth.
"""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels._counters import counters
from afn_kernels._fp8_scales import FP8, count
from afn_kernels._triton_math import softmax_step, tanh
from afn_kernels.decode_attention.arguments import fitting_split
from afn_kernels.decode_attention.config import HOPS, choose

LOG2E = 1.4426950408889634
BLOCK_B = 256  # lengths looked at together
MOST_ROWS = 64  # query rows of one program: new tokens x query heads of a KV head


@triton.jit
def _lengths(lengths, first, batch, capacity, BLOCK_B: tl.constexpr):
    o_b = first + tl.arange(0, BLOCK_B)
    b_length = tl.load(lengths + o_b, mask=o_b < batch, other=0)
    return o_b < batch, tl.minimum(tl.maximum(b_length, 0), capacity).to(tl.int64)


@triton.jit
def keys_per_split(lengths, batch, capacity, slots, BLOCK_B: tl.constexpr, MIN_KEYS: tl.constexpr):
    """The keys of all sequences divided by ``slots``, in sixteens."""
    total = tl.zeros([], tl.int64)
    for first in range(0, batch, BLOCK_B):
        _, b_length = _lengths(lengths, first, batch, capacity, BLOCK_B)
        total += tl.sum(b_length)
    return tl.maximum((tl.cdiv(total, slots) + 15) // 16 * 16, MIN_KEYS)


@triton.jit
def count_splits(lengths, batch, capacity, chunk, BLOCK_B: tl.constexpr):
    """Splits of all sequences."""
    splits = tl.zeros([], tl.int64)
    for first in range(0, batch, BLOCK_B):
        m_b, b_length = _lengths(lengths, first, batch, capacity, BLOCK_B)
        splits += tl.sum(tl.where(m_b, tl.maximum(tl.cdiv(b_length, chunk), 1), 0))
    return splits


@triton.jit
def find_split(item, lengths, batch, capacity, chunk, BLOCK_B: tl.constexpr):
    """Which sequence a split belongs to, and how many splits come before that sequence's."""
    sequence = tl.zeros([], tl.int64)
    before = tl.zeros([], tl.int64)
    passed = tl.zeros([], tl.int64)
    for first in range(0, batch, BLOCK_B):
        m_b, b_length = _lengths(lengths, first, batch, capacity, BLOCK_B)
        b_splits = tl.where(m_b, tl.maximum(tl.cdiv(b_length, chunk), 1), 0)
        b_upto = b_splits if BLOCK_B == 1 else passed + tl.cumsum(b_splits, 0)
        m_before = m_b & (b_upto <= item)
        sequence += tl.sum(m_before.to(tl.int64))
        before += tl.sum(tl.where(m_before, b_splits, 0))
        passed += tl.sum(b_splits)
    return sequence, before


@triton.jit
def load_scale(p, head, COUNT: tl.constexpr):
    """The scale of a cache: one for all KV heads or one for each; 1 where there is none."""
    b_scale = 1.0
    if COUNT:
        b_scale = tl.load(p + (head if COUNT > 1 else 0)).to(tl.float32)
    return b_scale


@triton.jit
def load_query(
    q, o_row, m_row, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, IS_FP8: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Rows [BLOCK_M, BLOCK_D] of the queries in the type of the products, and the factor of each row's scores."""
    o_d = tl.arange(0, BLOCK_D)
    b_q = tl.load(q + o_row[:, None] + o_d[None, :], mask=m_row[:, None] & (o_d < D)[None, :], other=0.0)
    b_factor = tl.zeros([BLOCK_M], tl.float32) + scale
    if IS_FP8:  # float16 holds every FP8 value but not every query: divide rows by a power of two, which is exact
        b_q = b_q.to(tl.float32)
        b_power = (tl.max(tl.abs(b_q), 1).to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        b_power = tl.where(b_power == 0.0, 1.0, b_power)
        b_q = b_q / b_power[:, None]
        b_factor *= b_power
    return b_q.to(DOT), b_factor


@triton.jit
def kv_offset(table, table_stride, sequence, head, key, m_key, k_strides, v_strides, PAGE: tl.constexpr):
    """Where keys and their values are: in a page of the sequence's table, or in the sequence's own row."""
    if PAGE:
        where = tl.load(table + sequence * table_stride + key // PAGE, mask=m_key, other=0).to(tl.int64)
        slot = (key % PAGE).to(tl.int64)
    else:
        where = sequence
        slot = key.to(tl.int64)
    k_batch, k_token, k_head = k_strides
    v_batch, v_token, v_head = v_strides
    return where * k_batch + slot * k_token + head * k_head, where * v_batch + slot * v_token + head * v_head


@triton.jit
def store_rows(
    out, b_acc, b_sum, b_v_scale, first_token, first_row, rows, head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Divides by the sum, and puts the rows where their tokens and query heads are in the output."""
    o_row, o_d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    b_out = b_acc / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None] * b_v_scale
    token = first_token + (first_row + o_row) // GROUP
    o_out = (token * (HEADS * GROUP) + head * GROUP + (first_row + o_row) % GROUP) * D
    m_out = (o_row < rows)[:, None] & (o_d < D)[None, :]
    tl.store(out + o_out[:, None] + o_d[None, :], b_out.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def merge(
    partial, stats, before, splits, o_row, m_row, per_split,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Output, maximum and sum over splits of one KV head, in their order, BLOCK_S at a time.

    Rows are ``o_row`` of the ``per_split`` that a split has of all KV heads.
    """
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_max = tl.full([BLOCK_R], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_R], tl.float32)
    b_out = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for first in tl.range(0, splits, BLOCK_S, num_stages=1):
        maxima, sums, parts, b_top = (), (), (), b_max
        for i in tl.static_range(BLOCK_S):  # every load of a round is on its way before the first is used
            m_part = m_row & (first + i < splits)
            o_part = (before + first + i) * per_split + o_row
            maxima += (tl.load(stats + 2 * o_part, mask=m_part, other=float("-inf"), cache_modifier=".cg"),)
            sums += (tl.load(stats + 2 * o_part + 1, mask=m_part, other=0.0, cache_modifier=".cg"),)
            p_part = partial + o_part[:, None] * D + o_d[None, :]
            parts += (tl.load(p_part, mask=m_part[:, None] & m_d[None, :], other=0.0, cache_modifier=".cg"),)
        for i in tl.static_range(BLOCK_S):
            b_top = tl.maximum(b_top, maxima[i])
        b_safe = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_keep = tl.exp2(b_max - b_safe)
        b_sum *= b_keep
        b_out *= b_keep[:, None]
        for i in tl.static_range(BLOCK_S):
            b_weight = tl.exp2(maxima[i] - b_safe)
            b_sum += sums[i] * b_weight
            b_out += parts[i] * b_weight[:, None]
        b_max = b_top
    return b_out, b_max, b_sum


@triton.jit
def store_or_merge(
    out, partial, stats, arrived, b_acc, b_max, b_sum, b_v_scale,
    sequence, head, column, columns, item, before, splits, new, first_row, rows,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The only split of a sequence goes to the output; of several each leaves its part, and the last merges them."""
    if splits == 1:
        store_rows(
            out, b_acc, b_sum, b_v_scale, sequence * new, first_row, rows, head, HEADS, GROUP, D, BLOCK_D, BLOCK_M
        )
    else:
        o_row, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
        m_row = o_row < rows
        stored = tl.minimum(new * GROUP, BLOCK_M)
        o_part = (item * columns + column) * stored + o_row
        tl.store(partial + o_part[:, None] * D + o_d[None, :], b_acc, mask=m_row[:, None] & (o_d < D)[None, :])
        tl.store(stats + 2 * o_part, b_max, mask=m_row)
        tl.store(stats + 2 * o_part + 1, b_sum, mask=m_row)
        tl.debug_barrier()  # every thread's stores come before the arrival
        p_arrived = arrived + sequence * columns + column
        if tl.atomic_add(p_arrived, 1, sem="acq_rel") == splits - 1:
            tl.store(p_arrived, 0)  # as the next launch, or the next replay, expects it
            o_merged = tl.arange(0, BLOCK_R)
            b_out, _, b_total = merge(
                partial, stats, before, splits, column * stored + o_merged, o_merged < rows, columns * stored,
                D, BLOCK_D, BLOCK_R, BLOCK_S,
            )  # fmt: skip
            store_rows(
                out, b_out, b_total, b_v_scale, sequence * new, first_row, rows, head, HEADS, GROUP, D, BLOCK_D, BLOCK_R
            )


@triton.jit
def one_split(
    item, chunk, q, k, v, lengths, table, k_scale, v_scale, out, partial, stats, arrived,
    q_strides, k_strides, v_strides, table_stride, batch, capacity, most, new, scale, cap, left,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr,
    K_SCALES: tl.constexpr, V_SCALES: tl.constexpr, IS_FP8: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Attention over split ``item`` of all splits, and the merge where it is the last of its sequence."""
    column, columns = tl.program_id(0), tl.num_programs(0)
    sequence, before = find_split(item, lengths, batch, most, chunk, BLOCK_B)
    # Past the last sequence there are no keys and no rows; a return would keep the loop from being pipelined.
    m_sequence = sequence < batch
    length = tl.minimum(tl.maximum(tl.load(lengths + sequence, mask=m_sequence, other=0), 0), capacity).to(tl.int32)
    skipped = length - tl.minimum(length, most) if WINDOW else 0
    splits = tl.maximum(tl.cdiv(length - skipped, chunk), 1)
    begin = ((item - before) * chunk + skipped).to(tl.int32)
    end = tl.minimum(begin + chunk, length).to(tl.int32)

    tiles = columns // HEADS
    head = (column // tiles).to(tl.int64)
    first_row = column % tiles * BLOCK_M
    rows = tl.where(m_sequence, tl.minimum(new * GROUP - first_row, BLOCK_M), 0)
    o_row = tl.arange(0, BLOCK_M)
    token = (first_row + o_row) // GROUP
    q_batch, q_token, q_head = q_strides
    o_q = sequence * q_batch + token.to(tl.int64) * q_token + (head * GROUP + (first_row + o_row) % GROUP) * q_head
    row_scale = scale * load_scale(k_scale, head, K_SCALES)
    b_q, b_factor = load_query(q, o_q, o_row < rows, row_scale, D, BLOCK_M, BLOCK_D, IS_FP8, DOT)

    o_d = tl.arange(0, BLOCK_D)
    b_end = tl.minimum(length - new + 1 + token, end)  # a row sees the keys before: causal among the new tokens
    if WINDOW:
        b_begin = length - new + token - left
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        m_key = key < end  # what lies beyond may be stale and is never read
        o_k, o_v = kv_offset(table, table_stride, sequence, head, key, m_key, k_strides, v_strides, PAGE)
        m_kv = m_key[:, None] & (o_d < D)[None, :]
        b_k = tl.load(k + o_k[:, None] + o_d[None, :], mask=m_kv, other=0.0).to(DOT)
        b_v = tl.load(v + o_v[:, None] + o_d[None, :], mask=m_kv, other=0.0).to(DOT)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * b_factor[:, None]
        if SOFTCAP:
            b_s = tanh(b_s / cap) * cap
        b_s = tl.where(key[None, :] < b_end[:, None], b_s, float("-inf"))
        if WINDOW:
            b_s = tl.where(key[None, :] >= b_begin[:, None], b_s, float("-inf"))
        b_p, b_keep, b_max, b_sum = softmax_step(b_s, b_max, b_sum, 1.0, 1.0, True)
        b_acc = tl.dot(b_p.to(DOT), b_v, b_acc * b_keep[:, None], input_precision="ieee")

    store_or_merge(
        out, partial, stats, arrived, b_acc, b_max, b_sum, load_scale(v_scale, head, V_SCALES),
        sequence, head, column, columns, item, before, splits, new, first_row, rows,
        HEADS, GROUP, D, BLOCK_D, BLOCK_M, BLOCK_R, BLOCK_S,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride", "batch", "capacity", "slots", "new", "left", "split"])
def decode_kernel(
    q, k, v, lengths, table, k_scale, v_scale, out, partial, stats, arrived, q_strides, k_strides, v_strides,
    table_stride, batch, capacity, slots, split, new, scale, cap, left,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr,
    K_SCALES: tl.constexpr, V_SCALES: tl.constexpr, IS_FP8: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr,
    MIN_KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(1).to(tl.int64)
    most = capacity
    if WINDOW:  # of a longer sequence only the last keys are shared out
        most = tl.minimum(capacity, left + new)
    if SPLIT:
        items = count_splits(lengths, batch, most, split, BLOCK_B)
        for item in range(program, items, tl.num_programs(1)):
            one_split(
                item, split, q, k, v, lengths, table, k_scale, v_scale, out, partial, stats, arrived,
                q_strides, k_strides, v_strides, table_stride, batch, capacity, most, new, scale, cap, left,
                HEADS, GROUP, D, BLOCK_D, PAGE, K_SCALES, V_SCALES, IS_FP8, DOT,
                BLOCK_M, BLOCK_R, BLOCK_N, BLOCK_B, BLOCK_S, WINDOW, SOFTCAP,
            )  # fmt: skip
    else:
        one_split(
            program, keys_per_split(lengths, batch, most, slots, BLOCK_B, MIN_KEYS),
            q, k, v, lengths, table, k_scale, v_scale, out, partial, stats, arrived,
            q_strides, k_strides, v_strides, table_stride, batch, capacity, most, new, scale, cap, left,
            HEADS, GROUP, D, BLOCK_D, PAGE, K_SCALES, V_SCALES, IS_FP8, DOT,
            BLOCK_M, BLOCK_R, BLOCK_N, BLOCK_B, BLOCK_S, WINDOW, SOFTCAP,
        )  # fmt: skip


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    split: int,
    left: int,
    softcap: float,
    scale: float,
) -> torch.Tensor:
    """[B, n, Hq, D], contiguous. The last axes of q, the caches and the table are contiguous, the others anything."""
    batch, new, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    kv_heads, page = k_cache.shape[2], 0 if block_table is None else k_cache.shape[1]
    capacity = k_cache.shape[1] if block_table is None else block_table.shape[1] * page
    split = fitting_split(split, capacity)
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(width))
    rows = min(triton.next_power_of_2(new * group), MOST_ROWS)
    columns = kv_heads * triton.cdiv(new * group, rows)
    config = choose(block_d * k_cache.element_size(), rows, q.device)
    merged = config.merged // 2 if split else config.merged  # more splits than programs: the loop needs registers

    slots = max(1, triton.cdiv(config.waves * _triton.programs(q.device), columns))
    if split:
        splits = batch * max(1, triton.cdiv(capacity if left < 0 else min(capacity, left + new), split))
        programs = min(slots, splits)
    else:  # at most ``slots`` splits if they were all full, and one that is not for every sequence after the first
        slots = max(1, min(slots, triton.cdiv(batch * capacity, config.least)))
        splits = programs = slots + batch - 1
    stored = min(new * group, rows)
    partial = torch.empty(splits, columns, stored, width, dtype=torch.float32, device=q.device)
    stats = torch.empty(splits, columns, stored, 2, dtype=torch.float32, device=q.device)
    decode_kernel[(columns, programs)](
        q, k_cache, v_cache, lengths, block_table, k_scale, v_scale, out, partial, stats,
        counters(batch * columns, q.device), q.stride()[:3], k_cache.stride()[:3], v_cache.stride()[:3],
        0 if block_table is None else block_table.stride(0), batch, capacity, slots, split, new, scale * LOG2E,
        softcap * LOG2E if softcap else None, left if left >= 0 else None,
        HEADS=kv_heads, GROUP=group, D=width, BLOCK_D=block_d, PAGE=page,
        K_SCALES=count(k_scale), V_SCALES=count(v_scale), IS_FP8=k_cache.dtype == FP8, DOT=dot_type(k_cache.dtype),
        BLOCK_M=max(16, rows), BLOCK_R=rows, BLOCK_N=config.block, BLOCK_B=1 if batch == 1 else BLOCK_B,
        BLOCK_S=max(1, min(16, merged * 32 * config.warps // (rows * block_d))), MIN_KEYS=config.least,
        WINDOW=left >= 0, SOFTCAP=bool(softcap), SPLIT=split > 0, num_warps=config.warps,
        num_stages=config.stages + (HOPS if page else 0),
    )  # fmt: skip
    return out


def dot_type(cache: torch.dtype) -> tl.dtype:
    """What the products multiply: FP8 in float16, which holds all of its values."""
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}.get(cache, tl.float16)
