"""Items changed on purpose: without recordings, with noise or other recordings, with their options in every order.

What a score owes to the text alone, to any sound at all, or to where the right option stands is known beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.eval.items import AnsweredItem, Item, ItemClip
from afn_model.eval.prompts import without_marks
from afn_model.eval.running.clip_digests import ClipDigests
from afn_model.eval.score import Part, Score, quotient
from afn_model.files import atomic_path

SHORT, LONGEST = 60, 1800  # seconds of the two files of noise; the model hears no more of a recording
NOISE_RMS = 0.1  # 20 dB below full scale
BLOCK_SECONDS = 10


Ablation = Callable[[Sequence[Item], Path, int, ClipDigests], list[Item]]


def no_audio(items: Sequence[Item], out: Path, seed: int, lengths: ClipDigests) -> list[Item]:
    """What the text alone tells."""
    return [replace(item, clips=(), question=without_marks(item.question)) for item in items]


def noise(items: Sequence[Item], out: Path, seed: int, lengths: ClipDigests) -> list[Item]:
    """White noise of the same length in the place of every recording.

    Each is a beginning of the same noise, 20 dB below full scale, so that neither its bytes nor its name tell of the
    recording, and 60,000 recordings cost two files. A recording that cannot be read stays, and the run names it.
    """
    lengths.read(clip.path for item in items for clip in item.clips)
    folder = out.resolve() / "noise"  # lines of a batch start from another folder
    return [replace(item, clips=tuple(_noise(clip, folder, seed, lengths) for clip in item.clips)) for item in items]


def _noise(clip: ItemClip, folder: Path, seed: int, lengths: ClipDigests) -> ItemClip:
    seconds = min(lengths.seconds(clip.path, clip.start, clip.end), LONGEST)
    if not seconds:
        return clip
    return ItemClip(str(noise_file(folder, seed, SHORT if seconds <= SHORT else LONGEST)), 0.0, seconds)


def noise_file(folder: Path, seed: int, seconds: int) -> Path:
    """A wav file of white noise, 16 kHz and 16 bits, made if it is not there; the same bytes whenever it is made."""
    path = folder / f"white-{seed}-{seconds}.wav"
    if not path.is_file():
        import soundfile

        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        with atomic_path(path) as temporary, soundfile.SoundFile(temporary, "w", SAMPLE_RATE, 1, "PCM_16") as file:
            for _ in range(0, seconds, BLOCK_SECONDS):
                wave = NOISE_RMS * random.standard_normal(BLOCK_SECONDS * SAMPLE_RATE, dtype=np.float32)
                file.write(np.rint(32767 * wave.clip(-1, 1)).astype(np.int16))
    return path


def wrong_audio(items: Sequence[Item], out: Path, seed: int, lengths: ClipDigests) -> list[Item]:
    """Another item's recording in the place of each: the next one in a random circle of all.

    Raises:
        ValueError: there are no two different ones.
    """
    clips = list(dict.fromkeys(clip for item in items for clip in item.clips))
    if len(clips) < 2:
        raise ValueError(f"wrong-audio: two different recordings are needed, there are {len(clips)}")
    order = np.random.default_rng(seed).permutation(len(clips))
    following = {clips[at]: clips[after] for at, after in zip(order, np.roll(order, -1), strict=True)}
    return [replace(item, clips=tuple(following[clip] for clip in item.clips)) for item in items]


def rotate_options(items: Sequence[Item], out: Path, seed: int, lengths: ClipDigests) -> list[Item]:
    """Every item once for each of its options, ``x@r1`` with the options one place further and so on: each option is in
    each place once.

    Raises:
        ValueError: no item has two options.
    """
    if not any(len(item.choices) > 1 for item in items):
        raise ValueError("rotate-options: no item has options")
    return [
        replace(
            item,
            id=f"{item.id}@r{turn}",
            choices=item.choices[turn:] + item.choices[:turn],
            groups={**item.groups, "rotation": str(turn)},
            extra={**item.extra, "rotation of": item.id},
        )
        for item in items
        for turn in range(max(1, len(item.choices)))
    ]


@dataclass(frozen=True)
class Rotations:
    """A score over the orders of the options.

    Args:
        each: the score with the options turned 0, 1, ... places; an item with fewer options begins again.
        mean, worst: over ``each``.
        always: the score where an item counts as its worst rotation: for accuracy the share that is right in all.
    """

    each: tuple[float, ...]
    mean: float
    worst: float
    always: float


def rotations(answered: Sequence[AnsweredItem], score: Score, *, lower: bool = False) -> Rotations:
    """What the order of the options changes.

    Args:
        answered: of the items that ``rotate_options`` made.
        score: of these answers.
        lower: smaller is better.
    """
    by_item: dict[str, dict[int, Part]] = {}
    of: dict[str, int] = {}  # how many rotations
    for one, part in zip(answered, score.parts, strict=True):
        if part is not None:
            by_item.setdefault(one.item.extra["rotation of"], {})[int(one.item.groups["rotation"])] = part
            of[one.item.extra["rotation of"]] = max(1, len(one.item.choices))
    if not by_item:
        return Rotations((), float("nan"), float("nan"), float("nan"))
    each = []
    for turn in range(max(of.values())):
        parts = [found.get(turn % of[id]) for id, found in by_item.items()]
        each.append(quotient([part for part in parts if part is not None], score.scale))
    worse = max if lower else min
    least = [worse(found.values(), key=lambda part: part[0] / (part[1] or 1)) for found in by_item.values()]
    return Rotations(tuple(each), sum(each) / len(each), worse(each), quotient(least, score.scale))


ABLATIONS: dict[str, Ablation] = {
    "no-audio": no_audio,
    "noise": noise,
    "wrong-audio": wrong_audio,
    "rotate-options": rotate_options,
}


def ablate(name: str, items: Sequence[Item], out: Path, lengths: ClipDigests, *, seed: int = 0) -> list[Item]:
    """The items of an ablation; the items themselves for "".

    Args:
        name: a key of ``ABLATIONS``.
        items: of a benchmark.
        out: the run's folder, for recordings that are made.
        lengths: of recordings.
        seed: of what is random.

    Raises:
        ValueError: no such ablation, or one that says nothing of these items.
    """
    if name and name not in ABLATIONS:
        raise ValueError(f"{name}: no such ablation; there are {', '.join(ABLATIONS)}")
    return ABLATIONS[name](items, out, seed, lengths) if name else list(items)
