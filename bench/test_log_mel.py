"""pytest bench/test_log_mel.py: thirty minutes of audio, ours and transformers'. A red test prints no speed-up."""

import pytest
import torch

from afn_kernels import OPS
from bench.log_mel import SAMPLES, WINDOWS, ours, recording, theirs


@pytest.fixture(scope="module")
def pcm() -> torch.Tensor:
    if missing := next(row for row in OPS["log_mel"].impls if row.name == "cpu").available():
        pytest.skip(f"{missing}; in a checkout: pip install -e .")
    return recording()


@pytest.fixture
def peer(pcm):
    pytest.importorskip("transformers")
    return theirs(pcm)


@pytest.fixture(scope="module")
def out() -> torch.Tensor:
    return torch.empty(WINDOWS, 128, SAMPLES // 160)


def test_same_features(pcm, peer):
    torch.testing.assert_close(ours(pcm[:2])(), theirs(pcm[:2])(), rtol=0, atol=2e-4)


@pytest.mark.benchmark(group="log_mel 30 min")
def test_transformers(benchmark, peer):
    benchmark.pedantic(peer, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="log_mel 30 min")
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
@pytest.mark.parametrize("pages", ["reused", "fresh"])
def test_ours(benchmark, pcm, out, dtype, pages):
    samples = (pcm * 32767).clamp(-32768, 32767).to(dtype) if dtype == torch.int16 else pcm
    benchmark.pedantic(ours(samples, out if pages == "reused" else None), rounds=20, warmup_rounds=1)


@pytest.mark.benchmark(group="log_mel one window")
def test_one_window(benchmark, pcm, out):
    benchmark.pedantic(ours(pcm[:1], out[:1]), rounds=100, warmup_rounds=5)
