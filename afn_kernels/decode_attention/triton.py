"""One launch: every program reads one split of one sequence's cache for one KV head, the last to arrive merges.

The splits are chosen on the device from ``lengths``: the keys of the whole batch divided by the programs there are,
so that long and short sequences share the machine evenly and one captured graph serves every length.
"""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels._counters import counters
from afn_kernels._fp8_scales import FP8, count
from afn_kernels.decode_attention.config import HOPS, choose

LOG2E = 1.4426950408889634
LANES = 256  # lengths looked at together
MOST_ROWS = 64  # query rows of one program: new tokens x query heads of a KV head


@triton.jit
def _lengths(lengths, first, batch, capacity, LANES: tl.constexpr):
    lane = first + tl.arange(0, LANES)
    b_length = tl.load(lengths + lane, mask=lane < batch, other=0)
    return lane < batch, tl.minimum(tl.maximum(b_length, 0), capacity).to(tl.int64)


@triton.jit
def find_split(program, lengths, batch, capacity, slots, LANES: tl.constexpr, LEAST: tl.constexpr):
    """Which sequence a program works on, how many splits come before that sequence's, its own, and keys per split."""
    total = tl.zeros([], tl.int64)
    for first in range(0, batch, LANES):
        _, b_length = _lengths(lengths, first, batch, capacity, LANES)
        total += tl.sum(b_length)
    chunk = tl.maximum((tl.cdiv(total, slots) + 15) // 16 * 16, LEAST)
    sequence = tl.zeros([], tl.int64)
    before = tl.zeros([], tl.int64)
    passed = tl.zeros([], tl.int64)
    for first in range(0, batch, LANES):
        inside, b_length = _lengths(lengths, first, batch, capacity, LANES)
        b_splits = tl.where(inside, tl.maximum(tl.cdiv(b_length, chunk), 1), 0)
        b_upto = b_splits if LANES == 1 else passed + tl.cumsum(b_splits, 0)
        b_before = inside & (b_upto <= program)
        sequence += tl.sum(b_before.to(tl.int64))
        before += tl.sum(tl.where(b_before, b_splits, 0))
        passed += tl.sum(b_splits)
    return sequence, before, chunk


@triton.jit
def merge(
    out, partial, stats, before, splits, column, columns, stored, first_token, first_row, rows, head, b_v_scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    MERGED: tl.constexpr,
):  # fmt: skip
    """The splits of one sequence and KV head, in their order, MERGED at a time."""
    o_row = tl.arange(0, ROWS)
    o_d = tl.arange(0, WIDE)
    m_row = o_row < rows
    m_d = o_d < D
    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    b_out = tl.zeros([ROWS, WIDE], tl.float32)
    for first in tl.range(0, splits, MERGED, num_stages=1):
        maxima, sums, parts, b_top = (), (), (), b_max
        for i in tl.static_range(MERGED):  # every load of a round is on its way before the first is used
            mask = m_row & (first + i < splits)
            o_part = ((before + first + i) * columns + column) * stored + o_row
            maxima += (tl.load(stats + 2 * o_part, mask=mask, other=float("-inf"), cache_modifier=".cg"),)
            sums += (tl.load(stats + 2 * o_part + 1, mask=mask, other=0.0, cache_modifier=".cg"),)
            p_part = partial + o_part[:, None] * D + o_d[None, :]
            parts += (tl.load(p_part, mask=mask[:, None] & m_d[None, :], other=0.0, cache_modifier=".cg"),)
        for i in tl.static_range(MERGED):
            b_top = tl.maximum(b_top, maxima[i])
        b_safe = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_keep = tl.exp2(b_max - b_safe)
        b_sum *= b_keep
        b_out *= b_keep[:, None]
        for i in tl.static_range(MERGED):
            b_weight = tl.exp2(maxima[i] - b_safe)
            b_sum += sums[i] * b_weight
            b_out += parts[i] * b_weight[:, None]
        b_max = b_top
    b_out = b_out / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None] * b_v_scale
    token = first_token + (first_row + o_row) // GROUP
    o_out = (token * (HEADS * GROUP) + head * GROUP + (first_row + o_row) % GROUP) * D
    p_out = out + o_out[:, None] + o_d[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_row[:, None] & m_d[None, :])


