"""An annotator that measures who speaks when: Silero finds speech, and what sounds alike is one speaker.

    annotators:
      diariser: {call: "afn_model.curate.stand_ins.diariser:turns"}

Voices are told apart by their spectra and pitch, or, where resemblyzer is installed, by its network; one voice at a
time: where two speak at once it names one of them.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from afn_kernels.log_mel.reference import mel_energies
from afn_model.curate.models import HOP, STEP, Silero, package_file
from afn_model.curate.requests import AnnotationRequest
from afn_model.curate.stages.activity import DELAY, held, runs
from afn_model.curate.stand_ins.pitch import FRAME, heard, pitch

ON, OFF = 0.5, 0.35  # probabilities of speech
BRIDGE, LEAST = 10, 15  # frames of 10 ms: silence within speech, and speech at least
WINDOW, EVERY = 120, 30  # frames that are looked at together, and from one such to the next
FINE = 60  # frames of the windows in which speakers are found again
CLUSTERED = 400  # windows that are compared with each other; the others are compared with the speakers found
SPEAKERS = 10
FEW = 4  # windows of a speaker at least; those of fewer are the nearest other's
SHORTEST = 40  # frames of a turn within speech
MELS, COEFFICIENTS = 40, 16
# What coefficient k counts, so that each differs by about 1 between windows of one of the world's voices; an octave.
WEIGHTS, PITCH = 0.5 * np.arange(1, COEFFICIENTS) ** 0.6, 14.0
MEASURED_APART, RESEMBLYZER_APART = 11.5, 0.75  # mean distance of windows of two speakers
RESEMBLYZER = ("resemblyzer", "pretrained.pt")
Embed = Callable[[Sequence[tuple[int, int]]], np.ndarray]  # frames [first, stop) of windows -> [n, d]


def turns(requests: Sequence[AnnotationRequest], embedding: str = "") -> list[Any]:
    """{"turns": [{"speaker", "start", "end"}]} of the recording of each request.

    Args:
        requests: of the stage diarise.
        embedding: "measured", "resemblyzer", or "" for the latter where it is installed.
    """
    return [_turns(one, embedding) for one in requests]


def diarised(pcm: np.ndarray, embedding: str = "measured") -> list[tuple[int, float, float]]:
    """(speaker from 0, start, end) in seconds, of samples [n] float32 at 16 kHz.

    Raises:
        ValueError: no such embedding, or its package is missing.
    """
    kinds = {"measured": (measured, MEASURED_APART), "resemblyzer": (by_resemblyzer, RESEMBLYZER_APART)}
    if embedding not in kinds:
        raise ValueError(f"embedding is {' or '.join(kinds)}, got {embedding!r:.40}")
    regions = speech(pcm)
    if not regions:
        return []
    embed, apart = kinds[embedding][0](pcm), kinds[embedding][1]
    coarse = [window for region in regions for window in windows(*region, WINDOW)]
    found = embed(coarse)
    some = np.unique(np.linspace(0, len(found) - 1, min(len(found), CLUSTERED)).astype(int))
    labels = clustered(found[some], apart)
    centres = np.stack([found[some][labels == label].mean(0) for label in np.unique(labels)])
    near = np.argmin(distances(found, centres), 1)
    sizes = np.bincount(near, minlength=len(centres))
    kept = (sizes >= FEW) | (sizes == sizes.max())
    centres = centres[kept]
    return [one for region in regions for one in _divided(region, embed, centres)]


def speech(pcm: np.ndarray) -> list[tuple[int, int]]:
    """Frames [first, stop) of 10 ms in which somebody speaks."""
    silero = Silero()
    silero.push(pcm.astype(np.float32))
    steps = silero.finish()
    count = len(pcm) // HOP
    if not count or not len(steps):
        return []
    place = ((np.arange(count) * HOP + HOP // 2) / STEP + DELAY).astype(int).clip(0, len(steps) - 1)
    return runs(held(steps[place], ON, OFF), BRIDGE, LEAST)


def windows(first: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Windows of so many frames, one all ``EVERY``, that cover a run of frames; the run itself if it is shorter."""
    if stop - first <= size:
        return [(first, stop)]
    starts = [*range(first, stop - size, EVERY), stop - size]
    return [(start, start + size) for start in starts]


