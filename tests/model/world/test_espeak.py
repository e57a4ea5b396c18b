"""Speech synthesis: repeatable, trimmed to the speech, and clear about what it cannot do."""

import hashlib
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from afn_model.world.espeak import SAMPLE_RATE, Espeak

# f5 and Alicia are breathy: their noise is drawn at random.
LINES = [("seven", "en-us", "f2"), ("uno", "es", "f5"), ("stop", "en-gb", "klatt"), ("one", "en-us", "Alicia")] * 2


def digest(_=None) -> str:
    with Espeak() as engine:
        spoken = [engine.say(text, voice=voice, variant=variant) for text, voice, variant in LINES]
    return hashlib.sha256(torch.cat(spoken).numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("espeakng_loader")
    with Espeak() as engine:
        yield engine


def test_speech_starts_at_the_first_sample_and_ends_at_the_last(engine):
    for text, voice, variant in LINES:
        pcm = engine.say(text, voice=voice, variant=variant)
        assert pcm.dtype == torch.float32
        assert pcm.ndim == 1
        assert 0.1 * SAMPLE_RATE < len(pcm) < SAMPLE_RATE
        assert 0.05 < pcm.abs().max() <= 1
        assert min(pcm[0].abs(), pcm[-1].abs()) > 0.01 * pcm.abs().max()


def test_a_fresh_engine_repeats_itself_whatever_others_have_said(engine):
    first = digest()
    engine.say("something else", voice="es", variant="f5")
    assert digest() == first
    with Espeak() as one, Espeak() as other:
        for text, voice, variant in LINES:
            assert torch.equal(*(each.say(text, voice=voice, variant=variant) for each in (one, other)))


def test_other_processes_hear_the_same(engine):
    script = "import sys; sys.path[:0] = sys.argv[1:]; from test_espeak import digest; print(digest())"
    fresh = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), *sys.path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        forked = pool.map(digest, range(2))
    assert [fresh, *forked] == [digest()] * 3


def test_rate_pitch_and_volume_do_what_they_say(engine):
    assert len(engine.say("seven", rate=120)) > 1.3 * len(engine.say("seven", rate=240))
    assert engine.say("seven", volume=30).abs().max() < 0.7 * engine.say("seven", volume=60).abs().max()
    low, high = (fundamental(engine.say("aaaah", variant="m3", pitch=pitch)) for pitch in (10, 90))
    assert high > 1.3 * low


def fundamental(pcm: torch.Tensor) -> float:
    """By the mean cepstrum of short frames: over a whole vowel whose pitch flutters, a formant may stand out."""
    frames = pcm.unfold(0, 2048, 256) * torch.hann_window(2048)
    spectrum = torch.fft.rfft(frames, 4096).abs()
    cepstrum = torch.fft.irfft((spectrum + 1e-3).log()).mean(0)[40:320]  # 50 to 400 Hz
    return SAMPLE_RATE / (40 + cepstrum.argmax().item())


def test_voices_are_the_languages_say_takes(engine):
    languages = {voice.language for voice in engine.voices()}
    assert {"en-us", "en-gb", "es", "de"} <= languages


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text": ""}, "nothing"),
        ({"voice": "xx"}, "voice 'xx'"),
        ({"variant": "nobody"}, "variant 'nobody'"),
        ({"rate": 20}, "rate must be between 80 and 450, got 20"),
        ({"pitch": 120}, "pitch"),
        ({"volume": 300}, "volume"),
    ],
)
def test_bad_requests_are_refused_by_name(engine, wrong, message):
    with pytest.raises(ValueError, match=message):
        engine.say(**{"text": "seven", **wrong})


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"espeakng-loader.*\[demo\]"):
        Espeak()
