"""How a small voice is judged: words in order, fundamental frequencies, and a recogniser that may not be there."""

import math

import pytest
import torch

from afn_model.bootstrap import talk_scores
from afn_model.bootstrap.talk_scores import Listener, fundamental, in_order, nearer, nearer_spectrum, word_scores

RATE = 16_000
PITCHES = {"man": 86.0, "woman": 215.0}


def vowel(pitch, seconds=0.5, rate=RATE, tilt=1.0):
    """Harmonics up to 3 kHz, the second louder than the first for a tilt above 1."""
    t = torch.arange(round(seconds * rate)) / rate
    parts = [(tilt if n == 2 else 1 / n) * torch.sin(2 * math.pi * n * pitch * t + n) for n in range(1, 3000 // pitch)]
    return 0.1 * torch.stack(parts).sum(0)


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("pitch", [70, 120, 330])
def test_fundamental_frequencies(pitch, rate):
    noise = 0.01 * torch.randn(rate, generator=torch.Generator().manual_seed(0))
    for tilt in (1.0, 3.0):
        pcm = torch.cat([noise[: rate // 4], vowel(pitch, rate=rate, tilt=tilt) + noise[: rate // 2]])
        assert fundamental(pcm, rate) == pytest.approx(pitch, rel=0.02)


def test_where_there_is_no_pitch():
    generator = torch.Generator().manual_seed(0)
    assert fundamental(torch.zeros(RATE), RATE) is None
    assert fundamental(vowel(100)[:300], RATE) is None
    assert fundamental(torch.randn(RATE, generator=generator), RATE) is None
    assert nearer(torch.zeros(RATE), RATE, PITCHES) == ""


def test_the_nearer_speaker_is_so_by_ratio():
    assert nearer(vowel(100), RATE, PITCHES) == "man"
    assert nearer(vowel(140), RATE, PITCHES) == "woman", "nearer by ratio, though not in Hz"


def test_a_speaker_is_also_told_by_the_spectrum():
    """Of whatever loudness: noise, and noise whose high tones are damped."""

    def hiss(seed, damped):
        noise = torch.randn(RATE, generator=torch.Generator().manual_seed(seed))
        return noise[:-7].unfold(0, 8, 1).mean(1) if damped else noise[:-14]

    spoken = {"bright": hiss(0, False), "dull": hiss(1, True)}
    assert nearer_spectrum(0.01 * hiss(2, False), RATE, spoken) == "bright"
    assert nearer_spectrum(3 * hiss(3, True), RATE, spoken) == "dull"
    assert nearer_spectrum(torch.zeros(RATE), RATE, spoken) == ""


def test_words_in_order():
    assert in_order(["one", "two", "three"], ["one", "three", "two"]) == 2
    assert in_order([], ["one"]) == in_order(["one"], []) == 0
    assert word_scores([("one two two", "one two"), ("", "six seven")]) == {"wer": 0.75, "right": 0.5}
    assert word_scores([]) == {"wer": 0.0, "right": 0.0}


def test_without_a_recogniser_nothing_is_heard(monkeypatch):
    def absent(*_, **__):
        raise ValueError("pocketsphinx is not installed: pip install pocketsphinx")

    monkeypatch.setattr(talk_scores, "PocketSphinx", absent)
    listener = Listener()
    assert listener.missing.startswith("pocketsphinx is not installed")
    assert listener(vowel(100), RATE) is None


def test_the_recogniser_hears_both_talkers_at_any_loudness():
    pytest.importorskip("pocketsphinx", reason="the recogniser is an optional package")
    pytest.importorskip("espeakng_loader", reason="the voices are an optional extra")
    from afn_model.world.espeak import Espeak
    from afn_model.world.speeches import TALKERS

    listener = Listener()
    with Espeak() as engine:
        for who in TALKERS.values():
            of = {"voice": who.accent, "variant": who.variant, "rate": who.rate, "pitch": who.pitch}
            for text in ("four point two seconds", "guitar nine four"):
                pcm = engine.say(text, **of)
                assert listener(pcm, RATE) == listener(0.01 * pcm, RATE) == text
    assert listener(torch.zeros(RATE), RATE) == ""
