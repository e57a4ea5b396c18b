"""The demo: the whole of it in short, and what it prints."""

import json
import math
from pathlib import Path

import pytest
from torch import nn

from afn_model import AFNext, AFNextProcessor
from afn_model.demo import BASE, STAGES, run
from afn_model.demo.report import constant_answers, examples
from afn_model.train.optimiser import learning_rate
from afn_model.train.sft import select
from afn_model.world.build import make
from afn_model.world.record import BASICS

pytest.importorskip("espeakng_loader", reason="the demo's voices are an optional extra")


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(1.0, 0.1, "cosine", step / 100) for step in range(101)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 10
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_a_name_that_is_no_part():
    with pytest.raises(ValueError, match="no submodule encoder"):
        select(nn.Linear(1, 1), ("encoder",))


def test_constant_answers_are_the_best_there_are():
    records = [make(task, 7, "heldout", i).record for task in BASICS for i in range(100)]
    best = dict(zip((record["axis"] for record in records), constant_answers(records), strict=True))
    for task in ("word", "sound"):
        answers = [record["truth"]["answer"] for record in records if record["axis"] == task]
        assert answers.count(best[task]) == max(answers.count(answer) for answer in answers)
    onsets = [record["truth"]["seconds"] for record in records if record["axis"] == "onset"]
    errors = {t: sum(abs(onset - t / 10) for onset in onsets) for t in range(40)}
    assert abs(float(best["onset"].removesuffix(" s")) - min(errors, key=errors.get) / 10) <= 0.11


@pytest.mark.slow
def test_the_whole_demo_in_short(tmp_path):
    lines = []
    report = run(tmp_path, seconds=math.inf, steps=3, heldout=12, clips=60, questions=4, say=lines.append)
    assert report["steps"] == dict.fromkeys([name for name, *_ in (*BASE, *STAGES)], 3)
    assert json.loads((tmp_path / "results.json").read_text()) == report
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    for name, *_ in STAGES:
        assert (tmp_path / "run" / name / "log.jsonl").read_text()
    for answerer in ("trained", "untrained", "majority answer"):
        scores = report["results"][answerer]
        assert set(scores) == set(BASICS)
        assert all(found["n"] == 4 for found in scores.values())
        assert "median_error_s" in scores["onset"]
    model, processor = AFNext.from_pretrained(tmp_path), AFNextProcessor.from_pretrained(tmp_path)
    assert model.config.audio_token_id == processor.token_id("<sound>")

    shown = lines[-1].splitlines()
    assert [Path(line).name.split("-")[0] for line in shown[::3]] == ["word", "sound", "onset", "word"]
    clip, question = shown[0], shown[1].strip()
    asked = [{"role": "user", "content": [{"type": "audio", "path": clip}, {"type": "text", "text": question}]}]
    (tokens,) = model.generate(processor([asked]), max_new_tokens=12)
    assert shown[2].startswith(f"  answer {processor.decode(tokens)!r}, truth ")


def test_examples_take_turns():
    records = [make(task, 7, "heldout", i).record for task in BASICS for i in range(2)]
    lines = examples(records, [record["truth"]["answer"] for record in records], Path("here"), 2).splitlines()
    assert lines[0] == "here/word-heldout-7-000000.flac"
    assert lines[2] == f"  answer {records[0]['truth']['answer']!r}, truth {records[0]['truth']['answer']!r}"
    assert lines[3] == "here/sound-heldout-7-000000.flac"
    assert len(lines) == 6
