"""Measured turns: two clear voices are told apart, with few errors by the evaluation's own metric."""

import numpy as np
import pytest

from afn_model.curate.replies import mismatch
from afn_model.curate.stages.diarise import SCHEMA
from afn_model.curate.stand_ins.diariser import clustered, diarised, distances, turns, windows
from afn_model.eval.rules.talkers import Span, diarisation_errors
from tests.model.curate.stand_ins.voices_said import MAN, WOMAN, conversation, request

pytest.importorskip("onnxruntime")
pytest.importorskip("silero_vad")


def rate(pcm, truth, found):
    """Diarisation errors of the seconds of speech, without a collar."""
    spans = [Span(str(name), start, end) for name, start, end in found]
    errors = diarisation_errors([Span(*one) for one in truth], spans, [(0.0, len(pcm) / 16_000)])
    return errors.errors / errors.total, errors.confusion / errors.total


def test_a_man_and_a_woman(tmp_path):
    pcm, truth = conversation((MAN, WOMAN))
    found = diarised(pcm)
    assert len({name for name, _, _ in found}) == 2
    errors, confusion = rate(pcm, truth, found)
    assert errors < 0.12
    assert confusion < 0.05
    (reply,) = turns([request(tmp_path / "a.wav", pcm, "diarise")], embedding="measured")
    assert not mismatch(reply, SCHEMA)
    assert [(one["start"], one["end"]) for one in reply["turns"]] == [one[1:] for one in found]


def test_one_voice_and_nobody(tmp_path):
    pcm, truth = conversation((MAN,), turns=3)
    assert len({name for name, _, _ in diarised(pcm)}) == 1
    assert rate(pcm, truth, diarised(pcm))[0] < 0.12
    for silence in (np.zeros(0), np.zeros(100), np.zeros(16_000)):
        assert diarised(silence.astype(np.float32)) == []
    with pytest.raises(ValueError, match="embedding is measured or resemblyzer, got 'x'"):
        diarised(pcm, "x")
    lost = request(tmp_path / "a.wav", pcm, "diarise")
    (tmp_path / "a.wav").unlink()
    assert isinstance(turns([lost])[0], (ValueError, OSError))


def test_windows_cover_a_run():
    assert windows(5, 100, 120) == [(5, 100)]
    assert windows(0, 121, 120) == [(0, 120), (1, 121)]
    assert windows(10, 200, 120) == [(10, 130), (40, 160), (70, 190), (80, 200)]


def test_clusters():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = np.repeat(centres, 7, 0) + rng.normal(0, 0.5, (21, 2))
    order = rng.permutation(21)
    labels = clustered(points[order], 5.0)
    groups = {frozenset(order[labels == name] // 7) for name in set(labels)}
    assert groups == {frozenset({0}), frozenset({1}), frozenset({2})}
    assert len(set(clustered(points, 100.0))) == 1
    assert len(set(clustered(np.arange(30.0)[:, None] ** 2, 0.1))) == 10  # no more than so many
    assert clustered(points[:1], 1.0).tolist() == [0]
    np.testing.assert_allclose(distances(points, centres)[3, 1], np.linalg.norm(points[3] - centres[1]))
