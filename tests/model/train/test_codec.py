"""A stage of method codec: two optimiser steps a batch, codes that move, what it logs, and the same bits after a stop."""

import shutil

import pytest

from afn_model.files import fingerprint
from afn_model.train.prepare import DONE
from tests.model.train.voices import CODEC, corpus, curriculum, go, save_voice

TIMES = ("seconds", "left_s", "tokens_per_s", "audio_hours_per_s", "data_wait", "memory_gb", "eval_seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    save_voice(folder / "base")
    corpus(folder / "voice.jsonl")
    return folder


def test_a_run_goes_on_with_the_same_bits(folder, tmp_path):
    settings = CODEC | {"adversarial_start": 1}
    plan = curriculum(folder, "codec", codec=settings, eval={"share": 0.3, "every": 2})
    rows = go(plan, folder, tmp_path / "run")
    steps = [row for row in rows if "loss" in row]
    always = {"loss_mel", "loss_commitment", "loss_codebook", "codes_used"}
    judged = {"loss_discriminators", "loss_adversarial", "loss_feature"}
    found = [{name for name in row if name.startswith(("loss_", "codes_"))} for row in steps]
    assert found == [always, *[always | judged] * 3]
    assert all(row["tokens"] % 13 == 0 < row["tokens"] for row in steps)  # of crops of 0.1 s
    assert [row["step"] for row in rows if "eval_mel_distance" in row] == [1, 3]
    home = tmp_path / "run" / "one"
    whole = fingerprint(home / "model" / "model.safetensors")
    last = home / "checkpoints" / "step-00000004"
    state = {file.name: fingerprint(file) for file in last.glob("__*")}
    for left in (DONE, "model", "checkpoints/step-00000004"):
        path = home / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = go(plan, folder, tmp_path / "run")
    assert [{k: v for k, v in row.items() if k not in TIMES} for row in again] == [
        {k: v for k, v in row.items() if k not in TIMES} for row in rows
    ]
    assert fingerprint(home / "model" / "model.safetensors") == whole
    assert {file.name: fingerprint(file) for file in last.glob("__*")} == state
