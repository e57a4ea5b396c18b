"""One launch each way: csrc/cuda/ulysses_permute.cu, whose table of places is made here."""

import torch

from afn_kernels import _cuda
from afn_kernels._kept import kept

THREADS = 256
SLOTS = 4  # heads of a row under way in a block: 36 of them are nine rounds
BLOCKS = 512  # about four to a multiprocessor: fewer tokens have smaller blocks. By arithmetic, not timed
NAMES = {torch.float32: "_float32", torch.bfloat16: "_bfloat16", torch.float16: "_float16"}
KERNELS = {
    name: _cuda.Kernel("ulysses_permute", name, "PPPPPPPPqqqqqqqiiiii", THREADS)
    for name in (
        "pack_heads",
        *(
            f"{start}{dtype}"
            for start in ("pack_heads_rotary", "unpack_heads", "unpack_heads_rotary")
            for dtype in NAMES.values()
        ),
    )
}


@kept
def places(heads: tuple[int, ...], q_heads: int, kv_heads: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """Where the copies of each head of q, k and v are in the parts, for the kernel.

    Args:
        heads: first and last query head and first and last KV head of each peer, one after another.
        q_heads, kv_heads: of the tensors; without KV heads only q is moved.

    Returns:
        int32 [copies · 4 + heads + 1]: heads of the peers before, heads of the peer, number among them, 0; then where
        the copies of each head begin. And how many copies there are, which is how many heads the parts have.
    """
    copies: list[list[int]] = [[] for _ in range(q_heads + 2 * kv_heads)]
    before = 0
    for a, b, c, d in zip(*[iter(heads)] * 4, strict=True):
        moved = list(range(a, b))
        if kv_heads:
            moved += [*range(q_heads + c, q_heads + d), *range(q_heads + kv_heads + c, q_heads + kv_heads + d)]
        for number, head in enumerate(moved):
            copies[head] += (before, len(moved), number, 0)
        before += len(moved)
    first = [0]
    for found in copies:
        first.append(first[-1] + len(found) // 4)
    table = [number for found in copies for number in found] + first
    return torch.tensor(table, dtype=torch.int32, device=device), before


def aligned(x: torch.Tensor) -> torch.Tensor:
    """Rows and heads may be any number of 16 bytes apart; anything else is copied."""
    row, head, element = x.stride()
    fits = element == 1 and not (x.data_ptr() | (row | head) * x.element_size()) % 16
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def pack(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    heads: list[int],
    positions: torch.Tensor | None,
    inv_freq: torch.Tensor | None,
) -> torch.Tensor:
    """The parts of all peers, flat; of q alone without k and v."""
    tokens, q_heads, dim = q.shape
    kv_heads = 0 if k is None else k.shape[1]
    table = places(tuple(heads), q_heads, kv_heads, q.device)
    flat = torch.empty(tokens * table[1] * dim, dtype=q.dtype, device=q.device)
    tensors = [x if x is None else aligned(x) for x in (q, k, v)]
    name = "pack_heads" if positions is None else f"pack_heads_rotary{NAMES[q.dtype]}"
    launch(name, tensors, flat, table, (tokens, q_heads, kv_heads, dim), positions, inv_freq)
    return flat


def unpack(
    flat: torch.Tensor,
    heads: list[int],
    tokens: int,
    q_heads: int,
    kv_heads: int,
    dim: int,
    wanted: list[bool],
    positions: torch.Tensor | None,
    inv_freq: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v from the parts of all peers, copies of a head added; what is not wanted is empty."""
    counts = (q_heads, kv_heads, kv_heads)
    shapes = [(tokens, count, dim) if want else (0,) for count, want in zip(counts, wanted, strict=True)]
    out = [torch.empty(shape, dtype=flat.dtype, device=flat.device) for shape in shapes]
    tensors = [x if want else None for x, want in zip(out, wanted, strict=True)]
    name = f"unpack_heads{'' if positions is None else '_rotary'}{NAMES[flat.dtype]}"
    if flat.data_ptr() % 16:
        flat = flat.clone()
    table = places(tuple(heads), q_heads, kv_heads, flat.device)
    launch(name, tensors, flat, table, (tokens, q_heads, kv_heads, dim), positions, inv_freq)
    return tuple(out)


def unpack_q(flat: torch.Tensor, heads: list[int], dim: int) -> torch.Tensor:
    """Query heads alone."""
    q_heads = heads[-3]
    tokens = flat.numel() // (q_heads * dim)
    return unpack(flat, heads, tokens, q_heads, 0, dim, [True, False, False], None, None)[0]


def launch(
    name: str,
    tensors: list[torch.Tensor | None],
    flat: torch.Tensor,
    table: tuple[torch.Tensor, int],
    sizes: tuple[int, int, int, int],
    positions: torch.Tensor | None,
    inv_freq: torch.Tensor | None,
) -> None:
    tokens, q_heads, kv_heads, dim = sizes
    if not flat.numel():
        return
    each = 16 // flat.element_size()
    units = dim // each if positions is None else dim // (2 * each)
    slots, rows = SLOTS, max(THREADS // units // SLOTS, 1)
    if THREADS // units < SLOTS:
        slots = THREADS // units
    while rows > 1 and tokens < BLOCKS * rows:
        rows, slots = rows // 2, slots * 2
    numbers, copies = table
    strides = [0 if x is None else x.stride(axis) // each for axis in (0, 1) for x in tensors]
    pointers = [_cuda.pointer(x) for x in (*tensors, flat)]
    angles = (0, 0) if positions is None else (positions.data_ptr(), inv_freq.data_ptr())
    shared = 0 if positions is None else rows * dim // 2 * 8
    KERNELS[name].launch(
        (-(-tokens // rows), 1), shared, flat.device,
        *pointers, numbers.data_ptr(), numbers.data_ptr() + 16 * copies, *angles,
        *strides, tokens, q_heads, kv_heads, units, rows, slots,
    )  # fmt: skip
