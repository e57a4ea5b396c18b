"""Where Triton's kernels cannot run, the reason is a line that names the cure."""

import importlib.metadata

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _triton

REASONS = {
    ("3.6.0", "2.3.5"): "",
    ("3.8.0", "2.4.6"): "",
    ("3.6.0", "2.4.0"): 'the interpreter of triton 3.6.0 does not run with numpy 2.4.0: pip install "numpy<2.4"',
    ("3.4.0", "2.5.5"): 'the interpreter of triton 3.4.0 does not run with numpy 2.5.5: pip install "numpy<2.4"',
    ("3.3.1", "2.3.5"): "triton 3.3.1 is older than 3.4",
}


@pytest.fixture
def pair(monkeypatch):
    """A triton and a numpy, as the interpreter's process would find them."""

    def set_to(triton, numpy):
        monkeypatch.setattr(importlib.metadata, "version", {"triton": triton, "numpy": numpy}.__getitem__)
        monkeypatch.setattr(_triton, "_unfit", _triton._unfit.__wrapped__)
        monkeypatch.setattr(_triton, "interpreted", lambda: True)

    return set_to


@pytest.mark.parametrize("versions", REASONS)
def test_triton_and_numpy_that_do_not_fit_are_named(versions, pair):
    pair(*versions)
    assert _triton.available().startswith(REASONS[versions])
    assert bool(_triton.available()) == bool(REASONS[versions])
    if REASONS[versions]:
        with pytest.raises(ValueError, match=f"cannot run this call: .*{versions[0]}"):
            ak.rms_norm(torch.ones(2, 8), torch.ones(8), impl="triton")
        ak.rms_norm(torch.ones(2, 8), torch.ones(8))


def test_the_interpreters_numpy_does_not_matter_to_compiled_kernels(pair, monkeypatch):
    pair("3.6.0", "2.5.5")
    monkeypatch.setattr(_triton, "compile_only", True)
    assert _triton.available() == ""


def test_a_triton_of_another_name_is_taken(monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    assert _triton._unfit.__wrapped__(True) == ""
