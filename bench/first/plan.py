"""The plan as data: every step with its limit, and the sum of the limits on paper."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

PARTS = {"A": 335, "B": 240}  # seconds: certainty, then figures
SPARE = "C"  # figures in the seconds that these leave: a step begins where half of its limit is left
TOTAL = 575  # of a command that may take 590


@dataclass(frozen=True)
class PlanStep:
    """One process.

    Args:
        name: unique.
        words: of ``python -m bench.first.child``.
        limit: seconds after which it is ended.
        answers: what its lines say.
        background: ended when the others of its phase have ended.
        ptxas: whether Triton's kernels are assembled by the CUDA toolkit's ptxas.
        compile: whether kernels are compiled for sm_90a at real shapes and nothing runs.
    """

    name: str
    words: tuple[str, ...]
    limit: int
    answers: str
    background: bool = False
    ptxas: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Phase:
    """Steps that run at the same time, at most ``workers`` of them; the next phase begins when all have ended."""

    name: str
    part: str
    workers: int
    steps: tuple[PlanStep, ...]

    def seconds(self, workers: int | None = None) -> int:
        """The longest that it can take: each step in turn on the worker that is free first."""
        free = [0] * (workers or self.workers)
        for step in self.steps:
            if not step.background:
                heapq.heappush(free, heapq.heappop(free) + step.limit)
        return max(free)


GROUPS = {
    "attention": ("attention",),
    "decode": ("decode_attention", "paged_attention"),
    "losses": ("linear_cross_entropy", "linear_logprob", "cross_entropy"),
    "features": ("log_mel",),
    "norms": ("rms_norm", "layer_norm", "pool_norm"),
    "pointwise": ("swiglu", "geglu", "bias_gelu"),
    "positions": ("rotary", "apply_rotary", "rote", "qkv_rotary"),
    "movements": ("merge_embeddings", "pack_heads", "unpack_heads"),
    "fp8": ("quantize_fp8",),
}
ENGINE = {
    "tokens": "answers against float64; drawn tokens against a CPU's",
    "graphs": "CUDA graphs of decoding, and one step ahead, change no answer",
    "steps": "nor do one step ahead alone and shared prompts",
    "bits": "deterministic=True: the same bits alone, together, cold, warm",
    "fp8": "FP8 products, keys and weights against a CPU's emulation",
    "host": "pages go to host memory and files and come back",
}
SERVING = {
    "decode": (110, "tokens a second, eager and by graphs, at 1, 16 and 64 sequences of 1K and 45K tokens"),
    "prompts": (90, "first tokens of 30 minutes and of a second question; gaps of 16 decoders beside such a prompt"),
    "pages": (30, "GB/s of pages to the host and back"),
}
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SOURCES = ("decode_attention", "log_mel", "qkv_rotary", "ulysses_permute")
TESTS = 16  # processes of pytest: one a core, since kernels are compiled
# Name of a row: op, the beginning of its workload's name in bench.ops, pass.
GOALS = {
    "attention_16k": ("attention", "causal 16K", "forward"),
    "attention_16k_backward": ("attention", "causal 16K", "forward+backward"),
    "attention_packed": ("attention", "packed causal 32K", "forward+backward"),
    "attention_encoder": ("attention", "60 windows of 1500", "forward"),
    "decode_45k": ("decode_attention", "1 x 45056, 1 new", "forward"),
    "log_mel_30min": ("log_mel", "30 min, float32 to float32", "forward"),
    "lce_8k": ("linear_cross_entropy", "8192 x 3584 x 151672", "forward+backward"),
    "rms_norm": ("rms_norm", "8192 x 3584 + residual", "forward+backward"),
    "layer_norm": ("layer_norm", "90000 x 1280", "forward"),
    "swiglu": ("swiglu", "8192 x 18944", "forward+backward"),
    "rotary": ("rotary", "8192 x (28 + 4) x 128, training", "forward+backward"),
    "quantize_fp8": ("quantize_fp8", "8192 x 3584, 1 x 128", "forward"),
    "linear_fp8": ("linear_fp8", "8192 x 3584 x 18944, tiles", "forward"),
}
MORE = {
    "attention_prefill": ("attention", "prefill 45K", "forward"),
    "log_mel_padded": ("log_mel", "30 min, float32 to float32, padded", "forward"),
}
SWEEPS = {
    "attention_forward_128": "tiles and stages of the forward at head dimension 128",
    "attention_forward_64": "the same at 64, equal windows",
    "attention_dkv_128": "stages of the kernel of dk and dv",
    "rms_norm_backward": "persistent programs per multiprocessor",
    "layer_norm_forward": "warps of a program",
    "decode_attention": "keys of a split, programs per multiprocessor",
    "lce_chunk": "rows of logits in memory at a time",
}
PROFILES = {  # kernel to the row of GOALS that launches it
    "log_mel": "log_mel_30min",
    "decode_attention": "decode_45k",
    "forward_kernel": "attention_16k",
    "dkv_kernel": "attention_16k_backward",
}


def step(name: str, words: str, limit: int, answers: str, **more) -> PlanStep:
    return PlanStep(name, tuple(words.split()), limit, answers, **more)


def plan() -> tuple[Phase, ...]:
    """Every phase in its order."""
    groups = [*GROUPS, "rest"]
    return (
        Phase("setting", "A", 1, (
            step("setting", "setting", 30, "versions, driver, clocks; what a copy and a matrix product reach"),
        )),
        Phase("checks", "A", 18, (
            *(step(f"verify {name}", f"verify {name}", 85, "right or wrong at real shapes, in bf16, against float64")
              for name in groups),
            step("launches", "launches", 85, "small launches of csrc/cuda kept for the sanitiser, if not carried"),
            *(step(f"engine {name}", f"engine {name}", 85, what) for name, what in ENGINE.items()),
        )),
        Phase("repeats", "A", 12, (
            step("noise", "noise", 45, "random matrix products beside the others", background=True),
            *(step(f"repeats {name}", f"repeats {name}", 45, "the same bits 200 times; arrival counters zero after")
              for name in groups),
        )),
        Phase("tools", "A", len(TOOLS) * len(SOURCES) + len(groups), (
            *(step(f"{tool} {source}", f"sanitised {tool} {source}", 60, f"what {tool} says of {source}.cu")
              for source in SOURCES for tool in TOOLS),
            *(step(f"assembler {name}", f"assembler {name}", 60, "the same bits by another ptxas", ptxas=True)
              for name in groups),
        )),
        Phase("tests", "A", TESTS, tuple(
            step(f"tests {i}", f"tests {i} {TESTS}", 55, "budgets in every dtype of tests/kernels/test_every_op.py")
            for i in range(TESTS)
        )),
        Phase("goals", "A", len(GOALS), tuple(
            step(f"goal {name}", f"goal {name}", 60, "ours at a goal's shape, replayed from a CUDA graph")
            for name in GOALS
        )),
        Phase("ceilings", "B", 1, (step("ceilings", "ceilings", 12, "copy and matrix product, once more"),)),
        Phase("peers", "B", len(GOALS | MORE), tuple(
            step(f"peers {name}", f"peers {name}", 102, "ours against the peers that are here, in turns")
            for name in GOALS | MORE
        )),
        Phase("sweeps", "B", len(SWEEPS), tuple(
            step(f"sweep {name}", f"sweep {name}", 66, what) for name, what in SWEEPS.items()
        )),
        Phase("step", "B", 1, (
            step("decode step", "step", 20, "a captured step of four decoder layers against its eager calls"),
        )),
        Phase("profiles", "B", len(PROFILES), tuple(
            step(f"ncu {name}", f"profile {name}", 40, "where the kernel's time goes, by Nsight Compute")
            for name in PROFILES
        )),
        Phase("serving", SPARE, 1, tuple(
            step(f"serving {name}", f"serving {name}", limit, what) for name, (limit, what) in SERVING.items()
        )),
    )  # fmt: skip


def rehearsal() -> tuple[Phase, ...]:
    """The plan where there is no GPU: every kind of step at toy shapes, every launch compiled, faults on purpose.

    Of NVIDIA's checkers, which are not asked, one stands for all; of the parts of the tests two stand for all. The
    engine's checks share a process, and so do its figures.
    """
    kept = []
    left_out = {f"{tool} {source}" for tool in TOOLS[1:] for source in SOURCES}
    left_out |= {f"tests {i}" for i in range(2, TESTS)}
    left_out |= {f"engine {name}" for name in ENGINE} | {f"serving {name}" for name in SERVING}
    together = {
        "checks": step("engine", "engine", 85, "all checks of the engine, one after another"),
        "serving": step("serving", "serving", 110, "all figures of the engine, of a toy model"),
    }
    for phase in plan():
        steps = tuple(x for x in phase.steps if x.name not in left_out)
        kept.append(replace(phase, steps=(*steps, together[phase.name]) if phase.name in together else steps))
    return (
        Phase("faults", "A", 3, (
            step("planted hang", "planted hang", 1, "a step that hangs is ended at its limit"),
            step("planted crash", "planted crash", 20, "a step that crashes ends itself alone"),
            step("planted error", "planted error", 20, "an exception is the step's end and its line"),
        )),
        *kept,
        Phase("compile", "A", 2, tuple(
            step(f"compile {name}", f"compiled {name}", 200, "each kernel for sm_90a at real shapes", compile=True)
            for name in ("checks", "rows", "sweeps")
        )),
    )  # fmt: skip


def seconds(phases: Sequence[Phase], part: str) -> int:
    """The longest that a part can take."""
    return sum(phase.seconds() for phase in phases if phase.part == part)


def text(phases: Sequence[Phase]) -> str:
    """The plan for a reader: part, phase, its seconds on paper; its steps."""
    lines = []
    for part in (*PARTS, SPARE):
        most = f"{PARTS[part]} s" if part in PARTS else "what these leave"
        lines.append(f"Part {part}: at most {seconds(phases, part)} s of {most}")
        for phase in (x for x in phases if x.part == part):
            lines.append(f"  {phase.name}: {phase.seconds()} s, {phase.workers} at a time")
            for one in phase.steps:
                command = f"python -m bench.first.child {' '.join(one.words)}"
                lines.append(f"    {one.name:<26}{one.limit:>4} s  {command:<58}  {one.answers}")
    return "\n".join(lines)
