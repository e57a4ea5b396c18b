"""One warning where something is newer than what was tested, and none where nothing is."""

import sys
import warnings
from types import ModuleType

import pytest
import torch
from torch import nn

import afn_kernels as ak
from afn_kernels import _registry, _versions


@pytest.fixture
def tested(monkeypatch):
    """As in a new process, with other tested versions."""

    def set_to(**newest):
        monkeypatch.setattr(_versions, "TESTED", {name: ("1.0", version) for name, version in newest.items()})
        monkeypatch.setattr(_versions, "_looked_at", set())
        monkeypatch.setattr(_registry, "_LOADED", ModuleType("nothing was called yet"))

    return set_to


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def norm():
    ak.rms_norm(torch.ones(2, 8), torch.ones(8))


def test_numbers():
    assert [_versions.number(x) for x in ("2.16.0a0+git1", "2.9", "24.1.1")] == [(2, 16), (2, 9), (24, 1)]


def test_the_first_op_says_it_once(tested, silent):
    tested(torch="2.0", triton="99.0")
    here = f"and here is torch {'.'.join(map(str, _versions.number(torch.__version__)))}"
    with pytest.warns(UserWarning, match=f"afn_kernels was tested with torch 1.0 to 2.0, {here}"):
        norm()
    norm()
    ak.layer_norm(torch.ones(2, 8), torch.ones(8), torch.ones(8))


def test_patch_says_it(tested):
    transformers = pytest.importorskip("transformers")
    tested(transformers="4.0")
    with pytest.warns(UserWarning, match=f"and here is transformers {transformers.__version__}"):
        ak.patch(nn.Linear(2, 2))


def test_the_message_says_how_to_silence_it(tested, silent):
    tested(torch="2.0", triton="99.0")
    with pytest.raises(UserWarning, match="said once") as said:
        norm()
    tested(torch="2.0", triton="99.0")
    exec(str(said.value).partition("silence: ")[2].removesuffix(")"))
    norm()


def test_a_newer_patch_release_says_nothing(tested, silent):
    tested(torch=".".join(map(str, _versions.number(torch.__version__))), triton="99.0")
    norm()


def test_what_is_not_imported_is_not_looked_at(tested, silent, monkeypatch):
    tested(torch="99.0", triton="0.1")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    norm()
    assert "triton" not in _versions._looked_at


def test_what_runs_here_was_tested(silent, monkeypatch):
    monkeypatch.setattr(_versions, "_looked_at", set())
    _versions.warn_if_newer(*_versions.TESTED)
