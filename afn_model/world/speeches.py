"""What a voice learns to speak from: phrases of a closed English vocabulary, said whole by eSpeak.

The phrases are what the small model of ``afn demo`` answers in English, one to four words at a time: its words, the
names of its sounds, and times ("2.4 s", which is said "two point four seconds"). Two talkers say them for the talker;
many speakers, and those two, for the codec.
"""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afn_model.audio.encode import flac
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.world.build import write_records
from afn_model.world.espeak import Espeak
from afn_model.world.phrases import NUMBERS
from afn_model.world.sounds import SOUNDS
from afn_model.world.tasks.utterances import held_out
from afn_model.world.vocabulary import speakers_of
from afn_model.world.words import SPLITS, WORDS, Speaker

SAYABLE = (*WORDS["en"], *SOUNDS)
SPOKEN = (*SAYABLE, "point", "seconds")  # every word that is heard
MOST_WORDS = 4
# The two that a recogniser understands best among eSpeak's: docs/speech.md has its word error rate of each.
TALKERS = {"man": Speaker("en-us", "", 130, 30), "woman": Speaker("en-us", "f2", 130, 30)}
AXES = ("prompts", "spoken", "voices")  # the place of an axis numbers its random streams
TIMES = 0.15  # share of phrases that are a time
OWN = 0.3  # share of training recordings for the codec that the two talkers say
PROMPTS = 16  # of each talker in a split
LEVEL, PEAK = 0.1, 0.9  # root mean square of what is said, and its peak at most
BEFORE, AFTER = 0.02, 0.1  # seconds of silence around it
FADE = 160  # samples
CHUNK = 32  # records that share a synthesiser: its state runs on from one utterance to the next
_TIME = re.compile(r"([0-9])\.([0-9]) s")


class Phrase(NamedTuple):
    """A text, and the words that are heard of it."""

    text: str
    words: tuple[str, ...]


def spoken_words(text: str) -> tuple[str, ...]:
    """The words that are heard where ``text`` is said; none where it has a word that no phrase here has."""
    text = _TIME.sub(lambda found: f"{NUMBERS[int(found[1])]} point {NUMBERS[int(found[2])]} seconds", text)
    words = tuple(text.lower().rstrip(".").split())
    return words if set(words) <= set(SPOKEN) else ()


def phrase(rng: np.random.Generator, split: str, least: int = 1) -> Phrase:
    """A phrase of the split, of ``least`` words or more: no two or more words in their order are in both splits."""
    while True:
        if rng.random() < TIMES:
            text = f"{rng.integers(10)}.{rng.integers(10)} s"
        else:
            count = int(rng.integers(least, MOST_WORDS + 1))
            text = " ".join(SAYABLE[i] for i in rng.permutation(len(SAYABLE))[:count])
        words = spoken_words(text)
        if len(words) == 1 or held_out(words) == (split == "heldout"):
            return Phrase(text, words)