@triton.jit(do_not_specialize=["table_stride", "batch", "capacity", "slots", "new"])
def decode_kernel(
    q, k, v, lengths, table, k_scale, v_scale, out, partial, stats, arrived,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    table_stride, batch, capacity, slots, new, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, PAGE: tl.constexpr,
    K_SCALES: tl.constexpr, V_SCALES: tl.constexpr, NARROW: tl.constexpr, DOT: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, LEAST: tl.constexpr,
    MERGED: tl.constexpr,
):  # fmt: skip
    column, program = tl.program_id(0), tl.program_id(1)
    columns = tl.num_programs(0)
    sequence, before, chunk = find_split(program, lengths, batch, capacity, slots, LANES, LEAST)
    real = (
        sequence < batch
    )  # else nothing is left: no keys, no rows (a return would keep the loop from being pipelined)
    length = tl.minimum(tl.maximum(tl.load(lengths + sequence, mask=real, other=0), 0), capacity).to(tl.int32)
    splits = tl.maximum(tl.cdiv(length, chunk), 1)
    begin = ((program - before) * chunk).to(tl.int32)
    end = tl.minimum(begin + chunk, length).to(tl.int32)

    tiles = columns // HEADS
    head = (column // tiles).to(tl.int64)
    first_row = column % tiles * TILE
    rows = tl.where(real, tl.minimum(new * GROUP - first_row, TILE), 0)
    o_d = tl.arange(0, WIDE)
    m_d = o_d < D
    o_row = tl.arange(0, TILE)
    token = (first_row + o_row) // GROUP
    query_head = head * GROUP + (first_row + o_row) % GROUP
    p_q = q + sequence * q_batch + token.to(tl.int64)[:, None] * q_token + query_head[:, None] * q_head + o_d[None, :]
    b_q = tl.load(p_q, mask=(o_row < rows)[:, None] & m_d[None, :], other=0.0)
    factor = tl.zeros([TILE], tl.float32) + scale
    if K_SCALES:
        factor *= tl.load(k_scale + (head if K_SCALES > 1 else 0)).to(tl.float32)
    if NARROW:  # float16 holds every FP8 value but not every query: divide rows by a power of two, which is exact
        b_q = b_q.to(tl.float32)
        b_power = (tl.max(tl.abs(b_q), 1).to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        b_power = tl.where(b_power == 0.0, 1.0, b_power)
        b_q = b_q / b_power[:, None]
        factor *= b_power
    b_q = b_q.to(DOT)

    seen = length - new + 1 + token  # keys that a row sees: causal among the new tokens
    b_max = tl.full([TILE], float("-inf"), tl.float32)
    b_sum = tl.zeros([TILE], tl.float32)
    b_acc = tl.zeros([TILE, WIDE], tl.float32)
    for start in range(begin, end, BLOCK):
        key = start + tl.arange(0, BLOCK)
        inside = key < end  # what lies beyond may be stale and is never read
        if PAGE:
            where = tl.load(table + sequence * table_stride + key // PAGE, mask=inside, other=0).to(tl.int64)
            slot = (key % PAGE).to(tl.int64)
        else:
            where = sequence
            slot = key.to(tl.int64)
        mask = inside[:, None] & m_d[None, :]
        o_k = where * k_batch + slot * k_token + head * k_head
        b_k = tl.load(k + o_k[:, None] + o_d[None, :], mask=mask, other=0.0).to(DOT)
        o_v = where * v_batch + slot * v_token + head * v_head
        b_v = tl.load(v + o_v[:, None] + o_d[None, :], mask=mask, other=0.0).to(DOT)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * factor[:, None]
        b_s = tl.where(key[None, :] < tl.minimum(seen, end)[:, None], b_s, float("-inf"))
        b_top = tl.maximum(b_max, tl.max(b_s, 1))
        b_safe = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_keep = tl.exp2(b_max - b_safe)
        b_p = tl.exp2(b_s - b_safe[:, None])
        b_sum = b_sum * b_keep + tl.sum(b_p, 1)
        b_acc = tl.dot(b_p.to(DOT), b_v, b_acc * b_keep[:, None], input_precision="ieee")
        b_max = b_top

    b_v_scale = 1.0
    if V_SCALES:
        b_v_scale = tl.load(v_scale + (head if V_SCALES > 1 else 0)).to(tl.float32)
    heads: tl.constexpr = HEADS * GROUP
    if splits == 1:
        b_acc = b_acc / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None] * b_v_scale
        o_out = ((sequence * new + token) * heads + query_head) * D
        p_out = out + o_out[:, None] + o_d[None, :]
        tl.store(p_out, b_acc.to(out.dtype.element_ty), mask=(o_row < rows)[:, None] & m_d[None, :])
    else:
        stored = tl.minimum(new * GROUP, TILE)
        part = (program.to(tl.int64) * columns + column) * stored
        m_row = o_row < rows
        tl.store(partial + (part + o_row)[:, None] * D + o_d[None, :], b_acc, mask=m_row[:, None] & m_d[None, :])
        tl.store(stats + 2 * (part + o_row), b_max, mask=m_row)
        tl.store(stats + 2 * (part + o_row) + 1, b_sum, mask=m_row)
        tl.debug_barrier()  # every thread's stores come before the arrival
        p_arrived = arrived + sequence * columns + column
        if tl.atomic_add(p_arrived, 1, sem="acq_rel") == splits - 1:
            tl.store(p_arrived, 0)  # as the next launch, or the next replay, expects it
            merge(
                out, partial, stats, before, splits, column, columns, stored, sequence * new, first_row, rows, head,
                b_v_scale, HEADS, GROUP, D, WIDE, ROWS, MERGED,
            )  # fmt: skip


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """[B, n, Hq, D], contiguous. The last axes of q, the caches and the table are contiguous, the others anything."""
    batch, new, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    kv_heads, page = k_cache.shape[2], 0 if block_table is None else k_cache.shape[1]
    capacity = k_cache.shape[1] if block_table is None else block_table.shape[1] * page
    group, narrow, wide = heads // kv_heads, k_cache.dtype == FP8, max(16, triton.next_power_of_2(width))
    rows = min(triton.next_power_of_2(new * group), MOST_ROWS)
    columns = kv_heads * triton.cdiv(new * group, rows)
    config = choose(wide * k_cache.element_size(), rows)

    # At most ``slots`` splits if they were all full, and one that is not for every sequence after the first.
    slots = max(1, triton.cdiv(config.waves * _triton.programs(q.device), columns))
    slots = max(1, min(slots, triton.cdiv(batch * capacity, config.least)))
    splits, stored = slots + batch - 1, min(new * group, rows)
    partial = torch.empty(splits, columns, stored, width, dtype=torch.float32, device=q.device)
    stats = torch.empty(splits, columns, stored, 2, dtype=torch.float32, device=q.device)
    decode_kernel[(columns, splits)](
        q, k_cache, v_cache, lengths, block_table, k_scale, v_scale, out, partial, stats,
        counters(batch * columns, q.device), *q.stride()[:3], *k_cache.stride()[:3], *v_cache.stride()[:3],
        0 if block_table is None else block_table.stride(0), batch, capacity, slots, new, scale * LOG2E,
        HEADS=kv_heads, GROUP=group, D=width, WIDE=wide, PAGE=page,
        K_SCALES=count(k_scale), V_SCALES=count(v_scale), NARROW=narrow, DOT=_dot_type(k_cache.dtype),
        TILE=max(16, rows), ROWS=rows, BLOCK=config.block, LANES=1 if batch == 1 else LANES, LEAST=config.least,
        MERGED=max(1, min(16, config.merged * 32 * config.warps // (rows * wide))),
        num_warps=config.warps, num_stages=config.stages + (HOPS if page else 0),
    )  # fmt: skip
    return out


def _dot_type(cache: torch.dtype) -> tl.dtype:
    """What the products multiply. The interpreter cannot multiply bfloat16."""
    if cache == torch.bfloat16:
        return tl.float32 if _triton.interpreted() else tl.bfloat16
    return tl.float32 if cache == torch.float32 else tl.float16
