"""Sentences that voices say, and conversations of them, with who speaks when."""

import numpy as np
import soundfile

from afn_model.curate.requests import AnnotationRequest
from afn_model.world.espeak import Espeak

SENTENCES = (
    "we will meet again tomorrow morning at nine",
    "please open the window and close the door",
    "the quick brown fox jumps over the lazy dog",
    "no I do not think so",
)
MAN, WOMAN = ("m3", 40), ("f2", 55)  # variant and pitch


def say(text, variant, pitch, rate=170):
    """One sentence by a synthesiser of its own: [n] float32."""
    with Espeak() as engine:
        return engine.say(text, variant=variant, pitch=pitch, rate=rate).numpy()


def noisy(pcm, seed=0):
    return (pcm + 1e-3 * np.random.default_rng(seed).standard_normal(len(pcm))).astype(np.float32)


def conversation(cast, seed=0, turns=6):
    """(samples [n], [(speaker, start, end)]) of voices (variant, pitch) in turn, with pauses of 0.15 to 0.8 s."""
    rng, at, pieces, truth = np.random.default_rng(seed), 8000, [np.zeros(8000)], []
    with Espeak() as engine:
        for number in range(turns):
            who = number % len(cast)
            variant, pitch = cast[who]
            wave = 0.6 * engine.say(SENTENCES[number % len(SENTENCES)], variant=variant, pitch=pitch).numpy()
            truth.append((str(who), at / 16_000, (at + len(wave)) / 16_000))
            pause = int(16_000 * rng.uniform(0.15, 0.8))
            pieces += [wave, np.zeros(pause)]
            at += len(wave) + pause
    return noisy(np.concatenate(pieces), seed), truth


def request(path, pcm, prompt, start=None, end=None):
    """A request about a recording that is written."""
    soundfile.write(path, pcm, 16_000)
    parts = [{"audio": {"path": str(path), "start": start, "end": end}}, {"text": "?"}]
    return AnnotationRequest("s", "stage", 1, prompt, "h", ({"role": "user", "content": parts},))
