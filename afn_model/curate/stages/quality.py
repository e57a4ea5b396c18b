"""How good a recording sounds: a mean opinion score of its speech, and what its signal says without a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.audio.decode import load_audio
from afn_model.checks import number
from afn_model.curate import identity
from afn_model.curate.models import RATE, onnx_session, package_file, weights
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row, Stage

SAMPLES = 144_160  # of a window that DNSMOS hears
WINDOW = SAMPLES / RATE  # 9.01 s
OVERALL = (-0.06766283, 1.11546468, 0.04602535)  # DNSMOS: overall score = a x² + b x + c of the network's third output
TOGETHER = 4  # windows at a time: each takes 100 MB while it is heard
INSTALL = "pip install --no-deps speechmos"
BLOCK, NEAR_DB, BAND_DB = 320, 1.0, 60.0


@dataclass(frozen=True)
class Quality(Stage):
    """Rates one window of 9 s a minute, which the recording's id draws from those with speech in them.

    mos: the mean of DNSMOS's overall scores, 1 to 5, of Reddy et al., "DNSMOS P.835", 2022; None where no window has
    speech. signal: the means over the same windows, or over a window of every minute where none has speech, of

    - snr_db: what all 20 ms have over the quietest tenth of them, as 10 log₁₀((mean - quietest) / quietest), from -10
      to 60;
    - bandwidth_hz: the highest frequency with power within 60 dB of the strongest, at most 8,000;
    - clipped: share of samples within 1 dB of the largest: some 0.0001 in speech, above 0.01 where it was cut off.

    Args:
        every: seconds that a window is rated of.
        speech: seconds of speech that a window has at least.
        model: path of DNSMOS's sig_bak_ovr.onnx; None for that of the package speechmos, "" for no score.

    Raises:
        ValueError: a parameter out of range.
    """

    name = "quality"
    reads = ("file", "source_id", "seconds", "spans")
    writes = ("mos", "signal")
    resources = Resources(seconds=12.0)

    every: float = 60.0
    speech: float = 3.0
    model: str | None = None

    def __post_init__(self):
        number(self.every, "every", above=WINDOW)
        number(self.speech, "speech", above=-1e-9)

    def depends(self) -> Mapping[str, Any]:
        return {} if self.model == "" else weights(Path(self.model or speechmos()))

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        session = None if self.model == "" else onnx_session(self.model or speechmos())
        return [self._rated(row, context, session) for row in rows]

    def _rated(self, row: Row, context: Context, session: Any) -> Outcome:
        starts = windows(row, self.every, self.speech, context.seed)
        rated = bool(starts) and session is not None
        path, seconds, heard = context.out / row["file"], row["seconds"], list[np.ndarray]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for start in starts or windows(row, self.every, 0.0, context.seed):
                # the end of a recording that has no more than a window is where it ends, whatever was probed
                end = start + WINDOW if start + WINDOW <= seconds else None
                heard.append(load_audio(path, start=start, end=end, max_seconds=WINDOW).numpy())
        told = [signal(pcm) for pcm in heard]
        means = {name: float(np.mean([one[name] for one in told])) for name in told[0]}
        fields = {"mos": None, "signal": {name: float(f"{value:.4g}") for name, value in means.items()}}
        if rated:
            fields["mos"] = round(float(np.mean(scores(session, heard))), 3)
        return Kept(fields, {"windows rated": len(heard)} if rated else {})


def windows(row: Row, every: float, speech: float, seed: int) -> list[float]:
    """Starts in seconds: for each so many seconds of a recording one of the windows that begin on a whole second of it,
    end within the recording and have enough speech; the whole of a recording that is shorter than a window."""
    seconds, found = row["seconds"], []
    active = np.zeros(int(seconds * 100) + 1, np.int64)
    for span in row["spans"]:
        if span["kind"] == "speech":
            active[round(100 * span["start"]) : round(100 * span["end"])] = 1
    heard = np.concatenate([[0], np.cumsum(active)]) / 100
    at, size = 0.0, round(100 * WINDOW)
    while at < max(seconds - WINDOW, 1e-9):
        offers = np.arange(np.ceil(at), min(at + every, seconds - WINDOW)).astype(int) if seconds > WINDOW else [0]
        offers = [one for one in offers if heard[min(100 * one + size, len(heard) - 1)] - heard[100 * one] >= speech]
        if offers:
            drawn = int(identity.of("window", row["source_id"], round(1000 * at), seed)[:8], 16)
            found.append(float(offers[drawn % len(offers)]))
        at += every
    return found


def scores(session: Any, windows: Sequence[np.ndarray]) -> list[float]:
    """DNSMOS's overall scores of windows at 16 kHz; one that is shorter is repeated until it is long enough."""
    given, found = np.stack([np.resize(pcm.clip(-1, 1), SAMPLES) for pcm in windows]), list[float]()
    for at in range(0, len(given), TOGETHER):
        overall = session.run(None, {session.get_inputs()[0].name: given[at : at + TOGETHER]})[0][:, 2]
        found += np.polyval(OVERALL, overall.astype(np.float64)).tolist()
    return found


def signal(pcm: np.ndarray) -> dict[str, float]:
    """{"snr_db", "bandwidth_hz", "clipped"} of samples [n] at 16 kHz."""
    frames = np.resize(pcm, max(BLOCK, len(pcm) // BLOCK * BLOCK)).reshape(-1, BLOCK).astype(np.float64)
    levels = np.sort((frames * frames).mean(1))
    quiet, mean = levels[: max(1, len(levels) // 10)].mean() + 1e-12, levels.mean()
    snr = 10 * np.log10(max((mean - quiet) / quiet, 0.1))
    spectrum = (np.abs(np.fft.rfft(frames * np.hanning(BLOCK))) ** 2).mean(0)
    heard = np.flatnonzero(spectrum > 10 ** (-BAND_DB / 10) * spectrum.max())
    size = np.abs(pcm)
    near = (size >= 10 ** (-NEAR_DB / 20) * size.max()).mean() if size.any() else 0.0
    return {
        "snr_db": float(min(snr, 60.0)),
        "bandwidth_hz": float(heard[-1] * RATE / BLOCK) if len(heard) else 0.0,
        "clipped": float(near),
    }


def speechmos() -> str:
    """DNSMOS's network out of the package speechmos, which is not imported: it would import librosa.

    Raises:
        ValueError: the package is not installed.
    """
    return str(package_file("speechmos", "dnsmos_models/sig_bak_ovr.onnx", INSTALL))
