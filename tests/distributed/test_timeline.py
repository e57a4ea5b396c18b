"""Kernels and messages on two streams, by hand."""

import numpy as np
import pytest
from afn_distributed.timeline import Timeline


def seconds(*values: float) -> np.ndarray:
    return np.array(values, float)


def times(event) -> list[list[float]]:
    return [event.start.tolist(), event.end.tolist()]


def test_kernels_run_in_order_and_after_what_they_need():
    line = Timeline(2, np.zeros(2, int))
    first = line.run("a", seconds(1, 2))
    message = line.send("m", 1, seconds(4, 4), first)
    second = line.run("b", seconds(1, 1))
    third = line.run("c", seconds(1, 1), message)
    assert times(second) == [[1, 2], [2, 3]]
    assert times(third) == [[6, 6], [7, 7]]


def test_a_message_waits_for_both_ends():
    """Ranks are ready at 1, 3 and 2; each sends to the next for 2, 1 and 0 seconds."""
    line = Timeline(3, np.zeros(3, int))
    ready = line.run("ready", seconds(1, 3, 2))
    # 0 to 1 from 3 to 5, 1 to 2 from 3 to 4; rank 2 sends nothing, so rank 0 only sends.
    assert times(line.send("m", 1, seconds(2, 1, 0), ready)) == [[3, 3, 3], [5, 5, 4]]


def test_a_collective_waits_for_its_own_group_alone():
    """Groups of neighbours [0, 1] and [2, 3], then of every second rank."""
    line = Timeline(4, np.zeros(4, int))
    ready = line.run("ready", seconds(1, 2, 5, 3))
    assert times(line.collect("rows", seconds(1, 1, 1, 1), (2, 2), 1, ready)) == [[2, 2, 5, 5], [3, 3, 6, 6]]
    assert times(line.collect("columns", seconds(1, 1, 1, 1), (2, 2), 0)) == [[6, 6, 6, 6], [7, 7, 7, 7]]


def test_a_background_collective_takes_the_gaps():
    """4 s of it, ready at once; a message has the link from 1 to 3, so it runs from 0 to 1 and from 3 to 6."""
    line = Timeline(2, np.zeros(2, int))
    weights = line.background("weights", 4.0)
    line.send("m", 1, seconds(2, 2), line.run("a", seconds(1, 1)))
    assert times(line.wait(weights)) == [[0, 0], [6, 6]]
    assert line.wait(weights) is line.wait(weights)
    assert [[(s[0], e[0]) for s, e in line.busy["link"]]] == [[(0, 1), (1, 3), (3, 6)]]


def test_a_background_collective_waits_for_its_node():
    """Two nodes of two ranks: ready at 1 and 3, 2 and 2."""
    line = Timeline(4, np.array([0, 0, 1, 1]))
    ready = line.run("a", seconds(1, 3, 2, 2))
    assert times(line.wait(line.background("weights", 1.0, ready))) == [[3, 3, 2, 2], [4, 4, 3, 3]]


def test_background_collectives_run_in_order():
    line = Timeline(1, np.zeros(1, int))
    first, second = line.background("a", 2.0), line.background("b", 1.0)
    assert times(line.wait(second)) == [[2], [3]]
    assert times(line.wait(first)) == [[0], [2]]


def test_shares():
    """Kernels from 0 to 4 and 7 to 8, a message from 3 to 6: 1 s hidden, 2 s exposed, 1 s of neither."""
    line = Timeline(1, np.zeros(1, int))
    early = line.run("early", seconds(3))
    line.run("late", seconds(1), early)
    message = line.collect("m", seconds(3), (1, 1), 1, early)
    line.run("pause", seconds(0), message)
    line.compute = line.compute + 1
    line.run("last", seconds(1))
    wanted = {"step_s": 8, "compute_s": 5, "communication_s": 3, "hidden_s": 1, "exposed_s": 2, "waiting_s": 1}
    assert line.shares() == pytest.approx(wanted)
