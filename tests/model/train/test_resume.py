"""What is said and refused where a run takes the weights of another."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from afn_model.train.curriculum import Stage
from afn_model.train.fingerprint import as_json
from afn_model.train.resume import start_with_weights

STAGE = Stage("s", ("language_model",), {"a": 1.0}, batch_tokens=8192, lora={"rank": 4, "alpha": 8})
OLD, NEW = Path("run/s/checkpoints/step-00000001"), Path("run/s/checkpoints/step-00000002")


def taken(stage: Stage, then: Stage, whole: Path | None = NEW, read=("weight", "bias"), start: str = "a") -> list[str]:
    checkpoints = SimpleNamespace(
        first_whole=lambda paths: whole,
        facts=lambda path: {"stage": as_json(then), "start": "a"},
        load_weights=lambda path, model: set(read),
    )
    return start_with_weights(checkpoints, [NEW, OLD], SimpleNamespace(model=nn.Linear(2, 2)), stage, start)


def test_another_base_under_adapters_is_said():
    coded = replace(STAGE, lora={**STAGE.lora, "base": "nf4"})
    assert taken(STAGE, STAGE) == [f"starts with the weights of {NEW}"]
    assert taken(STAGE, coded)[1:] == ["they were trained on a base in nf4, and this one is in 16 or 32 bits"]
    assert taken(coded, STAGE)[1:] == ["they were trained on a base in 16 or 32 bits, and this one is in nf4"]


def test_what_cannot_be_taken():
    with pytest.raises(ValueError, match=f"^{NEW}: is damaged, and so are those before it$"):
        taken(STAGE, STAGE, whole=None)
    assert taken(STAGE, STAGE, read=("weight",))
    with pytest.raises(ValueError, match="was trained from another model, and has not the 1 weights that were frozen"):
        taken(STAGE, STAGE, read=("weight",), start="b")
