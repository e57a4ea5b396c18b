"""All seven stages at the smallest scale, evaluated and reported on: a short form of ``make curriculum``."""

import functools
import json
from dataclasses import replace

import pytest

pytest.importorskip("espeakng_loader", reason="the world speaks with espeakng-loader")

from afn_model.bootstrap import tiny_curriculum as curriculum
from bench import curriculum_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def small(monkeypatch):
    """Steps of GRPO with few answers, and short ones of the models that are evaluated."""
    whole = curriculum.scaled

    def scaled(*args):
        found = whole(*args)
        stages = [
            replace(one, batch_prompts=4, grpo={**one.grpo, "group": 4, "prompts": 4}) if one.method == "grpo" else one
            for one in found.stages
        ]
        return replace(found, stages=tuple(stages))

    monkeypatch.setattr(curriculum, "scaled", scaled)
    monkeypatch.setattr(curriculum, "answer", functools.partial(curriculum.answer, max_new_tokens=16))


def test_all_stages_from_nothing_to_a_report(tmp_path, small):
    results = curriculum.run(tmp_path, scale=0.002, show=False)
    assert list(results["stages"]) == ["base", *curriculum_report.STAGES]
    for name, stage in results["stages"].items():
        assert set(stage["axes"]) == set(curriculum.TRAIN), name
        assert all(0 <= score <= 1 for score in stage["axes"].values())
    became = {name: stage["becomes"] for name, stage in results["stages"].items() if stage["becomes"]}
    assert became == {"mid-2": "Captioner", "post": "Instruct", "cot-rl": "Think"}
    assert [row["seed"] for row in results["post_seeds"]] == [0, 1, 2]
    text, picture = curriculum_report.write(tmp_path)
    assert "mid-2 (Captioner)" in text.read_text("utf-8")
    assert picture.stat().st_size > 10_000

    # Started again, it is done: nothing is trained, nothing changes.
    logs = {path: path.read_bytes() for path in tmp_path.glob("*/log.jsonl")}
    assert len(logs) == 7
    assert curriculum.run(tmp_path, scale=0.002, show=False) == json.loads((tmp_path / "results.json").read_text())
    assert {path: path.read_bytes() for path in logs} == logs
