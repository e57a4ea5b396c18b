"""What answers depend on changes the fingerprint, and nothing else does."""

import shutil
from argparse import Namespace

import pytest

from afn_model.serve.fingerprint import PART, fingerprint


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(5 * PART))
    return made


def asked(folder, **options):
    return Namespace(**{"model": str(folder), "adapter": None, "deterministic": False, "port": 1} | options)


def test_copies_have_the_same_one(folder, tmp_path):
    first = fingerprint(asked(folder), "cpu")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "notes.txt").write_text("no part of the model")
    assert first == fingerprint(asked(copy, port=2), "cpu")
    assert (len(first), first[:3]) == (15, "fp_")


@pytest.mark.parametrize("at", [0, 5 * PART // 2, 5 * PART - 1])
def test_other_weights_have_another(folder, at):
    first = fingerprint(asked(folder), "cpu")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(at)
        file.write(b"1")
    assert fingerprint(asked(folder), "cpu") != first


def test_what_answers_depend_on_is_in_it(folder, tmp_path):
    adapter = shutil.copytree(folder, tmp_path / "adapter")
    options = ({}, {"deterministic": True}, {"dtype": "fp16"}, {"quantize": "int8"}, {"adapter": str(adapter)})
    found = [fingerprint(asked(folder, **one), "cpu") for one in options]
    assert len({*found, fingerprint(asked(folder), "cuda")}) == len(options) + 1
