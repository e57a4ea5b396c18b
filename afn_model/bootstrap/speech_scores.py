"""What a small speech model reaches on held-out utterances: word errors by language, by talker, and times of words."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path

from afn_model.afwhisper import AFWhisper
from afn_model.bootstrap.speech_times import spoken, time_errors
from afn_model.data.plan import question
from afn_model.data.records import parse_sample
from afn_model.infer.answer import Answer
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.speech_answer import speech_answers
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.speech_task import SPEAKER, SpeechTask
from afn_model.scoring.metrics import edits
from afn_model.scoring.text import words_in

MOST_TOKENS = 16
HEADS_FROM = 24  # training records that tell which heads know times


def answers(model: AFWhisper, processor: AFNextProcessor, records: Sequence[dict], folder: Path) -> list[str]:
    """The likeliest text for each record's question; ValueError where a record cannot be answered."""
    asked = [question(parse_sample(record, folder).turns) for record in records]
    found: dict[int, str] = {}
    params = SamplingParams(max_new_tokens=MOST_TOKENS)
    for place, answered in speech_answers(model, processor, asked, params, batch_size=32):
        if not isinstance(answered, Answer):
            raise answered
        found[place] = answered.text
    return [found[place] for place in range(len(asked))]


def asked_to(record: dict, task: str) -> dict:
    """The record with another task for its recordings; the answer stays."""
    user, reply = record["messages"]
    was = SpeechTask.read(user["content"])
    now = SpeechTask(task, record["truth"]["language"] or was.language)
    return record | {"messages": [user | {"content": user["content"].replace(was.text, now.text)}, reply]}


def rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Edits of words in all pairs (said, true) ÷ words that are true."""
    wrong = total = 0
    for said, true in pairs:
        wrong += edits(words_in(said), words_in(true))
        total += len(words_in(true))
    return wrong / max(total, 1)


def talkers_in(text: str) -> list[str]:
    return [part.strip() for part in text.split(SPEAKER)]


def permuted(said: Sequence[str], true: Sequence[str]) -> tuple[int, int]:
    """(edits, true words) under the assignment of talkers that has the fewest; one who is missing says nothing.

    Source: cpWER, Watanabe et al., 2020, arXiv:2004.09249.
    """
    count = max(len(said), len(true))
    a, b = ([words_in(text) for text in [*texts, *[""] * (count - len(texts))]] for texts in (said, true))
    costs = [[edits(one, other) for other in b] for one in a]
    fewest = min(sum(costs[i][j] for i, j in enumerate(order)) for order in permutations(range(count)))
    return fewest, sum(map(len, b))


def cp_rate(pairs: Iterable[tuple[str, Sequence[str]]]) -> float:
    """cpWER of answers with ``SPEAKER`` between talkers, against what each of them says."""
    counted = [permuted(talkers_in(said)[:4], true) for said, true in pairs]
    return sum(wrong for wrong, _ in counted) / max(sum(words for _, words in counted), 1)


def by_language(records: Sequence[dict], said: Sequence[str]) -> dict[str, float]:
    """Word error rate by language, and of all."""
    groups = defaultdict(list)
    for record, text in zip(records, said, strict=True):
        groups[record["truth"]["language"]].append((text, record["truth"]["answer"]))
    whole = [pair for pairs in groups.values() for pair in pairs]
    return {language: round(rate(pairs), 4) for language, pairs in sorted(groups.items())} | {
        "all": round(rate(whole), 4)
    }


def target_scores(records: Sequence[dict], said: Sequence[str]) -> dict[str, float]:
    """Of target records: errors against the one who was enrolled and against the other, and which of them is nearer.

    ``chance`` is the error rate of the same answers if it were left to chance who is meant: the mean of both.
    """
    texts = [record["truth"]["texts"] for record in records]
    own = rate((text, one) for text, (one, _) in zip(said, texts, strict=True))
    other = rate((text, two) for text, (_, two) in zip(said, texts, strict=True))
    nearer = 0.0
    for text, pair in zip(said, texts, strict=True):
        meant, not_meant = (edits(words_in(text), words_in(one)) for one in pair)
        nearer += (meant < not_meant) + 0.5 * (meant == not_meant)
    return {
        "wer": round(own, 4),
        "wer_of_other": round(other, 4),
        "chance": round((own + other) / 2, 4),
        "nearer": round(nearer / max(len(records), 1), 4),
    }


def read(file: Path, most: int | None = None) -> list[dict]:
    """The first records of a corpus."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()[:most]]


def evaluate(folder: Path, world: Path, axes: Sequence[str], most: int) -> dict:
    """Scores of a model folder on the first ``most`` held-out records of every axis.

    Times of words are those of phrases that are written down without an error; which heads tell them is found on
    training records.
    """
    model, processor = AFWhisper.from_pretrained(folder), AFNextProcessor.from_pretrained(folder)
    heldout, train = world / "heldout", world / "train"
    records = {axis: read(heldout / f"{axis}.jsonl", most) for axis in axes}
    found: dict = {"n": {axis: len(some) for axis, some in records.items()}, "wer": {}}
    examples = []
    for axis, some in records.items():
        said = answers(model, processor, some, heldout)
        if axis == "target":
            found["target"] = target_scores(some, said)
        elif axis == "overlaps":
            texts = [record["truth"]["texts"] for record in some]
            plain = answers(model, processor, [asked_to(record, "transcribe") for record in some], heldout)
            found["cpwer"] = {
                "speakers": round(cp_rate(zip(said, texts, strict=True)), 4),
                "transcribe": round(cp_rate(zip(plain, texts, strict=True)), 4),
                "words_alone": round(
                    rate((a.replace(SPEAKER, " "), " ".join(b)) for a, b in zip(said, texts, strict=True)), 4
                ),
            }
        else:
            found["wer"][axis] = by_language(some, said)
        if axis == "phrases":
            right = [
                one for one, text in zip(some, said, strict=True) if text.split() == one["truth"]["answer"].split()
            ]
            learnt = spoken(model, processor, read(train / "phrases.jsonl", HEADS_FROM), train)
            found["word_times"] = time_errors(model, processor, learnt, spoken(model, processor, right, heldout))
        examples += [
            {"axis": axis, "said": text.strip(), "true": record["truth"]["answer"]}
            for record, text in list(zip(some, said, strict=True))[:4]
        ]
    return found | {"examples": examples}
