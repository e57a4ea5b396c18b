"""Packing: every clip once, no bin too full, the same answer everywhere, nearly no room lost."""

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afn_model.data.packing import MAX_CONTEXT, Packing, pack
from bench.packing import mix

try:
    from afn_kernels._cpu import pack as _  # noqa: F401

    BUILT = True
except ImportError:
    BUILT = False
built = pytest.mark.skipif(not BUILT, reason="afn_kernels._cpu is not built")


@st.composite
def calls(draw):
    """Lengths and options of a call that is in order."""
    context = draw(st.integers(1, 300))
    most = draw(st.sampled_from([context, max(1, context // 2), max(1, context // 10)]))
    lengths = draw(st.lists(st.integers(1, most) | st.sampled_from([1, most]), max_size=120))
    longest = max(lengths, default=1) ** 2
    return lengths, {
        "context": context,
        "seed": draw(st.integers(0, 2**64 - 1)),
        "max_cost": draw(st.none() | st.integers(longest, 3 * longest)),
        "buffer": draw(st.integers(1, 150)),
        "step": draw(st.integers(1, 9)),
    }


def same(a: Packing, b: Packing) -> bool:
    return np.array_equal(a.clips, b.clips) and np.array_equal(a.cu, b.cu)


@settings(max_examples=300, deadline=None)
@given(calls())
def test_every_clip_once_and_no_bin_too_full_or_too_dear(call):
    lengths, options = call
    made = pack(lengths, **options)
    assert sorted(made.clips.tolist()) == list(range(len(lengths)))
    bins = [[lengths[i] for i in made[b]] for b in range(len(made))]
    assert all(bins)
    assert made.tokens.tolist() == [sum(bin) for bin in bins]
    assert made.costs.tolist() == [sum(n * n for n in bin) for bin in bins]
    assert made.tokens.max(initial=0) <= options["context"]
    assert options["max_cost"] is None or made.costs.max(initial=0) <= options["max_cost"]
    assert len(made.spread) == len(made) // options["step"]
    for b, bin in enumerate(bins):
        cu = made.cu_seqlens(b)
        assert cu.dtype == torch.int32
        assert cu.diff().tolist() == bin


@built
@settings(max_examples=500, deadline=None)
@given(calls())
def test_the_twin_gives_the_same_answer(call):
    lengths, options = call
    assert same(pack(lengths, impl="cpu", **options), pack(lengths, impl="python", **options))


@built
@pytest.mark.parametrize("context", [8_192, 24_576, 131_072])
def test_the_twin_gives_the_same_answer_at_real_lengths(context):
    lengths = mix(5_000, context)
    for options in ({}, {"buffer": 700, "step": 4}, {"max_cost": int(lengths.max()) ** 2, "step": 8}):
        assert same(
            pack(lengths, context, seed=3, impl="cpu", **options),
            pack(lengths, context, seed=3, impl="python", **options),
        )


def digest(made: Packing) -> str:
    return hashlib.sha256(made.clips.tobytes() + made.cu.tobytes()).hexdigest()


def test_the_answer_is_pinned():
    # Written down, so that a change of the rules, which changes every run's order of samples, is seen.
    made = pack([5, 3, 8, 1, 1, 7, 2, 6, 4, 3], 8, seed=42, step=2)
    assert [made[b].tolist() for b in range(len(made))] == [[8, 3, 9], [6, 7], [2], [5, 4], [0, 1]]


@pytest.mark.slow
def test_processes_and_threads_agree():
    code = (
        "from tests.model.data.test_packing import *\n"
        "print(digest(pack(mix(20_000, 8_192), 8_192, seed=7, buffer=3_000, step=4)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for threads in ("3",)
    }  # fmt: skip
    lengths = mix(20_000, 8_192)
    with ThreadPoolExecutor(4) as pool:
        found |= set(pool.map(lambda _: digest(pack(lengths, 8_192, seed=7, buffer=3_000, step=4)), range(8)))
    assert len(found) == 1


def test_another_seed_is_another_order_and_the_input_is_left_alone():
    lengths = mix(3_000, 8_192)
    kept = lengths.copy()
    first, again, other = (pack(lengths, 8_192, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(lengths, kept)
    assert same(first, again)
    assert not np.array_equal(first.clips, other.clips)
    neighbours = [{frozenset(made[b].tolist()) for b in range(len(made))} for made in (first, other)]
    assert len(neighbours[0] & neighbours[1]) < len(first) / 10


def test_lengths_in_any_integer_form():
    lengths = [3, 5, 2, 7, 1]
    want = pack(lengths, 8, seed=0)
    for form in (
        tuple(lengths),
        np.array(lengths, np.uint16),
        torch.tensor(lengths),
        np.array([lengths, lengths]).T[:, 0],
    ):
        assert same(want, pack(form, 8, seed=0))


def test_a_clip_stays_near_its_place_in_the_shuffle():
    clips, buffer = 20_000, 1_000
    lengths = mix(clips, 8_192)
    made = pack(lengths, 8_192, seed=5, buffer=buffer, step=4)
    # The shuffle by itself: with one clip to a bin and to a buffer, the bins come out in its order.
    stream = pack(np.full(clips, 8_192), 8_192, seed=5, buffer=1).clips
    place = np.empty(clips, np.int64)
    place[stream] = np.arange(clips)
    assert np.abs(place[made.clips] - np.arange(clips)).max() <= 3 * buffer


def test_nothing_gives_nothing():
    for impl in ("auto", "python"):
        made = pack([], 10, seed=0, impl=impl)
        assert (len(made), made.used, made.imbalance, made.clips.tolist(), made.cu.tolist()) == (0, 1.0, 0.0, [], [0])
        assert made.tokens.tolist() == made.costs.tolist() == made.spread.tolist() == []


def test_lengths_of_one_and_of_the_context():
    made = pack([1] * 1000, 100, seed=0)
    assert (len(made), made.used) == (10, 1.0)
    made = pack([100] * 7, 100, seed=0, step=3)
    assert made.cu.tolist() == list(range(8))
    assert made.imbalance == 0
    made = pack([100, 1, 100, 99], 100, seed=0)
    assert sorted(made.tokens.tolist()) == [100, 100, 100]
    assert len(pack([1], 1, seed=0)) == 1


def test_costs_do_not_overflow():
    made = pack(np.full(40, 131_072), 131_072, seed=0, max_cost=131_072**2)
    assert made.costs.tolist() == [131_072**2] * 40
    made = pack(
        np.full(3, MAX_CONTEXT, np.int32), MAX_CONTEXT, seed=2**64 - 1, max_cost=2**200, buffer=2**80, step=2**70
    )
    assert made.costs.tolist() == [2**40] * 3


def test_a_bound_is_held_and_costs_room():
    lengths = mix(20_000, 131_072)
    bound = int(lengths.max()) ** 2
    made, free = pack(lengths, 131_072, seed=0, max_cost=bound), pack(lengths, 131_072, seed=0)
    assert made.costs.max() <= bound < free.costs.max() * 2
    assert made.used <= free.used


@pytest.mark.slow
@built
@pytest.mark.parametrize("context", [8_192, 24_576, 131_072])
def test_a_million_clips(context):
    lengths = mix(1_000_000, context)
    cpu = []
    for seed in range(2):
        start = time.thread_time()  # of this core, whatever else runs on it
        made = pack(lengths, context, seed=seed, step=16, impl="cpu")
        cpu.append(time.thread_time() - start)
    assert min(cpu) < 1, f"{min(cpu):.2f} s"
    assert made.used >= 0.99
    assert made.imbalance <= 0.03
    assert np.quantile(made.spread, 0.99) <= 0.03


BAD = [
    ([1, 9, 3, 12], {}, r"lengths\[1\] = 9 is longer than the context of 8; so are 2 of 4"),
    ([4, 0], {}, r"lengths\[1\] = 0 is below 1"),
    ([4, -7], {}, r"lengths\[1\] = -7 is below 1"),
    ([2**70], {}, "integers"),
    (np.array([2**63], np.uint64), {}, "9223372036854775808 is longer"),
    ([1.5], {}, "float64"),
    ([True], {}, "bool"),
    (["a"], {}, "integers"),
    ([[1, 2]], {}, r"\(1, 2\)"),
    (3, {}, r"\(\)"),
    ([1], {"context": 0}, "got 0"),
    ([1], {"context": 2**20 + 1}, "1048577"),
    ([1], {"context": 8.0}, "8.0"),
    ([1], {"seed": -1}, "-1"),
    ([1], {"seed": 2**64}, "18446744073709551616"),
    ([1], {"seed": None}, "None"),
    ([1], {"buffer": 0}, "buffer .* got 0"),
    ([1], {"step": 0}, "step .* got 0"),
    ([1], {"step": True}, "step .* got True"),
    ([1], {"max_cost": 0}, "got 0"),
    ([1, 6, 2], {"max_cost": 35}, r"lengths\[1\] = 6 costs 36, more than max_cost 35"),
    ([1], {"impl": "cuda"}, "cuda"),
]


@pytest.mark.parametrize(("lengths", "options", "message"), BAD)
def test_bad_input_is_named(lengths, options, message):
    with pytest.raises(ValueError, match=message):
        pack(lengths, **{"context": 8, "seed": 0, **options})


def test_without_the_extension_the_twin_runs(monkeypatch):
    want = pack([3, 5, 2, 7, 1], 8, seed=0)
    monkeypatch.setitem(sys.modules, "afn_kernels._cpu", None)
    assert same(want, pack([3, 5, 2, 7, 1], 8, seed=0))
    with pytest.raises(ImportError):
        pack([1], 8, seed=0, impl="cpu")
