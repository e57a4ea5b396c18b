"""What answers may be asked for."""

from dataclasses import fields, replace

import pytest

from afn_model.infer.sampling_params import KINDS, SamplingParams
from tests.tiny import config


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1; values with max_new_tokens >= 0"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1; values with min_new_tokens >= 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0; values with penalty > 0"),
        ({"presence_penalty": 2.1}, "presence_penalty=2.1; values with -2 <= penalty <= 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty=nan; values with -2 <= penalty <= 2"),
        ({"logit_bias": {5: 101}}, "logit_bias={5: 101}; values with token ids >= 0 and -100 <= bias <= 100"),
        ({"logit_bias": {-1: 0}}, "logit_bias={-1: 0}; values with token ids >= 0 and -100 <= bias <= 100"),
        ({"temperature": float("nan")}, "temperature=nan; values with temperature >= 0"),
        ({"temperature": float("inf")}, "temperature=inf; values with temperature >= 0"),
        ({"top_k": -1}, "top_k=-1; values with top_k >= 0"),
        ({"top_p": float("nan")}, "top_p=nan; values with 0 < top_p <= 1"),
        ({"min_p": 1.5}, "min_p=1.5; values with 0 <= min_p <= 1"),
        ({"n": 0, "temperature": 1.0}, "n=0; values with n >= 1"),
        ({"logprobs": 21}, "logprobs=21; values with 0 <= logprobs <= 20"),
        ({"stop": ["end", ""]}, "stop=('end', ''); values with stop strings of at least one character"),
        ({"stop": ""}, "stop=('',); values with stop strings of at least one character"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids=(-1,); values with token ids >= 0"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens=-1; values with max_thinking_tokens >= 0"),
        ({"loop_tokens": 3}, "loop_tokens=3; values with loop_tokens 0 or >= 4"),
        ({"grammar": {}}, "grammar={}; values with a schema or expression that is not empty"),
    ],
)
def test_out_of_range(options, expected):
    with pytest.raises(ValueError) as error:
        SamplingParams(**options)
    assert str(error.value) == f"out of range: {expected} are expected"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": 2.0}, "max_new_tokens must be a whole number, got 2.0"),
        ({"n": True, "temperature": 1.0}, "n must be a whole number, got True"),
        ({"seed": 1.5}, "seed must be a whole number or None, got 1.5"),
        ({"stop_token_ids": 5}, "stop_token_ids must be None or a list of whole numbers, got 5"),
        ({"stop_token_ids": "5"}, "stop_token_ids must be None or a list of whole numbers, got '5'"),
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
        ({"top_p": None}, "top_p must be a number, got None"),
        ({"repetition_penalty": "1"}, "repetition_penalty must be a number or None, got '1'"),
        ({"logit_bias": {"5": 1}}, "logit_bias must be None or numbers by token id, got {'5': 1}"),
        ({"stop": [5]}, "stop must be text or a list of texts, got [5]"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"grammar": 5}, "grammar must be None, a JSON schema or a regular expression, got 5"),
        (
            {"grammar": "yes|no", "ignore_eos": True},
            "a grammar says when an answer ends: min_new_tokens=0 and ignore_eos=False are expected",
        ),
        ({"n": 2}, "2 answers to a prompt would be the same at temperature 0"),
        ({"min_new_tokens": 3, "max_new_tokens": 2}, "min_new_tokens=3 is above max_new_tokens=2"),
    ],
)
def test_of_other_types_or_at_odds(options, expected):
    with pytest.raises(ValueError) as error:
        SamplingParams(**options)
    assert str(error.value) == expected


def test_every_field_is_checked():
    assert [one.name for one in fields(SamplingParams)] == list(KINDS)


def test_what_the_model_decides():
    model = replace(config(), stop_token_ids=(7, 8), repetition_penalty=1.2)
    asked = SamplingParams(stop="end").resolved(model)
    assert (asked.repetition_penalty, asked.stop_token_ids, asked.stop) == (1.2, (7, 8), ("end",))
    assert SamplingParams(ignore_eos=True).resolved(model).stop_token_ids == ()
    given = SamplingParams(ignore_eos=True, stop_token_ids=(5,), repetition_penalty=1.0)
    assert given.resolved(model) == given
    hash(SamplingParams(logit_bias={1: 2}, grammar={"type": "object"}))
