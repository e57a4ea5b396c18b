"""Sequences that begin with the same keys: those are read once for all of them. Two launches.

What is read is a list of units, first the prefix of every group, then what each sequence has of its own behind it. A
unit is cut into splits as a sequence is in triton.py. The rows of a prefix are those of all its sequences, which follow
each other; every split leaves its part, and a second launch puts those of a sequence together.
"""

import torch
import triton
import triton.language as tl

from afn_kernels import _triton
from afn_kernels._fp8_scales import FP8, count
from afn_kernels._triton_math import softmax_step, tanh
from afn_kernels.decode_attention.arguments import fitting_split
from afn_kernels.decode_attention.config import HOPS, choose
from afn_kernels.decode_attention.triton import (
    LOG2E,
    MOST_ROWS,
    dot_type,
    kv_offset,
    load_query,
    load_scale,
    merge,
    store_rows,
)

BLOCK_U = 256  # units looked at together
MERGED, WARPS = 64, 4  # of the merge: float32 values of parts that a thread loads at once; no spills, not timed


@triton.jit
def load_lengths(lengths, prefixes, sequence, m_sequence, members, capacity):
    """Keys of sequences, their group's included, and how many the group has: also for one that is empty itself."""
    b_length = tl.load(lengths + sequence, mask=m_sequence, other=0)
    b_prefix = tl.load(prefixes + sequence // members, mask=m_sequence, other=0)
    b_length = tl.minimum(tl.maximum(b_length, 0), capacity).to(tl.int64)
    return b_length, tl.minimum(tl.maximum(b_prefix, 0), capacity).to(tl.int64)


@triton.jit
def unit_keys(first, lengths, prefixes, groups, members, capacity, BLOCK_U: tl.constexpr):
    """Keys of BLOCK_U units, and which of them there are."""
    o_u = first + tl.arange(0, BLOCK_U)
    m_prefix = o_u < groups
    sequence = tl.where(m_prefix, o_u * members, o_u - groups)
    m_u = o_u < groups + groups * members
    b_length, b_prefix = load_lengths(lengths, prefixes, sequence, m_u, members, capacity)
    return tl.where(m_prefix, b_prefix, tl.maximum(b_length - b_prefix, 0)), m_u


@triton.jit
def count_splits(
    lengths, prefixes, groups, members, capacity, slots, split, BLOCK_U: tl.constexpr, MIN_KEYS: tl.constexpr
):
    """Keys per split, and the splits of all units."""
    units = groups + groups * members
    total = tl.zeros([], tl.int64)
    for first in range(0, units, BLOCK_U):
        b_keys, _ = unit_keys(first, lengths, prefixes, groups, members, capacity, BLOCK_U)
        total += tl.sum(b_keys)
    chunk = tl.where(split > 0, split, tl.maximum((tl.cdiv(total, slots) + 15) // 16 * 16, MIN_KEYS))
    splits = tl.zeros([], tl.int64)
    for first in range(0, units, BLOCK_U):
        b_keys, m_u = unit_keys(first, lengths, prefixes, groups, members, capacity, BLOCK_U)
        splits += tl.sum(tl.where(m_u, tl.maximum(tl.cdiv(b_keys, chunk), 1), 0))
    return chunk, splits


@triton.jit
def find_unit(item, lengths, prefixes, groups, members, capacity, chunk, BLOCK_U: tl.constexpr):
    """The unit of a split, and how many splits come before that unit's."""
    unit = tl.zeros([], tl.int64)
    before = tl.zeros([], tl.int64)
    passed = tl.zeros([], tl.int64)
    for first in range(0, groups + groups * members, BLOCK_U):
        b_keys, m_u = unit_keys(first, lengths, prefixes, groups, members, capacity, BLOCK_U)
        b_splits = tl.where(m_u, tl.maximum(tl.cdiv(b_keys, chunk), 1), 0)
        m_before = m_u & (passed + tl.cumsum(b_splits, 0) <= item)
        unit += tl.sum(m_before.to(tl.int64))
        before += tl.sum(tl.where(m_before, b_splits, 0))
        passed += tl.sum(b_splits)
    return unit, before


@triton.jit
def splits_before(unit, lengths, prefixes, groups, members, capacity, chunk, BLOCK_U: tl.constexpr):
    """How many splits come before a unit's, and how many it has."""
    before = tl.zeros([], tl.int64)
    own = tl.zeros([], tl.int64)
    for first in range(0, unit + 1, BLOCK_U):
        o_u = first + tl.arange(0, BLOCK_U)
        b_keys, _ = unit_keys(first, lengths, prefixes, groups, members, capacity, BLOCK_U)
        b_splits = tl.maximum(tl.cdiv(b_keys, chunk), 1)
        before += tl.sum(tl.where(o_u < unit, b_splits, 0))
        own += tl.sum(tl.where(o_u == unit, b_splits, 0))
    return before, own


@triton.jit(do_not_specialize=["table_stride", "groups", "members", "capacity", "slots", "split", "new"])
def parts_kernel(
    q, k, v, lengths, prefixes, table, k_scale, partial, stats, q_strides, k_strides, v_strides,
    table_stride, groups, members, capacity, slots, split, new, stored, scale, cap,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr,
    K_SCALES: tl.constexpr, IS_FP8: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, MIN_KEYS: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    column, columns = tl.program_id(0), tl.num_programs(0)
    tiles = columns // HEADS
    head = (column // tiles).to(tl.int64)
    o_m, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    o_row = column % tiles * BLOCK_M + o_m
    q_batch, q_token, q_head = q_strides
    row_scale = scale * load_scale(k_scale, head, K_SCALES)
    chunk, items = count_splits(lengths, prefixes, groups, members, capacity, slots, split, BLOCK_U, MIN_KEYS)
    for item in range(tl.program_id(1).to(tl.int64), items, tl.num_programs(1)):
        unit, before = find_unit(item, lengths, prefixes, groups, members, capacity, chunk, BLOCK_U)
        is_prefix = unit < groups
        sequence = tl.where(is_prefix, unit * members, unit - groups)  # the first of its rows', whose keys are read
        length, prefix = load_lengths(lengths, prefixes, sequence, True, members, capacity)
        begin = (item - before) * chunk + tl.where(is_prefix, 0, prefix)
        end = tl.minimum(begin + chunk, tl.where(is_prefix, prefix, length)).to(tl.int32)
        m_row = o_row < tl.where(is_prefix, members, 1) * new * GROUP
        token = sequence * new + o_row // GROUP  # of all sequences' tokens
        o_q = token // new * q_batch + token % new * q_token + (head * GROUP + o_row % GROUP) * q_head
        b_q, b_factor = load_query(q, o_q, m_row, row_scale, D, BLOCK_M, BLOCK_D, IS_FP8, DOT)
        # All see the whole prefix; what is behind it is causal among the new tokens.
        b_seen = tl.where(is_prefix, end, length - new + 1 + o_row // GROUP)
        b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        b_sum = tl.zeros([BLOCK_M], tl.float32)
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for start in range(begin.to(tl.int32), end, BLOCK_N):
            key = start + tl.arange(0, BLOCK_N)
            m_key = key < end
            o_k, o_v = kv_offset(table, table_stride, sequence, head, key, m_key, k_strides, v_strides, PAGE)
            m_kv = m_key[:, None] & (o_d < D)[None, :]
            b_k = tl.load(k + o_k[:, None] + o_d[None, :], mask=m_kv, other=0.0).to(DOT)
            b_v = tl.load(v + o_v[:, None] + o_d[None, :], mask=m_kv, other=0.0).to(DOT)
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * b_factor[:, None]
            if SOFTCAP:
                b_s = tanh(b_s / cap) * cap
            b_s = tl.where(m_key[None, :] & (key[None, :] < b_seen[:, None]), b_s, float("-inf"))
            b_p, b_keep, b_max, b_sum = softmax_step(b_s, b_max, b_sum, 1.0, 1.0, True)
            b_acc = tl.dot(b_p.to(DOT), b_v, b_acc * b_keep[:, None], input_precision="ieee")
        o_part = (item * columns + column) * stored + o_m
        m_row &= o_m < stored
        tl.store(partial + o_part[:, None] * D + o_d[None, :], b_acc, mask=m_row[:, None] & (o_d < D)[None, :])
        tl.store(stats + 2 * o_part, b_max, mask=m_row)
        tl.store(stats + 2 * o_part + 1, b_sum, mask=m_row)


@triton.jit(do_not_specialize=["groups", "members", "capacity", "slots", "split", "new", "columns"])
def merge_kernel(
    lengths, prefixes, v_scale, out, partial, stats, groups, members, capacity, slots, split, new, columns, stored,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, V_SCALES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_U: tl.constexpr, MIN_KEYS: tl.constexpr,
):  # fmt: skip
    head, sequence = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk, _ = count_splits(lengths, prefixes, groups, members, capacity, slots, split, BLOCK_U, MIN_KEYS)
    group, unit = sequence // members, groups + sequence
    rows, per_split, first_column = new * GROUP, columns * stored, head * (columns // HEADS)
    o_row = tl.arange(0, BLOCK_R)
    m_row = o_row < rows
    shared = sequence % members * rows + o_row
    o_shared = (first_column + shared // BLOCK_M) * stored + shared % BLOCK_M
    before, splits = splits_before(group, lengths, prefixes, groups, members, capacity, chunk, BLOCK_U)
    b_out, b_max, b_sum = merge(
        partial, stats, before, splits, o_shared, m_row, per_split, D, BLOCK_D, BLOCK_R, BLOCK_S
    )
    before, splits = splits_before(unit, lengths, prefixes, groups, members, capacity, chunk, BLOCK_U)
    b_own, b_own_max, b_own_sum = merge(
        partial, stats, before, splits, first_column * stored + o_row, m_row, per_split, D, BLOCK_D, BLOCK_R, BLOCK_S
    )
    b_top = tl.maximum(b_max, b_own_max)
    b_safe = tl.where(b_top == float("-inf"), 0.0, b_top)
    b_weight, b_own_weight = tl.exp2(b_max - b_safe), tl.exp2(b_own_max - b_safe)
    b_out = b_out * b_weight[:, None] + b_own * b_own_weight[:, None]
    b_sum = b_sum * b_weight + b_own_sum * b_own_weight
    filled = tl.load(lengths + sequence) > 0  # an empty sequence has no part in its group's prefix
    b_out, b_sum = tl.where(filled, b_out, 0.0), tl.where(filled, b_sum, 0.0)
    b_v_scale = load_scale(v_scale, head, V_SCALES)
    store_rows(out, b_out, b_sum, b_v_scale, sequence * new, 0, rows, head, HEADS, GROUP, D, BLOCK_D, BLOCK_R)


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    prefix_lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    split: int,
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
    groups, group, block_d = len(prefix_lengths), heads // kv_heads, max(16, triton.next_power_of_2(width))
    members, own = batch // groups, new * group
    rows = min(triton.next_power_of_2(members * own), MOST_ROWS)
    columns = kv_heads * triton.cdiv(members * own, rows)
    config = choose(block_d * k_cache.element_size(), rows, q.device)

    slots = max(1, triton.cdiv(config.waves * _triton.programs(q.device), columns))
    if split:
        splits = (groups + batch) * max(1, triton.cdiv(capacity, split))
        programs = min(slots, splits)
    else:
        slots = max(1, min(slots, triton.cdiv(batch * capacity, config.least)))
        splits = programs = slots + groups + batch - 1
    stored = min(members * own, rows)
    partial = torch.empty(splits, columns, stored, width, dtype=torch.float32, device=q.device)
    stats = torch.empty(splits, columns, stored, 2, dtype=torch.float32, device=q.device)
    cut = groups, members, capacity, slots, split, new
    parts_kernel[(columns, programs)](
        q, k_cache, v_cache, lengths, prefix_lengths, block_table, k_scale, partial, stats,
        q.stride()[:3], k_cache.stride()[:3], v_cache.stride()[:3],
        0 if block_table is None else block_table.stride(0), *cut, stored,
        scale * LOG2E, softcap * LOG2E if softcap else None,
        HEADS=kv_heads, GROUP=group, D=width, BLOCK_D=block_d, PAGE=page,
        K_SCALES=count(k_scale), IS_FP8=k_cache.dtype == FP8, DOT=dot_type(k_cache.dtype),
        BLOCK_M=max(16, rows), BLOCK_N=config.block, BLOCK_U=BLOCK_U, MIN_KEYS=config.least, SOFTCAP=bool(softcap),
        num_warps=config.warps, num_stages=config.stages + (HOPS if page else 0),
    )  # fmt: skip
    block_r = triton.next_power_of_2(own)
    merge_kernel[(kv_heads, batch)](
        lengths, prefix_lengths, v_scale, out, partial, stats, *cut, columns, stored,
        HEADS=kv_heads, GROUP=group, D=width, BLOCK_D=block_d, V_SCALES=count(v_scale),
        BLOCK_M=max(16, rows), BLOCK_R=block_r, BLOCK_U=BLOCK_U, MIN_KEYS=config.least,
        BLOCK_S=max(1, min(16, MERGED * 32 * WARPS // (block_r * block_d))), num_warps=WARPS,
    )  # fmt: skip
    return out
