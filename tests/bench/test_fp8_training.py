"""What the report of FP8 beside float32 counts: gaps of one seed beside the spread of seeds, and shares of answers."""

from bench.fp8_training import ARMS, agreement, curves, document


def run(arm: str, seed: int, losses: list[float]) -> dict:
    return {
        "arm": arm, "seed": seed, "losses": {"one": losses}, "scores": {"word": 0.5}, "n": 4, "cpu_seconds": 3,
        "machine": "here",
    }  # fmt: skip


def test_a_gap_is_of_one_seed_and_the_spread_is_float32s():
    first, second = [1.0] * 10 + [2.0] * 10, [1.5] * 10 + [2.25] * 10
    rows = [run(arm, seed, losses) for arm in ARMS for seed, losses in enumerate((first, second))]
    rows[-1]["losses"]["one"] = [1.5] * 10 + [1.75] * 10  # FP8, the second seed
    found = curves(rows)
    assert [one["steps"] for one in found][:2] == ["0 to 1", "2 to 3"]
    assert (found[0]["spread"], found[0]["gaps"]) == (0.5, {"bfloat16": 0.0, "FP8": 0.0})
    assert (found[9]["spread"], found[9]["gaps"]) == (0.25, {"bfloat16": 0.0, "FP8": -0.5})
    said = {"weights": "random", "variant": "bfloat16", "beside": "float32", "n": 2}
    text = document([{**said, "same_answers": 0.5, "same_tokens": 0.25, "machine": "here"}, *rows])
    assert "within the spread in 10 (bfloat16) and 5 (FP8)" in text
    assert "| one | 18 to 19 | 2.1250 | 2.1250 | 1.8750 | 0.2500 | +0.0000 | -0.5000 |" in text
    assert "| random | bfloat16 | float32 | 50.0% | 25.0% |" in text


def test_tokens_agree_up_to_the_first_that_differs():
    assert agreement([[1, 2, 3], [4]], [[1, 2, 5, 6], [4]]) == {"same_answers": 0.5, "same_tokens": 0.6}
    assert agreement([[1, 2]], [[1]]) == {"same_answers": 0.0, "same_tokens": 0.5}
