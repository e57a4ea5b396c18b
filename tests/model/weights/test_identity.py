"""What tells one model's files from another's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from afn_model.weights.identity import identity
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def test_a_model_is_known_by_its_content(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "other-name")
    first, second = identity(model), identity(copy)
    assert first["weights"] == second["weights"]
    assert (first["name"], second["name"]) == (model.name, "other-name")
    (copy / "runs").mkdir()
    (copy / "runs/log.txt").write_text("what a folder holds besides is no part of the model")
    assert identity(copy) == second


def trained(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in weights.items()}, path)


def configured(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"initializer_range": 0.5}))


def prompted(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize("change", [trained, configured, prompted])
def test_what_changes_answers_changes_the_identity(model, tmp_path, change):
    copy = shutil.copytree(model, tmp_path / model.name)
    change(copy)
    assert identity(copy)["weights"] != identity(model)["weights"]


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="no safetensors weights"):
        identity(tmp_path)
