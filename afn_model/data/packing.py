"""Packing clips of many lengths into bins of one context length: nearly full, and of balanced attention cost.

The rules, which csrc/cpu/pack.cpp and `_pack_python` below follow to the same answer (integers only, SplitMix64 draws):

1. The clips are shuffled (Fisher-Yates) into a stream and taken from it a buffer at a time.
2. In a buffer, ceil(tokens / context) bins are opened and the clips placed longest first, the earlier in the stream
   first among equals. Cost is the sum of squared lengths. Until 7/8 of the tokens are placed, a clip goes to the bin of
   least cost that has room for it; the rest goes to the bin with least room left (best fit), and in it the least cost.
   Ties: least room, then least cost, then the bin opened first. No bin may exceed `max_cost`; where none will do, one
   more is opened.
3. The emptiest bin gives its clips to the next buffer, unless one of them has waited before.
4. The other bins are shuffled into a queue. As many of them as make whole steps, first come first, are sorted by cost
   and cut into steps of `step` bins of like cost; the steps are shuffled, then the bins in each. The rest of the queue
   waits for the next buffer.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from afn_kernels import cpu
from afn_model.hashing import GAMMA, MASK, mix

MAX_CONTEXT = 1 << 20


@dataclass(frozen=True)
class Packing:
    """The bins, in the order to train on them.

    Attributes:
        clips: [clips] int64, indices into the lengths given to `pack`, bin after bin; every index once.
        cu: [bins + 1] int64; bin b holds ``clips[cu[b]:cu[b + 1]]``.
        lengths: [clips] int64, tokens of each entry of `clips`.
        context: most tokens of a bin.
        step: bins of a global step; step s is bins ``s * step`` to ``(s + 1) * step - 1``, the last may be short.
    """

    clips: np.ndarray
    cu: np.ndarray
    lengths: np.ndarray
    context: int
    step: int

    def __len__(self) -> int:
        """Number of bins."""
        return len(self.cu) - 1

    def __getitem__(self, b: int) -> np.ndarray:
        """The clips of bin b."""
        if not 0 <= b < len(self):
            raise IndexError(f"bin {b} is outside the {len(self)} bins of the packing")
        return self.clips[self.cu[b] : self.cu[b + 1]]

    def cu_seqlens(self, b: int) -> torch.Tensor:
        """Bounds of the clips within bin b for `afn_kernels.attention`: [clips in the bin + 1] int32, from 0."""
        tokens = self.lengths[self.cu[b] : self.cu[b] + len(self[b])]
        return torch.from_numpy(np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32))

    @property
    def tokens(self) -> np.ndarray:
        """[bins] int64: tokens in each bin."""
        return np.add.reduceat(self.lengths, self.cu[:-1]) if len(self) else np.zeros(0, np.int64)

    @property
    def costs(self) -> np.ndarray:
        """[bins] int64: sum of squared lengths of each bin."""
        return np.add.reduceat(self.lengths**2, self.cu[:-1]) if len(self) else np.zeros(0, np.int64)

    @property
    def used(self) -> float:
        """Share of the bins' room that holds tokens; 1 where there are no bins."""
        return int(self.lengths.sum()) / (len(self) * self.context) if len(self) else 1.0

    @property
    def spread(self) -> np.ndarray:
        """[whole steps] float64: largest cost of a bin in the step over the mean of the step, minus 1."""
        whole = self.costs[: len(self) // self.step * self.step].reshape(-1, self.step).astype(np.float64)
        return whole.max(1) / whole.mean(1) - 1

    @property
    def imbalance(self) -> float:
        """Share of the attention time that ranks wait for the slowest of their step, over all whole steps."""
        whole = self.costs[: len(self) // self.step * self.step].reshape(-1, self.step).astype(np.float64)
        return float(1 - whole.mean(1).sum() / whole.max(1).sum()) if len(whole) else 0.0


def pack(
    lengths: Sequence[int] | np.ndarray | torch.Tensor,
    context: int,
    *,
    seed: int,
    max_cost: int | None = None,
    buffer: int = 65_536,
    step: int = 1,
    impl: str = "auto",
) -> Packing:
    """Bins of at most `context` tokens, nearly full, of even attention cost within a step, in a seeded random order.

    cost(bin) = Σ length². The answer is a function of the arguments alone: not of the machine, threads or `impl`.

    What is random: the whole set is shuffled by `seed`, so which clips can meet is random, and a clip trains within
    three buffers of its place in that shuffle (a bin that does not fill a step may wait longer where a buffer has
    fewer bins than `step`). What is not: within a buffer, which clips share a bin follows from their lengths, and a
    step holds bins of like cost, so lengths within a step are correlated; accumulate over several steps to even that
    out. A larger `buffer` fills and balances better; a smaller one keeps clips closer to their place.

    Args:
        lengths: [clips] integers, tokens of each clip, 1 to `context`. What is longer must be cut or left out by the
            caller, who knows what may be cut.
        context: most tokens of a bin, 1 to 2^20.
        seed: 0 to 2^64 - 1; another seed for every epoch.
        max_cost: most Σ length² of a bin, at least the square of the longest clip; None: no bound. A tight bound costs
            room: the bins' mean cost is Σ length² / bins whatever the packing.
        buffer: clips packed together, at least 1.
        step: bins that run side by side (data-parallel groups), at least 1. The last step may be short.
        impl: "auto" (compiled where built), "cpu" or "python"; both give the same answer.

    Returns:
        `Packing`: clips bin by bin, with `used`, `spread` and `imbalance`.

    Raises:
        ValueError: lengths that are not one row of integers; a length below 1 or above `context` (named, with its
            index); a bound below the square of a length; an argument out of range.
        ImportError: impl="cpu" where the extension is not built.

    Source: best-fit-decreasing bin packing (Johnson 1973); least-load-first placement (Graham 1969).
    """
    lengths = _checked(lengths, context)
    if not (_is_int(seed) and 0 <= seed <= MASK):
        raise ValueError(f"seed must be an integer from 0 to 2^64 - 1, got {seed!r}")
    for name, value in (("buffer", buffer), ("step", step)):
        if not (_is_int(value) and value >= 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if max_cost is None:
        max_cost = int(context) ** 2  # the square of a sum of lengths is no less than the sum of their squares
    elif not (_is_int(max_cost) and max_cost >= 1):
        raise ValueError(f"max_cost must be an integer of at least 1 or None, got {max_cost!r}")
    if len(lengths) and int(lengths.max()) ** 2 > max_cost:
        at = int(lengths.argmax())
        raise ValueError(f"lengths[{at}] = {lengths[at]} costs {int(lengths[at]) ** 2}, more than max_cost {max_cost}")
    limit = min(int(max_cost), int(context) ** 2)
    # No buffer or step is longer than the set, and the compiled code counts in 64 bits.
    sizes = [min(int(value), len(lengths) + 1) for value in (buffer, step)]
    run = _implementation(impl)
    clips, cu = run(lengths, int(context), int(seed), limit, *sizes)
    return Packing(clips, cu, lengths[clips], int(context), int(step))


def _is_int(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked(lengths, context: int) -> np.ndarray:
    """Lengths as a contiguous row of int64, each from 1 to context."""
    if not (_is_int(context) and 1 <= context <= MAX_CONTEXT):
        raise ValueError(f"context must be an integer from 1 to {MAX_CONTEXT}, got {context!r}")
    row = lengths.detach().cpu().numpy() if isinstance(lengths, torch.Tensor) else np.asarray(lengths)
    if row.ndim != 1:
        raise ValueError(f"lengths must be one row of integers, got shape {row.shape}")
    if len(row) == 0:
        return np.zeros(0, np.int64)
    if row.dtype.kind not in "iu":
        raise ValueError(f"lengths must be integers, got {row.dtype}")
    if len(row) >= 1 << 31:
        raise ValueError(f"at most 2^31 - 1 lengths in one call, got {len(row)}")
    for bad, why in ((row < 1, "below 1"), (row > context, f"longer than the context of {context}")):
        if bad.any():
            at, count = int(bad.argmax()), int(bad.sum())
            raise ValueError(f"lengths[{at}] = {row[at]} is {why}; so are {count} of {len(row)} lengths in all")
    return np.ascontiguousarray(row, dtype=np.int64)


def _implementation(impl: str):
    if impl not in ("auto", "cpu", "python"):
        raise ValueError(f"impl must be 'auto', 'cpu' or 'python', got {impl!r}")
    if impl == "auto" and cpu.available():
        cpu.warn_missing("packing")
        return _pack_python
    return _pack_python if impl == "python" else cpu.pack_bins


def _draws(seed: int):
    """SplitMix64: an endless run of 64-bit integers, which csrc/cpu/pack.cpp draws too."""
    while True:
        yield mix(seed)
        seed = (seed + GAMMA) & MASK


def _shuffle(items: list, draws) -> None:
    for i in range(len(items) - 1, 0, -1):
        j = next(draws) * (i + 1) >> 64
        items[i], items[j] = items[j], items[i]


class _OpenBins:
    """The open bins by room: a heap of (cost, bin) per room, and a tree of the least cost at or above each room."""

    NONE = 1 << 63

    def __init__(self, context: int):
        self.leaves = 1 << context.bit_length()
        self.least_below = [self.NONE] * (2 * self.leaves)
        self.heaps = {}

    def clear(self) -> None:
        rooms, self.heaps = list(self.heaps), {}
        for room in rooms:
            self.refresh(room)

    def refresh(self, room: int) -> None:
        tree, i = self.least_below, self.leaves + room
        value = self.heaps[room][0][0] if self.heaps.get(room) else self.NONE
        while i and tree[i] != value:
            tree[i] = value
            value = min(value, tree[i ^ 1])
            i >>= 1

    def push(self, room: int, cost: int, number: int) -> None:
        heapq.heappush(self.heaps.setdefault(room, []), (cost, number))
        self.refresh(room)

    def least(self, room: int) -> int:
        """The least cost of a bin with at least that room."""
        tree, i = self.least_below, self.leaves + room
        least = tree[i]
        while i > 1:
            if not i & 1:
                least = min(least, tree[i + 1])
            i >>= 1
        return least

    def pop(self, room: int, cost: int) -> int:
        """Takes out the bin with the least room of at least `room` and a cost of at most `cost`; -1 for none."""
        tree, i = self.least_below, self.leaves + room
        while tree[i] > cost:
            while i & 1:
                i >>= 1
            if not i:
                return -1
            i += 1
        while i < self.leaves:
            i = 2 * i if tree[2 * i] <= cost else 2 * i + 1
        _, number = heapq.heappop(self.heaps[i - self.leaves])
        self.refresh(i - self.leaves)
        return number


def _pack_python(
    lengths: np.ndarray, context: int, seed: int, max_cost: int, buffer: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """The twin of csrc/cpu/pack.cpp: clips and cu of `Packing`."""
    draws, opened = _draws(seed), _OpenBins(context)
    stream = list(range(len(lengths)))
    _shuffle(stream, draws)
    sizes = lengths[stream].tolist()  # by place in the stream
    waiting, queue, order = [], [], []  # places; then (cost, places) of bins
    for begin in range(0, len(stream), buffer):
        end = min(begin + buffer, len(stream))
        bins = _fill(waiting + list(range(begin, end)), sizes, context, max_cost, opened)
        waiting = []
        fresh = [i for i, (_, places) in enumerate(bins) if places[0] >= begin] if end < len(stream) else []
        if fresh:
            emptiest = min(fresh, key=lambda i: sum(sizes[place] for place in bins[i][1]))
            waiting = bins.pop(emptiest)[1]
        _shuffle(bins, draws)
        queue += bins
        whole = len(queue) // step * step
        sorted_bins, queue = sorted(queue[:whole], key=lambda entry: entry[0]), queue[whole:]
        steps = [sorted_bins[i : i + step] for i in range(0, whole, step)]
        _shuffle(steps, draws)
        for group in steps:
            _shuffle(group, draws)
            order += group
    order += queue
    clips = np.array([stream[place] for _, places in order for place in places], np.int64)
    return clips, np.cumsum([0] + [len(places) for _, places in order], dtype=np.int64)


def _fill(places: list[int], sizes: list[int], context: int, max_cost: int, opened: _OpenBins) -> list:
    """(cost, places) of the bins of one buffer."""
    tokens = sum(sizes[place] for place in places)
    bins = [[context, 0, []] for _ in range(-(-tokens // context))]  # room, cost, places
    for number in range(len(bins)):
        opened.push(context, 0, number)
    spread, placed = tokens - tokens // 8, 0
    for place in sorted(places, key=lambda place: (-sizes[place], place)):
        length = sizes[place]
        most = max_cost - length**2
        if placed < spread:
            most = min(most, opened.least(length))
        number = opened.pop(length, most)
        if number < 0:
            number = len(bins)
            bins.append([context, 0, []])
        bin = bins[number]
        bin[0] -= length
        bin[1] += length**2
        bin[2].append(place)
        opened.push(bin[0], bin[1], number)
        placed += length
    opened.clear()
    return [(cost, sorted(places)) for _, cost, places in bins if places]
