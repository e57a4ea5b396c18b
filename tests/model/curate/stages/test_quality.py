"""Scores of windows: which are drawn, what the network is given, and what the signal says."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import soundfile

from afn_model.curate.models import onnx_session
from afn_model.curate.stage import Context
from afn_model.curate.stages import quality
from afn_model.curate.stages.quality import OVERALL, SAMPLES, WINDOW, Quality, signal, windows
from tests.model.curate.scenes import spoken

pytest.importorskip("onnxruntime")
pytest.importorskip("blake3")


def packed(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A message of protocol buffers."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    found = b""
    for number, value in fields:
        if isinstance(value, int):
            found += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            found += varint(number << 3 | 2) + varint(len(data)) + data
    return found


@pytest.fixture(scope="module")
def loudness(tmp_path_factory) -> str:
    """A network with DNSMOS's inputs and outputs whose third output is the mean magnitude."""

    def value(name: str, width: int) -> bytes:
        shape = packed((1, packed((2, "N"))), (1, packed((1, width))))
        return packed((1, name), (2, packed((1, packed((1, 1), (2, shape))))))

    def node(kind: str, inputs: str, output: str, *attributes: bytes) -> tuple[int, bytes]:
        return 1, packed(*((1, name) for name in inputs), (2, output), (4, kind), *((5, one) for one in attributes))

    mean = (packed((1, "axes"), (8, 1), (20, 7)), packed((1, "keepdims"), (3, 1), (20, 2)))
    graph = packed(
        node("Abs", "x", "a"),
        node("ReduceMean", "a", "m", *mean),
        node("Neg", "m", "n"),
        node("Concat", "nnm", "y", packed((1, "axis"), (3, 1), (20, 2))),
        (2, "loudness"),
        (11, value("x", SAMPLES)),
        (12, value("y", 3)),
    )
    path = tmp_path_factory.mktemp("model") / "loudness.onnx"
    path.write_bytes(packed((1, 8), (7, graph), (8, packed((2, 13)))))
    return str(path)


def row(seconds: float, *speech: tuple[float, float]) -> dict:
    spans = [{"kind": "speech", "start": start, "end": end} for start, end in speech]
    return {"id": "a", "file": "a.wav", "source_id": "s", "seconds": seconds, "spans": spans}


def test_the_score_is_the_networks(loudness, tmp_path):
    pcm = np.repeat([0.1, 0.2, 0.3], [16_000 * 60, 16_000 * 60, 16_000 * 30]) * np.tile([1, -1], 16_000 * 75)
    soundfile.write(tmp_path / "a.wav", pcm, 16_000, "FLOAT")
    (kept,) = Quality(model=loudness).run([row(150.0, (0.0, 50.0), (130.0, 150.0))], Context(tmp_path))
    assert kept.fields["mos"] == pytest.approx(np.mean(np.polyval(OVERALL, [0.1, 0.3])), abs=1e-3)
    assert kept.tally == {"windows rated": 2}
    assert kept.fields["signal"]["clipped"] == 1.0
    # without speech there is no score, but a signal; a recording that is shorter than a window is repeated
    (kept,) = Quality(model=loudness).run([row(150.0)], Context(tmp_path))
    assert kept.fields["mos"] is None
    assert kept.fields["signal"]
    assert kept.tally == {}
    soundfile.write(tmp_path / "a.wav", pcm[: 5 * 16_000], 16_000, "FLOAT")
    (kept,) = Quality(model=loudness).run([row(5.0, (0.0, 5.0))], Context(tmp_path))
    assert kept.fields["mos"] == pytest.approx(np.polyval(OVERALL, 0.1), abs=1e-3)
    (kept,) = Quality(model="").run([row(5.0, (0.0, 5.0))], Context(tmp_path))
    assert kept.fields["mos"] is None
    assert list(Quality(model=loudness).depends()) == ["loudness.onnx"]
    assert Quality(model="").depends() == {}


def test_a_window_a_minute_where_there_is_speech():
    speech = [(5.0, 200.0), (290.0, 299.0)]
    found = windows(row(300.0, *speech), 60.0, 3.0, 0)
    assert [int(start // 60) for start in found] == [0, 1, 2, 3, 4]
    for start in found:
        heard = sum(max(0.0, min(start + WINDOW, end) - max(start, begin)) for begin, end in speech)
        assert heard >= 3.0
        assert start + WINDOW <= 300.0
    assert found != windows(row(300.0, *speech), 60.0, 3.0, 1), "another seed draws others"
    assert found != windows(row(300.0, *speech) | {"source_id": "t"}, 60.0, 3.0, 0)
    assert found[:3] == windows(row(300.0, speech[0]), 60.0, 3.0, 0)[:3], "one minute's does not depend on another"
    assert windows(row(300.0), 60.0, 3.0, 0) == []
    assert len(windows(row(300.0), 60.0, 0.0, 0)) == 5
    for seconds in (0.1, 5.0, 9.01, 9.5):
        assert windows(row(seconds), 60.0, 0.0, 0) == [0.0]


def test_what_the_signal_says():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(16_000 * 9)
    loud = np.repeat(np.tile([1.0, 0.0], 9), 8_000)  # half a second, and again
    for decibels in (5.0, 15.0, 25.0):
        pcm = 0.01 * noise + 0.01 * 10 ** (decibels / 20) * np.sqrt(2) * loud * rng.standard_normal(len(noise))
        # a tenth of all frames is the lowest fifth of those of noise: by 320 samples each some 0.11 below their mean
        assert signal(pcm)["snr_db"] == pytest.approx(decibels, abs=-10 * np.log10(1 - 0.15))
    assert signal(pcm)["bandwidth_hz"] == 8000
    assert signal(pcm)["clipped"] < 0.001
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(len(noise), 1 / 16_000) > 4000] = 0
    narrow = signal(0.1 * np.fft.irfft(spectrum))
    # of noise that ends sharply 1 / (15 π² k⁵) leaks k bins further through Hann's window: 60 dB below at 6
    assert 4000 <= narrow["bandwidth_hz"] <= 4000 + 6 * 50
    assert signal(noise.clip(-1, 1))["clipped"] == pytest.approx(0.373, abs=0.01)  # P(|x| > 0.891)
    assert signal(np.zeros(16_000)) == {"snr_db": -10.0, "bandwidth_hz": 0.0, "clipped": 0.0}


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="speechmos is not installed: pip install --no-deps speechmos"):
        Quality().depends()
    for wrong in ({"every": 5.0}, {"speech": -1.0}):
        with pytest.raises(ValueError):
            Quality(**wrong)


def test_noise_costs_speech_its_score():
    if importlib.util.find_spec("speechmos") is None:
        pytest.skip("speechmos is not installed")
    pcm = np.resize(spoken("we will meet again tomorrow morning at nine"), SAMPLES).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(SAMPLES).astype(np.float32)
    given = [pcm + level * noise for level in (0.0, 0.01, 0.1)]
    clean, noisy, lost = quality.scores(onnx_session(quality.speechmos()), given)
    assert 5 > clean > noisy > lost > 1
