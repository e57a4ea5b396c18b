"""A reward of one's own in a process of its own: what it may do, and what it may not do to the trainer."""

import math
import os
import time
from pathlib import Path

import pytest

from afn_model.scoring.own import OwnReward, Unanswered, is_reward
from tests.model.importable import module

FUNCTIONS = """
import os, subprocess, time

def starts(prompts, answers, samples):
    return [subprocess.Popen(["sleep", "60"]).pid]

def length(prompts, answers, samples):
    print("a line that is no reply")
    return [len(answer) + samples[i]["truth"].get("bonus", 0) for i, answer in enumerate(answers)]

def where(prompts, answers, samples):
    return [os.getpid()] * len(answers)

def one(prompts, answers, samples):
    return [1.0]

def fails(prompts, answers, samples):
    raise KeyError("a\\nb")

def hangs(prompts, answers, samples):
    while answers[0] == "slow":
        time.sleep(0.01)
    return [float("nan")] * len(answers)

def leaves(prompts, answers, samples):
    os._exit(3)

def reads(prompts, answers, samples):
    return [len(input())] * len(answers)

def forks(prompts, answers, samples):
    os.fork()
    return [len(answer) for answer in answers]

def text(prompts, answers, samples):
    return ["good"]
"""


mine = module("own_functions", FUNCTIONS)


def called(function: str, answers: list[str]) -> list[float]:
    one = OwnReward(f"own_functions:{function}")
    try:
        return one(["q"] * len(answers), answers, [{"truth": {}}] * len(answers))
    finally:
        one.close()


def test_a_batch_goes_to_one_process_that_stays():
    one = OwnReward("own_functions:length")
    try:
        assert one(["q", "q"], ["ab", "abc"], [{"truth": {}}, {"truth": {"bonus": 5}}]) == [2.0, 8.0]
        assert one(["q"], ["你" * 100_000], [{"truth": {}}]) == [1e5], "more than a pipe holds"
        assert one.worker is not None
        assert one.worker.poll() is None
    finally:
        one.close()
    assert one.worker is None
    assert called("where", ["a"])[0] != os.getpid()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("fails", "raised KeyError"),
        ("one", "1 numbers for 2 answers"),
        ("text", "raised ValueError: could not convert"),
        ("leaves", "its process ended"),
        ("reads", "raised EOFError"),
        ("none", "cannot be imported: AttributeError"),
    ],
)
def test_what_goes_wrong_is_one_line_with_the_functions_name(function, reason):
    with pytest.raises(ValueError, match=rf"^reward own_functions:{function}: {reason}") as error:
        called(function, ["a", "b"])
    assert "\n" not in str(error.value)


def test_a_process_that_the_function_forks_answers_nothing():
    one = OwnReward("own_functions:forks")
    try:
        assert [one(["q"], ["a" * n], [{}]) for n in (1, 2, 3, 4)] == [[1.0], [2.0], [3.0], [4.0]]
    finally:
        one.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_the_function_starts_ends_with_it():
    (pid,) = called("starts", ["a"])
    stat, ends = Path(f"/proc/{int(pid)}/stat"), time.monotonic() + 30
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < ends, "it still runs"
        time.sleep(0.01)


def test_an_endless_loop_is_ended_and_the_next_call_works():
    one = OwnReward("own_functions:hangs")
    try:
        assert math.isnan(one(["q"], ["quick"], [{}])[0])
        worker, began = one.worker, time.perf_counter()
        with pytest.raises(Unanswered, match=r"own_functions:hangs: no answer within 0\.2 s"):
            one(["q"], ["slow"], [{}], timeout=0.2)
        assert time.perf_counter() - began < 10
        assert worker.poll() is not None
        assert math.isnan(one(["q"], ["quick"], [{}])[0])
    finally:
        one.close()


def test_rewards_are_finite_numbers():
    assert all(map(is_reward, (0, -1.5, 3)))
    assert not any(map(is_reward, (math.nan, math.inf, True, "1", None)))
