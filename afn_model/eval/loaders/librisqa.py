"""LibriSQA: questions about utterances of LibriSpeech's test-clean (ZihanZhaoSJTU/LibriSQA@fd3d20d)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, answer_at, field, lettered, read_rows

# LibriSpeech as its archive unpacks, here or as a benchmark of its own.
ROOTS = ("LibriSpeech", "audio", "../librispeech", "../librispeech/LibriSpeech")


def librisqa(files: Files, part: int = 1) -> Iterator[Item]:
    """Rows of Part I, {speech_path, question, answer, text, duration}, whose answers are open, or of Part II,
    {speech_path, question_and_option, answer, answer_and_analysis}, whose answers are letters. Ids are those of the
    utterances: the files have none."""
    path = files.one("questions")
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}, question {number}"
        speech = field(row, "speech_path", where)
        if part == 1:
            question, choices = field(row, "question", where), ()
            answer: str | None = field(row, "answer", where).strip()
            extra = {"transcription": row.get("text")}
        else:
            question, choices = lettered(field(row, "question_and_option", where))
            answer = answer_at(field(row, "answer", where), choices)
            extra = {"analysis": row.get("answer_and_analysis")}
        yield Item(
            id=_utterance(speech),
            question=question,
            clips=(ItemClip(_recording(files, speech)),),
            choices=choices,
            answer=answer,
            extra={name: value for name, value in extra.items() if value},
        )


def _utterance(speech: str) -> str:
    return PurePosixPath(speech.replace("\\", "/")).stem


def _recording(files: Files, speech: str) -> str:
    """The utterance's file: where the row says, or where LibriSpeech has its id."""
    name, places = _utterance(speech), [speech]
    if name.count("-") == 2:
        places.append("/".join(["test-clean", *name.split("-")[:2], f"{name}.flac"]))
    found = [files.audio(place, *ROOTS) for place in places]
    return next((one for one in found if Path(one).is_file()), found[0])
