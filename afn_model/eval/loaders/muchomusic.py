"""MuChoMusic: its perceptual form, RUL-MuchoMusic (yongyizang/AreYouReallyListening@d3971de), and the original
(mulab-mir/muchomusic@d3c9a42)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from afn_model.checks import shown
from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, choices_of, field, listed, read_json, read_rows, read_table
from afn_model.hashing import text_key

SECONDS = 10  # of a clip of MusicCaps
SUFFIXES = (".mp3", ".wav", ".flac")


def rul(files: Files, passes: str = "leave-one-out", seed: int = 0) -> Iterator[Item]:
    """A dict id -> {question, caption, correct_answer, distractors, PI}; the recording is ``<id>.mp3``.

    A question is asked once for each of its four distractors, which is left out that time, as the authors recommend:
    item ``7.2`` is question 7 without its third distractor, ``extra["of"]`` is "7". The order of the options is a
    function of the seed, the question and the pass: the authors shuffle without a seed.

    Args:
        files: "questions".
        passes: "leave-one-out", or "one-shot" for all five options at once.
        seed: of the order of the options.
    """
    path = files.one("questions")
    rows = read_json(path)
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: an object of questions by id is expected, got {shown(rows)}")
    for key, row in rows.items():
        where = f"{path}, question {key}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: an object is expected, got {shown(row)}")
        right, wrong = field(row, "correct_answer", where), choices_of(field(row, "distractors", where, list))
        audio = _recording(files, key)
        out = range(len(wrong)) if passes == "leave-one-out" else [None]
        for place in out:
            number = "" if place is None else f".{place}"
            left = [one for other, one in enumerate(wrong) if other != place]
            yield Item(
                id=f"{key}{number}",
                question=field(row, "question", where),
                clips=(ItemClip(audio),),
                choices=_shuffled([right.strip(), *left], f"{seed}/{key}{number}"),
                answer=right.strip(),
                extra={"of": key, "PI": row.get("PI")} | ({} if place is None else {"left_out": wrong[place]}),
            )


def muchomusic(files: Files, seed: int = 0) -> Iterator[Item]:
    """Rows {id, prompt, answers, answer_orders, dataset, genre, reasoning, knowledge, audio_path} of the authors'
    prepare_prompts.py, the right answer being where ``answer_orders`` has a 0 and ids being those of tracks; or
    muchomusic.csv as published, whose options are put in an order of the seed."""
    path = files.one("questions")
    if path.suffix == ".csv":
        yield from _published(files, path, seed)
        return
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}, question {number}"
        choices = tuple(str(one).strip() for one in field(row, "answers", where, list))
        orders = field(row, "answer_orders", where, list)
        if sorted(orders) != list(range(len(choices))):
            raise ValueError(f"{where}: field 'answer_orders' is not an order of {len(choices)} answers: {orders}")
        prompt = field(row, "prompt", where)
        yield Item(
            id=str(field(row, "id", where, (str, int))),
            question=prompt.rpartition("Question:")[2].partition("Options:")[0].strip(),
            clips=(ItemClip(files.audio(field(row, "audio_path", where), str(path.parent))),),
            choices=choices,
            answer=choices[orders.index(0)],
            groups=_groups(row, row.get("knowledge"), row.get("reasoning")),
        )


def _published(files: Files, path: Path, seed: int) -> Iterator[Item]:
    names = ("correct_answer", "distractor_1_answer", "distractor_2_answer", "distractor_3_answer")
    for number, row in enumerate(read_table(path), 2):
        where = f"{path}, line {number}"
        options = [field(row, name, where).strip() for name in names]
        track, audio = _track(field(row, "dataset", where), field(row, "dataset_identifier", where), where)
        key = row.get("question_id") or row.get("id") or track
        yield Item(
            id=key,
            question=field(row, "question", where),
            clips=(ItemClip(files.audio(audio, str(path.parent))),),
            choices=_shuffled(options, f"{seed}/{key}"),
            answer=options[0],
            groups=_groups(row, row.get("music_knowledge"), row.get("music_reasoning")),
        )


def _track(dataset: str, identifier: str, where: str) -> tuple[str, str]:
    """A track's id and where the authors' scripts look for it."""
    name = identifier.removesuffix(".json")
    if dataset == "sdd" and name.isdecimal():
        return name, f"data/sdd/audio/{int(name) % 100:02d}/{int(name)}.2min.mp3"
    video, _, start = name.rpartition("_")
    if dataset == "musiccaps" and start.isdecimal():
        return video, f"data/musiccaps/audio/[{video}]-[{start}-{int(start) + SECONDS}].wav"
    raise ValueError(f"{where}: {dataset} {shown(identifier)} is no track of sdd or musiccaps")


def _recording(files: Files, key: str) -> str:
    found = [files.audio(f"{key}{suffix}", "audio", "audios") for suffix in SUFFIXES]
    return next((one for one in found if Path(one).is_file()), found[0])


def _shuffled(options: Sequence[str], key: str) -> tuple[str, ...]:
    return tuple(sorted(options, key=lambda option: text_key(f"{key}/{option}")))


def _groups(row: dict[str, Any], knowledge: Any, reasoning: Any) -> dict[str, str]:
    found = {name: str(row[name]) for name in ("genre", "dataset") if row.get(name)}
    asked = {"knowledge": listed(knowledge), "reasoning": listed(reasoning)}
    return found | {name: "asked" for name, values in asked.items() if values}
