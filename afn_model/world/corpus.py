"""The demo corpus: in memory for training, or as a folder of recordings and records to read and play."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from statistics import median_low

import soundfile
import torch

from afn_model.hashing import key
from afn_model.world.mixer import DEMO, KINDS, QUESTIONS, Example, Recipe, example
from afn_model.world.sounds import SAMPLE_RATE, SOUNDS
from afn_model.world.words import WORDS, load_bank


class Corpus(torch.utils.data.Dataset):
    """The first `size` examples of a split, each made when asked for.

    Args:
        seed: of the corpus; the same seed gives the same examples.
        split: "train" or "heldout".
        size: number of examples.
        recipe: what clips are made of.
        cache: folder that keeps the synthesised words between runs; None keeps them in memory only.
        on_step: called as on_step(done, total) while words are synthesised.
    """

    def __init__(
        self,
        seed: int,
        split: str,
        size: int,
        *,
        recipe: Recipe = DEMO,
        cache: str | Path | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ):
        self.seed, self.split, self.size, self.recipe = seed, split, size, recipe
        self.bank = load_bank(split, cache, on_step=on_step)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside the {self.size} examples of the corpus")
        return example(self.seed, self.split, index, recipe=self.recipe, bank=self.bank)


def dialogue(clip: Example, rng: random.Random) -> list[tuple[str, str]]:
    """The clip's own question and answer, then what else can be asked about its events, in any order."""
    more = []
    for event in clip.events:
        kind, name = ("speech", "word") if event.kind == "word" else ("sound", event.label)
        if event is not clip.events[0] or clip.kind == "onset":
            more.append((rng.choice(QUESTIONS[kind]), event.label))
        if event is not clip.events[0] or clip.kind != "onset":
            more.append((rng.choice(QUESTIONS["onset"]).format(name), f"{event.start:.1f} s"))
    rng.shuffle(more)
    return [(clip.question, clip.answer), *more]


def record(clip: Example, sound: str, turns: list[tuple[str, str]] | None = None) -> dict:
    """The public record of a clip whose recording lies at `sound`, with its truth in fields of our own."""
    conversations = []
    for number, (question, answer) in enumerate(turns or [(clip.question, clip.answer)]):
        asked = question if number else f"<sound>\n{question}"
        conversations += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {
        "id": clip.id,
        "sound": sound,
        "duration": clip.seconds,
        "conversations": conversations,
        "axis": clip.kind,
        "kind": clip.kind,
        "split": clip.split,
        "events": [asdict(event) for event in clip.events],
    }


def write_corpus(
    folder: str | Path,
    n_train: int,
    n_eval: int,
    seed: int,
    *,
    recipe: Recipe = DEMO,
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Write `train.jsonl`, `heldout.jsonl` and their recordings (16-bit flac; paths relative to the folder).

    A record for training asks everything that can be asked about its clip, one for evaluation its own question only.

    Args:
        folder: made if absent; records of an earlier corpus in it are replaced.
        n_train, n_eval: clips of the two splits.
        seed: of the corpus.
        recipe: what clips are made of.
        on_step: called as on_step(done, total) after each clip.
    """
    folder, done = Path(folder), 0
    for split, size in (("train", n_train), ("heldout", n_eval)):
        corpus = Corpus(seed, split, size, recipe=recipe, cache=folder)
        (folder / split).mkdir(parents=True, exist_ok=True)
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for index in range(size):
                clip = corpus[index]
                sound = f"{split}/{clip.id}.flac"
                soundfile.write(folder / sound, clip.pcm.numpy(), SAMPLE_RATE, subtype="PCM_16")
                turns = dialogue(clip, random.Random(key(seed, index))) if split == "train" else None
                file.write(json.dumps(record(clip, sound, turns), ensure_ascii=False) + "\n")
                done += 1
                if on_step:
                    on_step(done, n_train + n_eval)


def read_records(path: str | Path) -> list[dict]:
    """The records of a jsonl file, each `sound` made relative to the working directory instead of to the file.

    Raises:
        ValueError: a line that is not a record, named with its number.
    """
    path, found = Path(path), []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                item = json.loads(line)
                item["sound"] = str(path.parent / item["sound"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not a record with a sound ({error!r})") from error
            found.append(item)
    return found


def texts() -> list[str]:
    """Every question and every answer (onsets up to 9.9 s) that clips can have: what a tokenizer has to cover."""
    names = ["word", *SOUNDS]
    asked = [question.format(name) for questions in QUESTIONS.values() for question in questions for name in names]
    words = [word for words in WORDS.values() for word in words]
    return list(dict.fromkeys(asked)) + words + list(SOUNDS) + [f"{tenths / 10:.1f} s" for tenths in range(100)]


def majority_answer(clips: Iterable[Example]) -> dict[str, str]:
    """The best constant answer per kind: the commonest word or sound, and for onsets the median, which errs least."""
    clips, best = list(clips), {}
    for kind in KINDS:
        answers = [clip.answer for clip in clips if clip.kind == kind]
        if kind == "onset" and answers:
            best[kind] = f"{median_low(clip.onset for clip in clips if clip.kind == kind):.1f} s"
        elif answers:
            best[kind] = Counter(answers).most_common(1)[0][0]
    return best