def write_speeches(
    folder: str | Path,
    *,
    train: dict[str, int],
    heldout: dict[str, int],
    seed: int,
    processes: int = 1,
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Writes SPLIT/AXIS.jsonl with indexes, and their recordings as flac beside them, at 16 kHz.

    Axes are "spoken", for the talker (two recordings: one of ``prompts`` by the same talker, and what is said), and
    "voices", for the codec; held out are "new", by speakers whom training does not have, and "known", by those it has.
    Held-out phrases have two words or more. The bytes written do not depend on the number of processes.

    Args:
        folder: made if absent; corpora of the same names are replaced.
        train: records of "spoken" and "voices".
        heldout: records of "spoken", "known" and "new".
        seed: of everything.
        processes: how many make records.
        on_step: called as on_step(done, total) after each record.

    Raises:
        ImportError: the ``espeakng-loader`` package is absent.
        ValueError: an unknown axis, or a negative number.
    """
    allowed = {"train": ("spoken", "voices"), "heldout": ("spoken", "known", "new")}
    plan = {"train": train, "heldout": heldout}
    for split, sizes in plan.items():
        if unknown := set(sizes) - set(allowed[split]):
            raise ValueError(f"{split} has {', '.join(allowed[split])}, not {', '.join(sorted(unknown))}")
        if seed < 0 or min(sizes.values(), default=0) < 0:
            raise ValueError(f"numbers must not be negative, got seed {seed}, {split} {sizes}")
    plan = {split: {"prompts": PROMPTS * len(TALKERS)} | sizes for split, sizes in plan.items()}
    total, done = sum(sum(sizes.values()) for sizes in plan.values()), 0
    with _pool(processes) as results:
        for split, sizes in plan.items():
            home, prompts = Path(folder) / split, list[dict]()
            home.mkdir(parents=True, exist_ok=True)
            for axis, count in sizes.items():
                first = range(0, count, CHUNK)
                orders = [(axis, seed, split, range(n, min(n + CHUNK, count)), prompts) for n in first]
                stream = (made for several in results(orders) for made in several)
                for _ in write_records(home / f"{axis}.jsonl", axis, True, islice(stream, count)):
                    done += 1
                    if on_step:
                        on_step(done, total)
                if axis == "prompts":
                    lines = (home / "prompts.jsonl").read_text("utf-8").splitlines()
                    prompts = [json.loads(line) for line in lines]


@contextmanager
def _pool(processes: int) -> Iterator[Callable]:
    if processes == 1:
        yield lambda orders: map(_made, orders)
        return
    with multiprocessing.Pool(processes) as pool:
        yield lambda orders: pool.imap(_made, orders)


def _made(order: tuple[str, int, str, range, list[dict]]) -> list[tuple[dict, list[bytes]]]:
    axis, seed, split, places, prompts = order
    with Espeak() as engine:
        return [_record(engine, axis, seed, split, place, prompts) for place in places]


def _record(
    engine: Espeak, axis: str, seed: int, split: str, place: int, prompts: Sequence[dict]
) -> tuple[dict, list[bytes]]:
    stream = AXES.index("voices" if axis in ("known", "new") else axis)
    rng = np.random.default_rng([seed, SPLITS.index(split), place, stream, axis == "new"])
    who = tuple(TALKERS)[place % len(TALKERS)]  # whose prompt or talk it is
    least = 1 if split == "train" else 2
    said, speaker = phrase(rng, split, MOST_WORDS if axis == "prompts" else least), TALKERS[who]
    if axis in ("voices", "known", "new") and not (split == "train" and rng.random() < OWN):
        cast = speakers_of("heldout" if axis == "new" else "train", "en")
        speaker, who = cast[int(rng.integers(len(cast)))], ""
    pcm = _said(engine, said, speaker)
    ident, seconds = f"{axis}-{split}-{seed}-{place:06d}", len(pcm) / SAMPLE_RATE
    before = []
    if axis == "spoken":
        own = [prompt for prompt in prompts if prompt["truth"]["voice"] == who]
        prompt = own[int(rng.integers(len(own)))]
        before = [(prompt["audios"][0], prompt["duration"])]
    heard = [*before, ({"path": f"{ident}.flac"}, seconds)]
    mark = "<sound>\n" if len(heard) == 1 else "<sound-1><sound-2>"
    record = {
        "id": ident,
        "axis": axis,
        "task": "say",
        "source": "world",
        "audios": [dict(audio) for audio, _ in heard],
        "duration": seconds if len(heard) == 1 else [length for _, length in heard],
        "messages": [
            {"role": "user", "content": f"{mark}What is said?"},
            {"role": "assistant", "content": said.text},
        ],
        "truth": {"metric": "f1", "answer": said.text, "words": " ".join(said.words), "voice": who}
        | {"speaker": asdict(speaker)},
    }
    return record, [flac(pcm)]


def _said(engine: Espeak, said: Phrase, speaker: Speaker) -> np.ndarray:
    """[n] int16 at 16 kHz."""
    of = {"voice": speaker.accent, "variant": speaker.variant, "rate": speaker.rate, "pitch": speaker.pitch}
    pcm = engine.say(" ".join(said.words), **of).numpy()
    pcm = pcm * min(LEVEL / np.sqrt(np.mean(pcm * pcm)), PEAK / np.abs(pcm).max())
    pcm[-FADE:] *= np.linspace(1, 0, FADE, dtype=pcm.dtype)  # it ends within a sound of -40 dB
    pcm = np.pad(pcm, [round(seconds * SAMPLE_RATE) for seconds in (BEFORE, AFTER)])
    return np.round(pcm * 32767).astype(np.int16)
