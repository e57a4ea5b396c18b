"""How long a compiled kernel may take on a GPU that is not here, from what its binary shows.

A step of a program's main loop takes a multiprocessor some clocks of instruction issue (4 a clock), matrix products
(4,096 FLOP in bf16), special functions (16) and bytes of memory. With r programs at once a step takes

    max(issue, products, special functions, memory, (products + max(issue, special functions) + exposed loads) / r)

clocks: one program does its products and its softmax in series and others may fill the gaps, up to the busiest of the
four. Loads are exposed where no copy is in flight when a step begins (``ahead`` in kernels.jsonl, by the rule "loads
run ahead"; a loop without matrix products is taken to have none in flight). Steps are the work divided by the work of a
step; programs come in rounds of those that fit, and the last round is as slow as a multiprocessor's share of it. The
floor is the bytes at the bandwidth that copies reach, and every launch costs 3 µs.

Loops of matrix products reach ``reached`` of that, which is what published kernels reach of the same arithmetic.
What the model does not see: clocks that fall under power, prologues, barriers, bank conflicts, L2 misses, DRAM turning
between reads and writes. Models of this kind have been wrong by 20 to 30 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from bench.sm90.sass import PER_CLOCK

CLOCK, PROCESSORS = 1.70e9, 132  # of an H100 or H200 under load
LAUNCH = 3e-6
L2_TRIP, MEMORY_TRIP = 600, 1700  # clocks: a tile from L2 behind a running product; a microsecond from memory


@dataclass(frozen=True)
class Chip:
    """A GPU by the bandwidth that copies reach, in bytes a second."""

    name: str
    bandwidth: float

    @property
    def per_clock(self) -> float:
        """Bytes a clock of each multiprocessor."""
        return self.bandwidth / PROCESSORS / CLOCK


H100, H200 = Chip("h100", 3.0e12), Chip("h200", 4.3e12)


@dataclass(frozen=True)
class Loop:
    """A step of a program's main loop in clocks, and how many programs there are and fit at once."""

    issue: float
    tensor: float
    special: float
    programs: int = PROCESSORS
    resident: int = PROCESSORS
    ahead: bool = True

    @staticmethod
    def of(row: dict) -> Loop:
        """Of a kernel's record in kernels.jsonl; instructions that a branch nearly always goes past cost nothing."""
        taken = 1 - row.get("passed", 0) / row["instructions"]
        cost = taken * row["issue_clk"], row["tensor_clk"], row["mufu_clk"]
        return Loop(*cost, row["programs"], row["resident"], row.get("ahead", True))

    @property
    def flops(self) -> float:
        """Of a step."""
        return self.tensor * PER_CLOCK["tensor"]

    def clocks(self, together: float, memory: float = 0.0) -> float:
        """A step of each of ``together`` programs on a multiprocessor, divided by their number.

        Args:
            together: programs on a multiprocessor.
            memory: clocks that a step's bytes take at a multiprocessor's share of the bandwidth.
        """
        exposed = 0.0 if self.tensor and self.ahead else L2_TRIP if self.tensor else MEMORY_TRIP + memory
        series = self.tensor + max(self.issue, self.special) + exposed
        return max(self.issue, self.tensor, self.special, memory, series / together)

    @property
    def fit(self) -> int:
        """Programs on a multiprocessor: as many as fit, or as there are."""
        return max(1, min(self.resident, self.programs) // PROCESSORS)


def matrix_seconds(loop: Loop, flops: float, reached: float) -> float:
    """A kernel of matrix products whose programs are taken longest first, so that none waits for another at the end.

    Args:
        loop: its main loop.
        flops: all that its programs compute, whole tiles and what is recomputed included.
        reached: share of the loop's rate.
    """
    return flops / loop.flops * loop.clocks(loop.fit) / PROCESSORS / CLOCK / reached


def streaming_seconds(loop: Loop, total: float, steps: int, chip: Chip) -> float:
    """A kernel that moves ``total`` bytes in ``steps`` steps of its programs, without its launch.

    Programs of one step each keep their multiprocessor busy one round after the other; those that loop over rows are as
    many as fit, or come in a second round.
    """
    memory = total / steps / chip.per_clock
    rounds, rest = divmod(loop.programs, max(PROCESSORS, loop.resident))
    rest = ceil(rest / PROCESSORS)
    each = ceil(steps / loop.programs)
    clocks = each * (rounds * loop.fit * loop.clocks(loop.fit, memory) + (rest and rest * loop.clocks(rest, memory)))
    return clocks / CLOCK


def pairs(lengths: list[int], causal: bool, scores: float) -> float:
    """Scores that blocks of ``scores`` compute for sequences of these lengths: whole blocks, taken as squares."""
    side = sqrt(scores)
    if causal:
        return sum(n * (n + side) / 2 for n in lengths)
    return sum(ceil(n / side) ** 2 * scores for n in lengths)


@dataclass(frozen=True)
class Published:
    """A rate that others have measured on an H100, beside what the model makes of such a loop.

    Args:
        name: of the kernel.
        loops: one step of each of its loops, over equally many scores.
        flops: those that are counted, of one step of all loops.
        overlapped: products, softmax and loads run beside each other.
        low: TFLOP/s.
        high: TFLOP/s.
        source: where the rate stands, and what the counts of the loop are.
    """

    name: str
    loops: tuple[Loop, ...]
    flops: float
    overlapped: bool
    low: float
    high: float
    source: str

    @property
    def model(self) -> float:
        """TFLOP/s of the arithmetic alone."""
        clocks = sum(loop.clocks(1e9 if self.overlapped else 1) for loop in self.loops)
        return self.flops / clocks * PROCESSORS * CLOCK / 1e12

    @property
    def reached(self) -> float:
        return (self.low + self.high) / 2 / self.model


SQUARE = 128 * 128  # scores of a step
PUBLISHED = {
    128: (
        Published("FlashAttention-3, forward", (Loop(0, 2048, 1024),), 4.0 * SQUARE * 128, True, 616, 685,
                  "its paper and repository, causal, 16K to 32K; issue is taken to bind nothing"),
        Published("Triton, forward", (Loop(1040, 2048, 1024),), 4.0 * SQUARE * 128, False, 378, 490,
                  "published tables of the tutorial's kernel; counts of our loop with a third stage"),
        Published("FlexAttention, backward", (Loop(588, 1536, 512), Loop(1878, 2048, 528)), 5.0 * SQUARE * 128, False,
                  271, 289, "its published tables; counts of our dq and dkv loops as they were, of the same structure"),
    ),
    64: (
        Published("FlashAttention-3, forward, head dim 64", (Loop(0, 1024, 1024),), 4.0 * SQUARE * 64, True, 425, 460,
                  "its paper, full attention; products and exponentials are equally long"),
    ),
}  # fmt: skip

DEEPGEMM = Published("DeepGEMM, FP8 products", (Loop(0, 1024, 0),), 2.0 * 256 * 128 * 128, True, 1550, 1550,
                     "its repository, April 2025, H800, the best of its shapes")  # fmt: skip


def reached(head_dim: int) -> float:
    """Share of the arithmetic's rate that published kernels of a head dimension reach, the mean of them."""
    known = PUBLISHED[head_dim]
    return sum(one.reached for one in known) / len(known)
