"""Rewards of groups of answers: functions of one's own fail for a group, for a step, or for the run."""

import pytest
import torch

from afn_model.data.records import Sample
from afn_model.infer.rollout import Rollout
from afn_model.prompt.conversation import Turn
from afn_model.train.grading import COUNTS, Grader, usable_rewards
from afn_model.train.grpo_settings import GRPOSettings
from tests.model.importable import module

FUNCTIONS = """
import time

def score(prompts, answers, samples):
    assert len(prompts) == len(answers) == len(samples)
    if "raise" in prompts:
        raise RuntimeError("no such question")
    while "hang" in prompts:
        time.sleep(0.01)
    return [float("nan") if text == "nan" else len(text) * samples[i]["reward"].get("scale", 1)
            for i, text in enumerate(answers)]
"""
SCORE = "grading_functions:score"


mine = module("grading_functions", FUNCTIONS)


def sample(question: str, **spec) -> Sample:
    rewards = ({"kind": "python", "function": SCORE, **spec}, {"kind": "constraint", "name": "lower", "weight": 3.0})
    return Sample(question, [Turn("user", (question,))], 0.0, rewards=rewards)


def graded(questions: dict[str, tuple[str, ...]], **settings):
    """(grader, what it found): questions and the answers to each."""
    texts = [text for group in questions.values() for text in group]
    grader = Grader(GRPOSettings(**{"functions": [SCORE], **settings}), lambda ids: texts[ids[0]])
    numbers = iter(range(len(texts)))
    rollouts = [
        [Rollout(p, s, [next(numbers)], torch.zeros(1), False) for s in range(len(group))]
        for p, group in enumerate(questions.values())
    ]
    try:
        return grader, grader.grade([sample(question, scale=2) for question in questions], rollouts)
    finally:
        grader.close()


def test_a_function_joins_the_other_rewards():
    grader, found = graded({"sky?": ("ab", "ABCD"), "snow?": ("a", "abc")})
    assert [one.totals for one in found] == [[(4 + 3) / 4, 8 / 4], [(2 + 3) / 4, (6 + 3) / 4]]
    assert found[0].by_kind[1] == {"python": 8.0, "constraint": 0.0}
    assert grader.counts == dict(zip(COUNTS, (0, 0, 2, 0), strict=True))
    grader.require(list(grader.counts.values()))


def test_one_group_in_which_it_fails_has_no_reward():
    """Raising and numbers that are not finite cost that group alone; the function sees the others again."""
    grader, found = graded({"sky?": ("ab", "c"), "raise": ("a", "b"), "snow?": ("nan", "a"), "coal?": ("a", "b")})
    assert [one.totals is None for one in found] == [False, True, True, False]
    assert (grader.counts["own_asked"], grader.counts["own_failed"]) == (4, 2)
    grader.require([0, 0, 4, 2])
    with pytest.raises(ValueError, match=rf"^5 of 8 prompts got no reward of one's own: reward {SCORE}: .* finite$"):
        grader.require([0, 0, 8, 5])


def test_an_endless_call_ends_with_the_time_of_the_step():
    grader, found = graded({"sky?": ("ab", "c"), "hang": ("a", "b")}, reward_timeout=1.0)
    assert [one.totals for one in found] == [None, None]
    with pytest.raises(ValueError, match=rf"2 of 2 prompts .*: reward {SCORE}: no answer within"):
        grader.require(list(grader.counts.values()))


def test_records_name_functions_that_the_settings_allow():
    with pytest.raises(
        ValueError, match=f"^reward function {SCORE} is not among the functions of the stage's settings"
    ):
        usable_rewards(sample("sky?"), GRPOSettings())
    assert len(usable_rewards(sample("sky?"), GRPOSettings(functions=[SCORE]))) == 2


def test_judge_and_functions_take_no_longer_together_than_other_ranks_wait():
    judge = {"url": "http://localhost", "model": "m", "deadline": 240}
    names = [f"mine:f{number}" for number in range(5)]
    Grader(GRPOSettings(judge=judge, functions=names[:4]), str)
    with pytest.raises(ValueError, match="may take 540 s in a step, but the other ranks wait 480 s: lower the judge's"):
        Grader(GRPOSettings(judge=judge, functions=names), str)
    with pytest.raises(ValueError, match="may take 500 s in a step"):
        Grader(GRPOSettings(functions=names, reward_timeout=100), str)
