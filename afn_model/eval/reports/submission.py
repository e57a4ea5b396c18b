"""Answers in the form that the authors' own scorers read: to hand in where answers are hidden, and to hold our rules
against theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders import folder_of
from afn_model.eval.loaders.files import Files, read_rows
from afn_model.eval.table import BenchmarkRow
from afn_model.files import atomic_path, write_json, write_text
from afn_model.scoring.text import final_answer, thought_and_answer

FOLDER = "submissions"


@dataclass(frozen=True)
class SubmissionForm:
    """How an official scorer reads answers.

    Args:
        suffix: of the file: .json for a list, .jsonl for lines, .parquet.
        keys: under which the answer stands in a row of the benchmark's own file.
        thinking: under which the reasoning stands, if there is some; "" for nowhere.
        audio: column of recordings where the questions are in Parquet files; it is left out.
    """

    suffix: str
    keys: tuple[str, ...]
    thinking: str = ""
    audio: str = ""


FORMS = {
    # evaluation.py of Sakshi113/MMAU@110127f reads the first, its README names the second
    "mmau": SubmissionForm(".json", ("model_output", "model_prediction"), audio="context"),
    "mmar": SubmissionForm(".jsonl", ("answer_prediction",), thinking="thinking_prediction"),  # ddlBoJack/MMAR@3bce090
    "mmsu": SubmissionForm(".jsonl", ("response",), audio="audio"),  # dingdongwang/MMSU_Bench@f0ef334
    "mmau-pro": SubmissionForm(".parquet", ("model_output",)),  # sonalkum/MMAUPro@960e93a
}


def write_submission(
    row: BenchmarkRow, answered: Sequence[AnsweredItem], data: str | Path, out: str | Path
) -> tuple[Path, int] | None:
    """Writes a benchmark's questions with the answers in them to ``out/submissions``.

    What the model reasons before its answer is no part of the answer. An item without an output gets an empty answer,
    which counts as wrong with MMAU and MMAR; MMSU's scorer takes the letter of the item before.

    Args:
        row: of the table.
        answered: all its items in the file's order, with their answers.
        data: the data folder.
        out: the run's folder.

    Returns:
        The file, and how many answers are empty; None for a benchmark whose authors' scorer reads no such file.

    Raises:
        ValueError: the items are not those of the files: a run with a limit, or one whose items were changed.
    """
    form = FORMS.get(row.loader)
    if form is None:
        return None
    sources = Files(folder_of(row, data), row.files).all("questions")
    rows = [one for path in sources for one in _rows(path, form)]
    if len(rows) != len(answered):
        where, what = sources[0].parent, f"{len(rows)} questions, the run has {len(answered)}"
        raise ValueError(f"{where}: the files have {what}; a file to hand in needs all of them, as they are")
    told = [_with(given, one, form) for given, one in zip(rows, answered, strict=True)]
    target = Path(out) / FOLDER / f"{row.name}{form.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if form.suffix == ".json":
        write_json(target, told)
    elif form.suffix == ".jsonl":
        write_text(target, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in told))
    else:
        _write_parquet(target, sources, {key: [one[key] for one in told] for key in form.keys})
    return target, sum(not one[form.keys[0]] for one in told)


def _rows(path: Path, form: SubmissionForm) -> list[dict[str, Any]]:
    rows = read_rows(path, [form.audio] if form.audio else [])
    return [
        {name: value for name, value in row.items() if path.suffix != ".parquet" or name != form.audio} for row in rows
    ]


def _with(given: dict[str, Any], one: AnsweredItem, form: SubmissionForm) -> dict[str, Any]:
    """A row of the benchmark's file with its answer."""
    item, text = one.item, one.text or ""
    if "other_attributes" in given:  # MMAU on its hub, whose scorer wants the fields of the list
        hidden = {} if item.answer is None else {"answer": item.answer}
        given = {"id": item.id.partition("#")[0], "question": item.question, "choices": list(item.choices)}
        given |= {**hidden, **item.groups}
    if item.id.partition("#")[0] != str(given.get("id", item.id)).partition("#")[0]:
        raise ValueError(
            f"{given['id']}: this question of the file is {item.id} in the run: the file has changed since"
        )
    told = {**given, **dict.fromkeys(form.keys, final_answer(text))}
    if form.thinking and (reasoned := thought_and_answer(text)):
        told[form.thinking] = reasoned[0]
    return told


def _write_parquet(target: Path, sources: Sequence[Path], columns: dict[str, list[str]]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.concat_tables([parquet.read_table(path) for path in sources])
    for name, values in columns.items():
        table = table.append_column(name, pyarrow.array(values))
    with atomic_path(target) as temporary:
        parquet.write_table(table, temporary)
