"""Probing: what is measured against its formula, what is damaged, and that long recordings are never held whole."""

import re
import warnings

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.decode import load_audio
from afn_model.curate import identity
from afn_model.curate.stage import Context, Dropped, Failed, Kept
from afn_model.curate.stages import probe
from afn_model.curate.stages.fetch import digest_of
from afn_model.curate.stages.probe import Probe, SampleCounts
from tests.tiny import noise


def probed(path, **options):
    row = {"id": "0", "file": path.name, "source_id": digest_of(path)}
    return Probe(**options).run([row], Context(path.parent))[0]


def test_what_is_measured_is_what_the_samples_say(tmp_path):
    path, pcm = tmp_path / "a.flac", noise(3.25, rate=16_000, channels=1)
    pcm[:16_000] = 0
    pcm[20_000:20_016] = 1.0
    soundfile.write(path, np.stack([pcm, pcm], 1), 16_000)
    kept = probed(path)
    assert isinstance(kept, Kept)
    samples = load_audio(path, dtype=torch.int16).numpy()
    wanted = 10 * np.log10(np.mean((samples.astype(np.float64) / 32_768) ** 2))
    assert abs(kept.fields["loudness"] - wanted) <= 0.005 + 1e-9  # rounded to a hundredth
    assert kept.fields == {
        "seconds": 3.25,
        "format": "flac",
        "rate": 16_000,
        "channels": 2,
        "loudness": kept.fields["loudness"],
        "clipped": round(16 / 52_000, 6),
        "silence": round(10 / 32, 4),
        "pcm_id": identity.digest(samples.tobytes()),
    }


def test_the_same_samples_in_any_container_and_in_any_pieces(tmp_path):
    pcm = (noise(1.5) * 30_000).astype(np.int16)
    for name in ("a.wav", "a.flac", "a.aiff"):
        soundfile.write(tmp_path / name, pcm, 16_000)
    ids = {probed(tmp_path / name).fields["pcm_id"] for name in ("a.wav", "a.flac", "a.aiff")}
    assert ids == {identity.digest(pcm.tobytes())}
    whole, pieces = SampleCounts(-30), SampleCounts(-30)
    whole.add(pcm)
    for piece in np.split(pcm, [1, 1000, 1601, 9000]):
        pieces.add(piece)
    assert (whole.silent, whole.frames) == (pieces.silent, pieces.frames)
    assert whole.loudness() == pieces.loudness()
    assert whole.digest.hexdigest() == pieces.digest.hexdigest()


def test_what_is_dropped_and_what_has_failed(tmp_path):
    def write(name, pcm):
        soundfile.write(tmp_path / name, pcm, 16_000)
        return tmp_path / name

    assert probed(write("short.wav", noise(0.5))) == Dropped("too short", "0.5 s")
    assert probed(write("tick.wav", noise(0.01))) == Dropped("too short", "160 samples")
    assert probed(write("long.wav", noise(3)), longest=1.5) == Dropped("too long", "by its header")
    assert probed(tmp_path / "long.wav", longest=2.5) == Dropped("too long")
    assert probed(write("silent.wav", np.zeros(32_000))) == Dropped("silent", "-120 dBFS")
    (tmp_path / "text.mp3").write_text("no audio at all " * 50)
    whole = write("whole.flac", noise(4)).read_bytes()
    (tmp_path / "torn.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.wav").write_bytes(b"")
    for name, said in (("text.mp3", "not audio"), ("torn.flac", "truncated|damaged|decoded"), ("empty.wav", "empty")):
        failed = probed(tmp_path / name)
        assert isinstance(failed, Failed), name
        assert not failed.retryable
        assert len(failed.error.splitlines()) == 1
        assert re.search(said, failed.error), failed
        assert str(tmp_path) not in failed.error
    row = {"id": "0", "file": "long.wav", "source_id": "other"}
    (other,) = Probe().run([row], Context(tmp_path))
    assert isinstance(other, Failed)
    assert "not what was fetched" in other.error


def test_a_long_recording_is_never_held_whole(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", np.zeros((8_000 * 120, 1), np.int16) + 1000, 8_000)
    most, add = [0], SampleCounts.add

    def watched(self, pcm):
        most[0] = max(most[0], len(pcm))
        add(self, pcm)

    monkeypatch.setattr(probe.SampleCounts, "add", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probed(tmp_path / "long.wav").fields["seconds"] == 120
    assert 0 < most[0] < 16_000 * 30


def test_a_video_is_read_for_its_audio(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        picture, sound = file.add_stream("mpeg4", rate=10), file.add_stream("aac", rate=48_000, layout="mono")
        picture.width = picture.height = 16
        picture.pix_fmt = "yuv420p"
        for _ in range(15):
            frame = av.VideoFrame(16, 16, "yuv420p")
            file.mux(picture.encode(frame))
        pcm = noise(1.5, rate=48_000).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(pcm, "fltp", "mono")
        frame.sample_rate = 48_000
        file.mux(sound.encode(frame))
        file.mux(picture.encode(None))
        file.mux(sound.encode(None))
    kept = probed(path)
    assert isinstance(kept, Kept)
    assert (kept.fields["format"], kept.fields["rate"], kept.fields["channels"]) == ("matroska", 48_000, 1)
    assert 1.4 < kept.fields["seconds"] < 1.6
