"""What the demo prints: scores beside those of the best constant answer, and some questions with their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median_low

from afn_model.world.phrases import seconds
from afn_model.world.record import BASICS

Scores = dict[str, dict[str, float]]  # axis → what ``scoring.metrics.by_axis`` says of it


def constant_answers(records: Sequence[dict]) -> list[str]:
    """The best constant answer of each axis: the commonest, and for times the median, which errs least."""
    best = {}
    for axis in {record["axis"] for record in records}:
        truths = [record["truth"] for record in records if record["axis"] == axis]
        if truths[0]["metric"] == "seconds":
            best[axis] = seconds(median_low(truth["seconds"] for truth in truths))
        else:
            best[axis] = Counter(truth["answer"] for truth in truths).most_common(1)[0][0]
    return [best[record["axis"]] for record in records]


def table(results: dict[str, Scores]) -> str:
    """The scores as lines of text, one column per answerer."""
    lines = [f"{'held-out question':<28}" + "".join(f"{name:>18}" for name in results)]
    rows = [
        ("what is said", "word", "score", "{:.1%}"),
        ("which sound", "sound", "score", "{:.1%}"),
        ("when: median error", "onset", "median_error_s", "{:.2f} s"),
        ("when: within 0.3 s", "onset", "score", "{:.1%}"),
    ]
    for label, axis, key, form in rows:
        values = "".join(f"{form.format(scores[axis][key]):>18}" for scores in results.values())
        lines.append(f"{label:<28}{values}")
    return "\n".join(lines)


def examples(records: Sequence[dict], answers: Sequence[str], folder: Path, count: int) -> str:
    """The first questions of all axes in turn: the recording, the question, the answer and the truth."""
    by_task = [[pair for pair in zip(records, answers, strict=True) if pair[0]["axis"] == task] for task in BASICS]
    lines = []
    for record, said in [pair for pairs in zip(*by_task, strict=False) for pair in pairs][:count]:
        question = record["messages"][-2]["content"].removeprefix("<sound>\n")
        lines += [str(folder / record["audios"][0]["path"]), f"  {question}"]
        lines.append(f"  answer {said!r}, truth {record['truth']['answer']!r}")
    return "\n".join(lines)
