"""The shipped layouts: each fits and is near the best by the model, or the table says why not."""

import json
from dataclasses import replace

import pytest

from afn_model.config import ModelConfig
from afn_model.train.run_layout import for_stage, read_layout
from bench import layouts
from bench.layouts import CLOSE, MEMORY, REASONS, SHIPPED, described_layout, markdown, measured, row, stages

ROWS = [json.loads(line) for line in layouts.OUT.read_text(encoding="utf-8").splitlines()]
STAGES = {stage.name: stage for stage in stages()}
KEYS = {(x["stage"], x["gpus"]): x for x in ROWS}


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_what_is_shipped_fits_and_is_near_the_best_or_has_a_reason(key):
    found = KEYS[key]
    reason = REASONS.get(key, "")
    if "refused" in found:
        assert reason
        return
    if found["fits"]:
        assert found["shipped"]["gb"] <= MEMORY
        assert found["share"] >= CLOSE or reason
        assert not (found["share"] >= CLOSE and reason), "the reason is out of date"
    else:
        assert found["gpus"] == 1, "weights, gradients and moments of a full fine-tune take 132 GB"
        assert "best" not in found, "another layout fits"


def test_the_table_is_of_the_shipped_layouts():
    assert set(KEYS) == {(name, gpus) for name in STAGES for gpus in SHIPPED}
    assert layouts.OUT.with_suffix(".md").read_text(encoding="utf-8") == markdown(ROWS)
    assert "?" not in markdown(ROWS)
    for (name, gpus), found in KEYS.items():
        if "shipped" in found:
            now = described_layout(for_stage(read_layout(SHIPPED[gpus]), STAGES[name]), gpus)
            assert now.items() <= found["shipped"].items(), "the layout has changed: python -m bench.layouts --out"


@pytest.mark.parametrize("key", [("pre-1", 8), ("mid-2", 128), ("post", 16)], ids=str)
def test_the_model_gives_what_the_table_says(key):
    name, gpus = key
    layout = for_stage(read_layout(SHIPPED[gpus]), STAGES[name])
    assert measured(ModelConfig(), STAGES[name], layout, gpus) == KEYS[key]["shipped"]


def test_a_row():
    assert row(ModelConfig(), STAGES["pre-1"], 8) == KEYS["pre-1", 8]
    few = replace(STAGES["post"], batch_prompts=64)
    assert "cannot share" in row(ModelConfig(), few, 128)["refused"]
