"""docs/training.md walks sixty clips to a model that answers about them: run as shown, and asked about every clip."""

import json
import re
import shlex
from collections import Counter

import pytest

from afn_model.cli import main
from afn_model.infer.sampling_params import SamplingParams
from afn_model.session import Session
from tests.house.test_training_docs import CURRICULA, SMALL, blocks


@pytest.mark.slow
def test_the_model_answers_about_the_clips(tmp_path, monkeypatch, capsys):
    pytest.importorskip("espeakng_loader", reason="the synthetic world needs a synthesiser")
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks("python") if "write_world" in block)
    exec(compile(block, "training.md", "exec"), {})
    (tmp_path / "small.yaml").write_text(CURRICULA["small.yaml"])
    said = {}
    for line in SMALL:
        words = shlex.split(line)[1:]
        assert main([*words, "--set", "workers=0"] if words[0] == "train" else words) == 0, capsys.readouterr().err
        said[line] = capsys.readouterr()
    dry, run, asked = said
    assert "--dry-run --strict" in dry
    steps = int(re.search(r"([\d,]+) optimiser steps", said[dry].out)[1])
    assert steps >= 20
    assert "finetune: " not in said[run].err, "no warning"
    done = json.loads((tmp_path / "runs/small/finetune/done.json").read_text())
    assert done["step"] == steps, "as it was said"
    assert done["seen"] == 20 * 60, "twenty epochs, each of which ends where the corpus ends"

    records = [json.loads(line) for line in (tmp_path / "clips/train/sound.jsonl").read_text().splitlines()]
    assert len(records) == 60
    talks = []
    for record in records:
        clip = {"type": "audio", "path": f"clips/train/{record['audios'][0]['path']}"}
        question = {"type": "text", "text": record["messages"][0]["content"].removeprefix("<sound>\n")}
        talks.append([{"role": "user", "content": [clip, question]}])
    wanted = [record["messages"][1]["content"] for record in records]
    answers = Session("runs/small/finetune/model").answer(talks, SamplingParams(max_new_tokens=6), batch_size=20)
    right = sum(answer.text == want for answer, want in zip(answers, wanted, strict=True))
    guessed = Counter(wanted).most_common(1)[0][1]
    assert guessed <= 12, "always the same answer is right for a fifth at most"
    assert right >= 40
    assert said[asked].out.strip() in wanted
