"""What a stage may say of its evaluation."""

import math

import pytest

from afn_model.train.eval_settings import EvalSettings, eval_settings


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"every": 5}, "give either data, .* or share"),
        ({"data": "x", "share": 0.1}, "give either data, .* or share"),
        ({"share": 1}, "share is 1; a share from 0 to below 1"),
        ({"share": 0.1, "every": 0}, "every is 0; a whole number from 1"),
        ({"share": 0.1, "patience": 1.5}, "patience is 1.5; a whole number"),
        ({"share": 0.1, "metrics": ["bleu"]}, "metrics is .*; a list of exact, f1, wer, cer, score"),
        ({"share": 0.1, "metrics": "wer"}, "metrics is 'wer'; a list"),
        ({"share": 0.1, "best": "wer"}, "best is 'wer'; loss or one of the metrics"),
        ({"share": 0.1, "keep_best": "yes"}, "keep_best is 'yes'; true or false"),
        ({"share": 0.1, "evvery": 5}, "has no evvery; it takes data, share"),
    ],
)
def test_what_is_wrong_is_one_line(raw, message):
    with pytest.raises(ValueError, match=f"^stage a: eval:? .*{message}") as error:
        eval_settings(raw, "stage a: eval")
    assert "\n" not in str(error.value)


def test_settings():
    assert eval_settings({}, "eval") is None
    found = eval_settings({"data": "held", "metrics": ["wer", "wer"], "best": "wer", "patience": None}, "eval")
    assert found == EvalSettings(data="held", metrics=("wer",), best="wer")


def test_each_method_has_its_own_best():
    raw = {"share": 0.1}
    assert [eval_settings(raw, "eval", method).best for method in ("sft", "dpo", "grpo")] == ["loss", "loss", "reward"]
    assert eval_settings({**raw, "best": "accuracy"}, "eval", "dpo").better(0.6, 0.5)
    with pytest.raises(ValueError, match=r"^eval: best is 'loss'; reward or one of the metrics is expected"):
        eval_settings({**raw, "best": "loss"}, "eval", "grpo")


def test_which_is_better():
    loss, exact = EvalSettings(), EvalSettings(best="exact")
    assert loss.better(1.0, None)
    assert [loss.better(value, 1.0) for value in (0.9, 1.0, 1.1, math.nan, -math.inf)] == [True, *4 * [False]]
    assert [exact.better(value, 0.5) for value in (0.4, 0.5, 0.6)] == [False, False, True]