def measured(pcm: np.ndarray) -> Embed:
    """Mean cepstral coefficients and pitch of windows of a recording."""
    energies = mel_energies(torch.from_numpy(pcm.astype(np.float32))[None], MELS)[0].double().numpy().T
    levels = np.log(energies.clip(1e-10))
    place = np.arange(MELS) + 0.5
    basis = np.cos(np.pi / MELS * np.arange(1, COEFFICIENTS)[:, None] * place) * np.sqrt(2 / MELS)
    cepstra = levels @ basis.T
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(pcm, FRAME // 2), FRAME)[::HOP][: len(levels)]
    loudness = levels.mean(1)

    def embed(places: Sequence[tuple[int, int]]) -> np.ndarray:
        found = []
        for first, stop in places:
            part = loudness[first:stop]
            loud = np.flatnonzero(part >= np.median(part)) + first
            pitches = pitch(frames[loud])
            voiced = pitches[pitches > 0]
            octave = np.log2(np.median(voiced) / 100) if len(voiced) else 0.0
            found.append([*WEIGHTS * cepstra[loud].mean(0), PITCH * octave])
        return np.array(found)

    return embed


def by_resemblyzer(pcm: np.ndarray) -> Embed:
    """Embeddings of windows by resemblyzer's network, which is a GE2E speaker encoder.

    Source: Wan et al. 2018, arXiv:1710.10467.
    """
    network, linear = _encoder()
    energies = mel_energies(torch.from_numpy(pcm.astype(np.float32))[None], MELS)[0].T

    def embed(places: Sequence[tuple[int, int]]) -> np.ndarray:
        found = []
        with torch.inference_mode():
            for first, stop in places:
                _, (hidden, _) = network(energies[None, first:stop])
                found.append(torch.nn.functional.normalize(linear(hidden[-1]).relu()[0], dim=0).double().numpy())
        return np.stack(found)

    return embed


def clustered(points: np.ndarray, apart: float) -> np.ndarray:
    """Labels [n] of points [n, d]: the two clusters whose points are nearest on average become one, until they are
    ``apart``, and there are no more than ``SPEAKERS``."""
    names, between = list(range(len(points))), distances(points, points)
    np.fill_diagonal(between, np.inf)
    sizes, labels = np.ones(len(points)), np.arange(len(points))
    while len(names) > 1:
        one, other = np.unravel_index(np.argmin(between), between.shape)
        if between[one, other] >= apart and len(names) <= SPEAKERS:
            break
        joined = (sizes[one] * between[one] + sizes[other] * between[other]) / (sizes[one] + sizes[other])
        between[one], between[:, one] = joined, joined
        between[one, one] = np.inf
        between[other], between[:, other] = np.inf, np.inf
        sizes[one] += sizes[other]
        labels[labels == other] = one
        names.remove(int(other))
    return labels


def distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean, [n, m] of [n, d] and [m, d]."""
    return np.sqrt(np.maximum(((points[:, None] - others[None]) ** 2).sum(2), 0.0))


def _divided(region: tuple[int, int], embed: Embed, centres: np.ndarray) -> list[tuple[int, float, float]]:
    """The turns of a region: each frame is the speaker's whom the windows around it are nearest to."""
    first, stop = region
    far = np.zeros((stop - first, len(centres)))
    places = windows(first, stop, FINE)
    for (begin, end), off in zip(places, distances(embed(places), centres), strict=True):
        weight = np.hanning(end - begin + 2)[1:-1, None]
        far[begin - first : end - first] += weight * (off - off.mean())
    nearest = np.argmin(far, 1)
    edges = [0, *(np.flatnonzero(np.diff(nearest)) + 1), len(nearest)]
    parts: list[list[int]] = []
    for begin, end in pairwise(edges):
        if parts and (end - begin < SHORTEST or parts[-1][0] == nearest[begin]):
            parts[-1][2] = int(end)
        else:
            parts.append([int(nearest[begin]), int(begin), int(end)])
    return [(name, (first + begin) / 100, (first + end) / 100) for name, begin, end in parts]


@functools.cache
def _encoder() -> tuple[torch.nn.LSTM, torch.nn.Linear]:
    file = package_file(*RESEMBLYZER, install="pip install --no-deps resemblyzer")
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    network, linear = torch.nn.LSTM(MELS, 256, 3, batch_first=True), torch.nn.Linear(256, 256)
    for module, prefix in ((network, "lstm."), (linear, "linear.")):
        module.load_state_dict(
            {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
        )
    return network.eval(), linear.eval()


def _turns(request: AnnotationRequest, embedding: str) -> Any:
    embedding = embedding or ("resemblyzer" if importlib.util.find_spec("resemblyzer") else "measured")
    try:
        found = diarised(heard(request), embedding)
    except (ValueError, OSError) as error:
        return error
    listed = [{"speaker": str(name), "start": start, "end": end} for name, start, end in found]
    return {"turns": sorted(listed, key=lambda one: (one["start"], one["end"]))}
