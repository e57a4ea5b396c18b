"""Layouts are read from YAML, by context and by stage."""

import pytest

from afn_model.train.curriculum import read_curriculum
from afn_model.train.run_layout import RunLayout, for_stage, read_layout


def test_a_layout_for_long_sequences():
    layout, curriculum = read_layout("128gpu"), read_curriculum("afnext")
    found = {stage.name: for_stage(layout, stage) for stage in curriculum.stages}
    shared = {name: (one.ulysses, one.ring) for name, one in found.items()}
    assert shared == {
        "pre-1": (1, 1), "pre-2": (1, 1), "mid-1": (1, 1), "mid-2": (4, 2), "post": (1, 1), "cot-sft": (1, 1),
        "cot-rl": (1, 1),
    }  # fmt: skip
    for stage in curriculum.stages:
        ranks = found[stage.name].ulysses * found[stage.name].ring
        if stage.method == "sft":
            assert stage.bins % (128 // ranks) == 0
    asked = for_stage(read_layout("128gpu", {"ring": 2, "workers": 1}), curriculum["mid-2"])
    assert (asked.ulysses, asked.ring, asked.workers) == (1, 2, 1)
    with pytest.raises(ValueError, match="layout: contexts: 8192 has no gpus"):
        RunLayout(contexts={8192: {"gpus": 1}})
    with pytest.raises(ValueError, match="recompute 'all'"):
        RunLayout(contexts={8192: {"recompute": "all"}})
    with pytest.raises(ValueError, match="is no number of tokens"):
        RunLayout(contexts={"long": {"ring": 2}})


def test_layouts():
    assert read_layout("cpu", {"workers": 3}) == RunLayout(workers=3)
    with pytest.raises(ValueError, match="dtype 'fp8'"):
        read_layout("gpu", {"dtype": "fp8"})
    with pytest.raises(ValueError, match="frozen 'no' is none of auto, sharded, whole"):
        read_layout("gpu", {"frozen": "no"})
    with pytest.raises(ValueError, match="the layout has no gpus"):
        read_layout("gpu", {"gpus": 8})
    with pytest.raises(ValueError, match="layouts that come with the package are 128gpu, 8gpu, cpu, gpu, gpu-offload"):
        read_layout("tpu")
