"""Question-and-answer clips with exact truth: what is said, which sound, when does it start.

Every clip is a pure function of (seed, split, index) and a recipe. A kind of question is one function in `KINDS`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from afn_model.world.sounds import SAMPLE_RATE, SOUNDS, coloured_noise, sound
from afn_model.world.words import SPLITS, WORDS, WordBank, load_bank, speakers

QUESTIONS = {
    "speech": (
        "What is said?",
        "What word do you hear?",
        "Which word is spoken?",
        "What does the speaker say?",
        "Transcribe the input speech.",
    ),
    "sound": (
        "What sound is this?",
        "Which sound do you hear?",
        "What makes this sound?",
        "Name the sound in this recording.",
    ),
    "onset": (
        "When does the {} start?",
        "At what time does the {} begin?",
        "When do you first hear the {}?",
        "After how many seconds does the {} start?",
    ),
}
SPEED = (0.87, 1.22)  # playback speed of a word: pitch and duration that no speaker of the bank has exactly
# Every word of the training split passes through a microphone of its own: gains in dB at these frequencies in Hz.
EQUALISER_HZ = (0, 500, 1000, 2000, 4000, 8000)
EQUALISER_DB = (-12.0, 4.0)
PEAK_DB = (-20.0, -1.0)
# The part of the recipe's range of lengths that a kind uses: a word needs little time, an onset needs all of it.
_LENGTHS = {"speech": (0.0, 0.4), "sound": (0.0, 0.7), "onset": (0.85, 1.0)}
_ONSET_EVENT = 1.0  # seconds kept free after the latest onset
_NOISE_SAMPLES = 1 << 18
_MEDLEY = 1  # keeps the random stream of a medley apart from that of the example of the same index


@dataclass(frozen=True)
class Recipe:
    """What clips are made of.

    Args:
        seconds: shortest and longest clip, within 1 to 1800 s; the longest at least 2 s.
        snr_db: event to background, range in dB; None leaves the background out.
        kinds: the kinds of question, drawn with equal chance.
        distractor: chance that a second, different event plays in an onset clip.
    """

    seconds: tuple[float, float] = (1.0, 4.0)
    snr_db: tuple[float, float] | None = (10.0, 30.0)
    kinds: tuple[str, ...] = ("speech", "sound", "onset")
    distractor: float = 0.2

    def __post_init__(self):
        low, high = self.seconds
        if not 1 <= low <= high <= 1800 or high < 2:
            raise ValueError(f"seconds must be within 1 to 1800 and reach at least 2, got {self.seconds}")
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {self.kinds}")


@dataclass(frozen=True)
class Event:
    """Something heard from `start` to `end` (seconds into the clip); `speaker` is empty for a sound."""

    kind: str  # "word" or "sound"
    label: str
    start: float
    end: float
    speaker: str = ""


@dataclass
class Example:
    """One clip with its question and answer; the first event is the one asked about."""

    id: str
    split: str
    kind: str
    pcm: torch.Tensor  # [n] float32 at 16 kHz, within [-1, 1]
    question: str
    answer: str
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    @property
    def label(self) -> str:
        """The word or the sound asked about."""
        return self.events[0].label

    @property
    def onset(self) -> float:
        """Start of the event asked about, in seconds, exact to the sample."""
        return self.events[0].start


class Scene:
    """A clip being mixed; everything random comes from its `rng`."""

    def __init__(self, rng: np.random.Generator, n: int, split: str, bank: WordBank):
        self.rng, self.split, self.bank = rng, split, bank
        self.pcm = np.zeros(n, np.float32)
        self.events: list[Event] = []

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    def word(self, *, exclude: str = "") -> tuple[np.ndarray, Event]:
        """A word by a speaker of the split, at root mean square 1; its event starts at 0."""
        language, word = _pick(self.rng, [pair for pair in _VOCABULARY if pair[1] != exclude])
        return self.spoken(language, word, int(self.rng.integers(len(speakers(self.split, language)))))

    def spoken(
        self, language: str, word: str, number: int, speed: tuple[float, float] = SPEED
    ) -> tuple[np.ndarray, Event]:
        """`word` by the speaker of that number, played at a speed drawn from the range, at root mean square 1."""
        pcm = self.bank.utterance(language, word, number).numpy().astype(np.float32)
        positions = np.arange(0, len(pcm) - 1, self.rng.uniform(*speed))
        wave = np.interp(positions, np.arange(len(pcm)), pcm).astype(np.float32)
        if self.split == "train":
            wave = _equalise(wave, self.rng.uniform(*EQUALISER_DB, len(EQUALISER_HZ)))
        speaker = speakers(self.split, language)[number]
        name = f"{speaker.accent}+{speaker.variant} rate {speaker.rate} pitch {speaker.pitch}"
        return _unit(wave), Event("word", word, 0, len(wave) / SAMPLE_RATE, name)

    def sound(self, seconds: tuple[float, float], *, exclude: str = "") -> tuple[np.ndarray, Event]:
        """A sound of a length drawn from `seconds`, at root mean square 1; its event starts at 0."""
        return self.sounding(_pick(self.rng, [name for name in SOUNDS if name != exclude]), seconds)

    def sounding(self, label: str, seconds: tuple[float, float]) -> tuple[np.ndarray, Event]:
        """The sound `label`, of a length drawn from `seconds`, at root mean square 1; its event starts at 0."""
        wave = sound(label, self.rng, int(self.rng.uniform(*seconds) * SAMPLE_RATE))
        return _unit(wave), Event("sound", label, 0, len(wave) / SAMPLE_RATE)

    def place(self, wave: np.ndarray, event: Event, start: float) -> None:
        """Add `wave` so that its first sample lands on the sample nearest to `start` seconds."""
        at = round(start * SAMPLE_RATE)
        end = min(at + len(wave), len(self.pcm))
        self.pcm[at:end] += wave[: end - at]
        self.events.append(replace(event, start=at / SAMPLE_RATE, end=end / SAMPLE_RATE))

    def somewhere(self, wave: np.ndarray) -> float:
        """A start in seconds, uniform over those at which the whole of `wave` fits."""
        return self.rng.integers(len(self.pcm) - len(wave) + 1) / SAMPLE_RATE

    def background(self, snr_db: tuple[float, float]) -> None:
        """Add coloured noise at a signal-to-noise ratio (events at root mean square 1) drawn from the range."""
        noise = _noises(self.split)
        row = noise[self.rng.integers(len(noise))]
        level = 10 ** (-self.rng.uniform(*snr_db) / 20)
        at, n = int(self.rng.integers(len(row))), len(self.pcm)
        if at + n <= len(row):
            self.pcm += np.float32(level) * row[at : at + n]
        else:
            self.pcm += np.float32(level) * np.take(row, np.arange(at, at + n), mode="wrap")

    def finish(self) -> torch.Tensor:
        """The clip, at a random level."""
        self.pcm *= np.float32(10 ** (self.rng.uniform(*PEAK_DB) / 20)) / np.abs(self.pcm).max()
        return torch.from_numpy(self.pcm)


def _speech(scene: Scene, recipe: Recipe) -> tuple[str, str]:
    wave, event = scene.word()
    scene.place(wave, event, scene.somewhere(wave))
    return _pick(scene.rng, QUESTIONS["speech"]), event.label


def _sound(scene: Scene, recipe: Recipe) -> tuple[str, str]:
    wave, event = scene.sound((0.8, scene.seconds))
    scene.place(wave, event, scene.somewhere(wave))
    return _pick(scene.rng, QUESTIONS["sound"]), event.label


def _onset(scene: Scene, recipe: Recipe) -> tuple[str, str]:
    # The range of onsets is that of the shortest onset clip: the length of a clip says nothing about the answer.
    latest = _lengths("onset", recipe)[0] - _ONSET_EVENT
    asked_word = scene.rng.random() < 0.5
    wave, event = scene.word() if asked_word else scene.sound((0.5, _ONSET_EVENT))
    scene.place(wave, event, scene.rng.uniform(0.1, latest))
    if scene.rng.random() < recipe.distractor:
        other = scene.sound((0.5, _ONSET_EVENT), exclude=event.label) if asked_word else scene.word()
        gain = np.float32(10 ** (scene.rng.uniform(-6, 0) / 20))
        scene.place(gain * other[0], other[1], scene.rng.uniform(0, latest))
    name = "word" if asked_word else event.label
    return _pick(scene.rng, QUESTIONS["onset"]).format(name), f"{scene.events[0].start:.1f} s"


KINDS: dict[str, Callable[[Scene, Recipe], tuple[str, str]]] = {"speech": _speech, "sound": _sound, "onset": _onset}
DEMO = Recipe()


def frame_labels(clip: Example, frames: int, *, step: float = 0.04) -> torch.Tensor:
    """What is heard in the middle of each frame: dense supervision for a stand-in of a pretrained encoder.

    Args:
        clip: the example.
        frames: number of frames.
        step: seconds per frame.
    Returns:
        [frames] int64: 0 for background, else 1 + index into `LABELS`; the event asked about hides a distractor.
    """
    middle, labels = (torch.arange(frames) + 0.5) * step, torch.zeros(frames, dtype=torch.int64)
    for event in reversed(clip.events):
        labels[(middle >= event.start) & (middle < event.end)] = 1 + LABELS.index(event.label)
    return labels


def outline(seed: int, split: str, index: int, *, recipe: Recipe = DEMO) -> tuple[str, int]:
    """Kind and number of samples of `example(seed, split, index)`, in microseconds: enough to bucket by length."""
    return _outline(_rng(seed, split, index), recipe)


def example(seed: int, split: str, index: int, *, recipe: Recipe = DEMO, bank: WordBank | None = None) -> Example:
    """The clip number `index` of a split: the same in any order, process or batch.

    Args:
        seed, index: non-negative.
        split: "train" or "heldout": no speaker of one occurs in the other, and sounds and noise are drawn afresh.
        recipe: what clips are made of.
        bank: the words of `split`; by default `load_bank(split)`.
    Raises:
        ValueError: unknown split, a negative seed or index, or a bank of the other split.
        ImportError: the words have to be synthesised and the `espeakng-loader` package is absent.
    """
    rng = _rng(seed, split, index)
    bank = bank or load_bank(split)
    if bank.split != split:
        raise ValueError(f"split {split!r} needs its own word bank, got that of {bank.split!r}")
    kind, n = _outline(rng, recipe)
    scene = Scene(rng, n, split, bank)
    question, answer = KINDS[kind](scene, recipe)
    if recipe.snr_db is not None:
        scene.background(recipe.snr_db)
    return Example(f"{split}-{seed}-{index:06d}", split, kind, scene.finish(), question, answer, tuple(scene.events))


def medley(
    seed: int, split: str, index: int, *, seconds: float = 3.0, words: float = 0.92, bank: WordBank | None = None
) -> Example:
    """A clip full of events one after another, for `frame_labels`: it has no question.

    Args:
        seed, split, index, bank: as in `example`.
        seconds: length of the clip, at least 2.
        words: share of the events that are words; the others are sounds.
    """
    if seconds < 2:
        raise ValueError(f"a medley needs at least 2 seconds, got {seconds}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index, _MEDLEY])
    scene = Scene(rng, int(seconds * SAMPLE_RATE), split, bank or load_bank(split))
    start = rng.uniform(0, 0.3)
    while True:
        wave, event = scene.word() if rng.random() < words else scene.sound((0.4, 1.0))
        if start + event.end > seconds:
            break
        scene.place(wave * np.float32(10 ** (rng.uniform(-6, 6) / 20)), event, start)
        start += event.end + rng.uniform(0.02, 0.3)
    scene.background(DEMO.snr_db)
    return Example(f"{split}-{seed}-{index:06d}m", split, "medley", scene.finish(), "", "", tuple(scene.events))


def _rng(seed: int, split: str, index: int) -> np.random.Generator:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got {seed} and {index}")
    return np.random.default_rng([seed, SPLITS.index(split), index])


def _outline(rng: np.random.Generator, recipe: Recipe) -> tuple[str, int]:
    kind = _pick(rng, recipe.kinds)
    return kind, int(rng.uniform(*_lengths(kind, recipe)) * SAMPLE_RATE)


def _lengths(kind: str, recipe: Recipe) -> tuple[float, float]:
    low, high = recipe.seconds
    return tuple(low + share * (high - low) for share in _LENGTHS[kind])


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


def _equalise(wave: np.ndarray, gains_db: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft(wave, 1 << (len(wave) - 1).bit_length())
    hertz = np.linspace(0, SAMPLE_RATE / 2, len(spectrum))
    spectrum *= 10 ** (np.interp(hertz, EQUALISER_HZ, gains_db) / 20)
    return np.fft.irfft(spectrum)[: len(wave)].astype(np.float32)


def _unit(wave: np.ndarray) -> np.ndarray:
    return wave / np.sqrt(np.mean(wave**2))


@functools.cache
def _noises(split: str) -> np.ndarray:
    rng = np.random.default_rng([1, SPLITS.index(split)])
    return np.stack([coloured_noise(rng, _NOISE_SAMPLES, slope=slope) for slope in (0, -0.5, -1, -1.5, -2)])


LABELS = (*(word for words in WORDS.values() for word in words), *SOUNDS)
_VOCABULARY = [(language, word) for language in WORDS for word in WORDS[language]]
