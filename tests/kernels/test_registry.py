"""Calls on a GPU that no kernel takes: a warning with the reason, a count, an error where asked for. Fake tensors."""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import afn_kernels as ak
from afn_kernels import _registry, _triton


@pytest.fixture
def gpu(monkeypatch):
    """As on a machine with a GPU, where kernels are only compiled."""
    monkeypatch.setattr(_triton, "compile_only", True)
    monkeypatch.setattr(_registry, "FALLBACKS", type(_registry.FALLBACKS)())
    with FakeTensorMode():
        yield "cuda"


def test_a_slow_path_is_said_once_and_counted(gpu):
    x, weight = torch.empty(2, 8, device=gpu, dtype=torch.float64), torch.empty(8, device=gpu, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"rms_norm runs in plain PyTorch .*triton: float64 is computed by"):
        ak.rms_norm(x, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ak.rms_norm(x, weight)
    ((found, calls),) = ak.report().items()
    assert (found.op, found.impl, calls) == ("rms_norm", "reference", 2)


def test_boundaries_left_on_the_cpu(gpu):
    q = torch.empty(4, 2, 16, device=gpu, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="cu_seqlens_q is on cpu, expected cuda:0, where the others are"):
        ak.attention(q, q, q, cu_seqlens_q=torch.empty(3, dtype=torch.int32))
    assert not ak.report()


def test_what_a_kernel_takes_says_nothing(gpu):
    q = torch.empty(4, 2, 16, device=gpu, dtype=torch.bfloat16)
    with ak.strict():
        assert ak.attention(q, q, q).shape == (4, 2, 16)


def test_a_cpu_has_no_faster_path():
    with ak.strict():
        ak.rms_norm(torch.zeros(2, 8), torch.ones(8))
    assert ak.explain("rms_norm", torch.zeros(2, 8), torch.ones(8)).chosen == "reference"
