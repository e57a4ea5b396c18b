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
    """Steps of GRPO with few answers, the others half as long, and short answers of the models that are evaluated."""
    whole = curriculum.scaled
    few = {"group": 4, "prompts": 4, "max_new_tokens": 8}

    def scaled(*args):
        found = whole(*args)
        stages = [
            replace(one, batch_prompts=4, grpo={**one.grpo, **few})
            if one.method == "grpo"
            else replace(one, context=one.context // 2, batch_tokens=one.batch_tokens // 2)
            for one in found.stages
        ]
        return replace(found, stages=tuple(stages))

    monkeypatch.setattr(curriculum, "scaled", scaled)
    monkeypatch.setattr(curriculum, "answer", functools.partial(curriculum.answer, max_new_tokens=16))


def test_an_answer_that_meets_all_of_its_rewards_gets_one():
    specs = [{"kind": "constraint", "name": "upper"}, {"kind": "exact", "answer": "BIRD"}]
    records = [{"axis": "safety", "rewards": specs}] * 2 + [{"axis": "text", "rewards": specs[1:]}]
    found = curriculum.rewarded(records, ["BIRD", "bird", "BIRD"], ["safety"])
    assert found == {"safety": [1.0, 0.5]}
    assert curriculum.weighed(found | {"cot": [0.25]}, {"safety": 1, "cot": 2, "music": 1}) == 0.4167
    assert curriculum.compact([1.0, 0.0, 2 / 3]) == "1 0 0.667"


def test_all_stages_from_nothing_to_a_report(tmp_path, small):
    results = curriculum.run(tmp_path, scale=0.002, show=False)
    assert list(results["stages"]) == ["base", *curriculum_report.STAGES]
    for name, stage in results["stages"].items():
        assert set(stage["axes"]) == set(curriculum.TRAIN), name
        assert all(0 <= score <= 1 for score in stage["axes"].values())
    became = {name: stage["becomes"] for name, stage in results["stages"].items() if stage["becomes"]}
    assert became == {"mid-2": "Captioner", "post": "Instruct", "cot-rl": "Think"}
    for name, found in results["reinforcement"].items():
        assert list(found["after"]) == ["0", "1", "2"], name
        counts = {axis: len(scores.split()) for axis, scores in found["before"].items()}
        assert set(counts) == set(found["blend"])
        assert counts["safety"] == 3, "more prompts than the one record that every stage is asked"
    assert list(results["reinforcement"]) == ["post", "cot-rl"]
    text, picture = curriculum_report.write(tmp_path)
    assert "mid-2 (Captioner)" in text.read_text("utf-8")
    assert picture.stat().st_size > 10_000

    # Started again, it is done: nothing is trained, nothing changes.
    logs = {path: path.read_bytes() for path in tmp_path.glob("*/log.jsonl")}
    assert len(logs) == 7
    assert curriculum.run(tmp_path, scale=0.002, show=False) == json.loads((tmp_path / "results.json").read_text())
    assert {path: path.read_bytes() for path in logs} == logs
