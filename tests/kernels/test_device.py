"""What a device gives to a block, and that configurations follow it."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from afn_kernels import _cuda, _device


def test_capabilities_and_what_is_unknown():
    assert _device.of((8, 0)) == 163 << 10
    assert _device.of((8, 9)) == _device.of((8, 6)) == 99 << 10
    assert _device.of((9, 0)) == _device.of((10, 0)) == 227 << 10
    assert _device.of((12, 1)) == 99 << 10, "as the last that is older"
    assert _device.of((7, 5)) == 48 << 10, "what every GPU gives"


def test_tensors_without_memory_are_on_an_h100_unless_another_is_assumed():
    device = torch.device("meta")
    assert _device.shared(device) == 227 << 10
    with _device.assumed((8, 6)):
        assert _device.shared(device) == 99 << 10
        assert _device.fitting(((227, "large"), (0, "small")), device) == "small"
    assert _device.fitting(((227, "large"), (0, "small")), device) == "large"


def test_a_gpu_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(shared_memory_per_block_optin=101_376)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    _device._asked.cache_clear()
    try:
        assert _device.shared(torch.device("cuda", 1)) == 99 << 10
    finally:
        _device._asked.cache_clear()


def test_a_fake_on_a_gpu_that_is_not_here():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert _device.shared(torch.device("cuda", 0)) == 227 << 10


def test_a_kernel_that_does_not_fit_says_so(monkeypatch):
    module = importlib.import_module("afn_kernels.decode_attention")
    monkeypatch.setattr(_cuda, "emulator", None)
    assert not module._too_small(torch.device("meta"))
    with _device.assumed((8, 9)):
        assert "the GPU has 99 KB of shared memory" in module._too_small(torch.device("meta"))


def test_fp8_begins_with_sm_89():
    x = torch.empty(4, 32, dtype=torch.bfloat16, device="meta")
    module = importlib.import_module("afn_kernels.quantize_fp8")
    for capability, said in (((8, 6), "FP8 begins with sm_89"), ((8, 9), ""), ((9, 0), "")):
        with _device.assumed(capability):
            assert said in _device.fp8(x.device)
            assert bool(said) == bool(_device.fp8(x.device))
            assert said in module._supports(x, height=1, width=0, transpose=False)


def test_log_mel_is_refused_where_triton_does_not_compile_it():
    pcm = torch.empty(1, 3200, device="meta")
    module = importlib.import_module("afn_kernels.log_mel")
    assert not module._triton_supports(pcm)
    with _device.assumed((10, 0)):
        assert "sm_100" in module._triton_supports(pcm)


@pytest.mark.slow
def test_torch_compile_follows_it():
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * _device.shared(x.device)

    found = torch.compile(scaled, backend="eager", fullgraph=True)(torch.ones(1))
    assert found.item() == 227 << 10


@pytest.mark.parametrize("dim", [16, 48, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("kernel", ["forward", "carry", "dq", "dkv"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_schedule_serves_calls_with_and_without_a_window(dim, kernel, wide, monkeypatch):
    """Both rows count the same rows of a tile, on every device."""
    from afn_kernels import _triton
    from afn_kernels.attention.config import choose

    monkeypatch.setattr(_triton, "interpreted", lambda: False)
    for capability in _device.SHARED_KB:
        with _device.assumed(capability):
            plain, local = (choose(kernel, dim, wide, local) for local in (False, True))
        assert (plain.keys == local.keys) if kernel == "dkv" else (plain.queries == local.queries), capability
