"""The model of a kernel's time, against sums by hand and published rates."""

from dataclasses import replace

import pytest

from bench.sm90.estimate import (
    CLOCK,
    H100,
    H200,
    MEMORY_TRIP,
    PROCESSORS,
    PUBLISHED,
    Loop,
    matrix_seconds,
    pairs,
    reached,
    streaming_seconds,
)

# The forward of attention by 128 x 128, head dimension 128, a program on a multiprocessor.
FORWARD = Loop(issue=1046, tensor=2048, special=1056, ahead=False)


def test_one_program_multiplies_and_exponentiates_in_series():
    assert FORWARD.clocks(1) == 2048 + 1056 + 600
    assert replace(FORWARD, ahead=True).clocks(1) == 2048 + 1056


def test_two_programs_fill_gaps_up_to_the_busiest():
    loop = replace(FORWARD, ahead=True)
    assert loop.clocks(2) == 2048, "products bind"
    assert replace(loop, issue=3000.0).clocks(3) == 3000, "instructions bind"
    assert replace(loop, special=2500.0).clocks(4) == 2500, "exponentials bind"
    assert loop.clocks(2, memory=4000.0) == 4000, "bytes bind"


def test_a_loop_without_products_waits_for_memory():
    assert Loop(300, 0, 100).clocks(1, 200.0) == 300 + MEMORY_TRIP + 200
    assert Loop(300, 0, 100).clocks(1000, 200.0) == 300


def test_what_is_passed_costs_nothing():
    row = {"instructions": 400, "issue_clk": 800, "tensor_clk": 1, "mufu_clk": 2, "programs": 9, "resident": 132}
    assert Loop.of(row).issue == 800
    assert Loop.of(row).ahead
    found = Loop.of(row | {"passed": 100, "ahead": False})
    assert found.issue == 600
    assert not found.ahead


def test_matrix_seconds():
    """10 steps of each multiprocessor, at half of the rate."""
    loop = replace(FORWARD, ahead=True)
    assert matrix_seconds(loop, 10 * PROCESSORS * loop.flops, 0.5) == pytest.approx(10 * 3104 / CLOCK / 0.5)


def test_rounds_of_programs():
    """528 programs of 4 steps where 396 fit: after three together one is alone, and waits for each of its loads."""
    loop = Loop(442, 0, 0, programs=528, resident=396)
    total = 100.0 * 4 * 528 * H100.per_clock
    together, alone = max(442, (442 + MEMORY_TRIP + 100) / 3), 442 + MEMORY_TRIP + 100
    assert streaming_seconds(loop, total, 4 * 528, H100) == pytest.approx(4 * (3 * together + alone) / CLOCK)
    enough = replace(loop, programs=396)
    assert streaming_seconds(enough, total, 4 * 528, H100) < streaming_seconds(loop, total, 4 * 528, H100)


@pytest.mark.parametrize("chip", [H100, H200])
def test_memory_is_the_floor(chip):
    loop = Loop(1, 0, 0, programs=132_000, resident=1056)
    assert streaming_seconds(loop, 1e9, 132_000, chip) == pytest.approx(1e9 / chip.bandwidth, rel=0.01)
    assert streaming_seconds(replace(loop, programs=10), 1e9, 10, chip) >= 1e9 / chip.bandwidth


def test_pairs_are_those_of_whole_blocks():
    """Causal: 4 blocks on the diagonal and 6 below it. Full: the last block is taken whole."""
    assert pairs([512], True, 128 * 128) == 10 * 128 * 128
    assert pairs([500, 128], False, 128 * 128) == 17 * 128 * 128


def test_published_kernels_reach_alike():
    """What makes one share per head dimension sensible: three kernels of three structures are within 5 % of it."""
    for one in PUBLISHED[128]:
        assert one.reached == pytest.approx(reached(128), rel=0.05), one.name
    assert reached(64) < reached(128), "exponentials and products fill each other's time less when they are equal"
