"""What identifies a run's code, weights and settings."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from afn_model.train import fingerprint
from afn_model.train.curriculum import Stage

STAGE = Stage("s", ("language_model",), {"a": 1.0}, batch_tokens=8192, lora={"rank": 4, "alpha": 8, "base": "nf4"})


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"epochs": 2.0}, True),
        ({"epochs": float("inf"), "steps": 9}, False),  # steps were endless
        ({"epochs": 0.5}, False),
        ({"release_name": "Think"}, True),
        ({"clip": 2.0}, False),
    ],
)
def test_a_stage_may_be_made_longer(changes, allowed):
    said = fingerprint.not_allowed(fingerprint.as_json(STAGE), replace(STAGE, **changes), ())
    assert (said == "") == allowed, said


def test_steps_and_minutes_may_be_raised_or_lifted():
    then = replace(STAGE, steps=5, minutes=2.0)
    for changes in ({"steps": 6}, {"steps": None}, {"minutes": 3.0, "steps": None}):
        assert not fingerprint.not_allowed(fingerprint.as_json(then), replace(then, **changes), ())
    assert "steps was 5, is 4" in fingerprint.not_allowed(fingerprint.as_json(then), replace(then, steps=4), ())


def test_of_a_table_the_entry_that_changed_is_named():
    """A base that was quantised and is not is said, however long the settings are."""
    lora = {name: value for name, value in STAGE.lora.items() if name != "base"}
    said = fingerprint.not_allowed(fingerprint.as_json(STAGE), replace(STAGE, lora=lora), ())
    assert said == "lora.base was 'nf4', is None; take another run folder"


def test_weights_are_hashed_once(tmp_path, monkeypatch):
    """Until a file has another size, time, or inode; one that has just been written is not relied on."""
    file, known, hashed = tmp_path / "m" / "model.safetensors", tmp_path / "known.json", []
    file.parent.mkdir()
    save_file({"x": torch.zeros(4)}, file)
    plain = fingerprint.fingerprint
    monkeypatch.setattr(fingerprint, "fingerprint", lambda path: hashed.append(path.name) or plain(path))

    def of(*, known=known) -> str:
        return fingerprint.start_fingerprint(file.parent, known=known)

    wanted = of(known=None)
    hashed.clear()
    assert of() == of() == wanted
    assert len(hashed) == 2, "it was written this very second"
    os.utime(file, ns=(0, 1_000_000_000))
    assert of() == of() == wanted
    assert len(hashed) == 3
    save_file({"x": torch.ones(4)}, file)
    os.utime(file, ns=(0, 1_000_000_000))  # the same size and time, as a copy may have
    state = fingerprint.state_of(file)
    monkeypatch.setattr(fingerprint, "state_of", lambda path: [*state[:2], state[2] + 1])
    assert of() != wanted
    assert len(hashed) == 4
    known.write_text("{")
    of()
    assert len(hashed) == 5
