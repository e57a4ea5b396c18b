"""docs/evaluation.md: its tables are those of the code, its commands exist, and its own benchmark runs as shown."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from afn_model.cli.commands import COMMANDS
from afn_model.cli.options import Parser
from afn_model.eval import rules
from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders.files import Files
from afn_model.eval.prompts import PROMPTS
from afn_model.eval.reports.submission import FORMS
from afn_model.eval.running.ablations import ABLATIONS
from afn_model.eval.score import Tools
from afn_model.eval.table import VARIANTS, BenchmarkRow
from bench import benchmark_tables

TEXT = benchmark_tables.DOCUMENT.read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def test_tables_are_those_of_the_rows():
    assert benchmark_tables.written(TEXT) == TEXT, "python -m bench.benchmark_tables writes them"
    assert len(TEXT.splitlines()) <= 250


def test_a_table_says_what_keeps_a_number_from_being_comparable():
    row = BenchmarkRow("a-b", "A", "l", "p", ({"name": "official", "rule": "wer"},), "WER %", row=1, lower=True)
    row = {**vars(row), "where": "<id>.wav | more", "licence": "free"}
    rows = [
        BenchmarkRow(
            **row | {"targets": {"instruct": {"x: one": 1, "x: two": 2}}, "unknown": ("the rule", "the split")}
        ),
        BenchmarkRow(**row | {"name": "a-c", "title": "C", "targets": {"think": 2.5}, "judge": "GPT", "hidden": True}),
        BenchmarkRow(**row | {"name": "d", "where": "there"}),
    ]
    numbers = benchmark_tables.numbers(rows).splitlines()
    assert numbers[2] == "| 1 | A (a-b) | `a-b` | ? | WER % ↓ | 1 one, 2 two / – / – |  |  | no: the rule; the split |"
    assert numbers[3].endswith("| – / 2.5 / – |  |  | yes, with the judge GPT, when the answers are handed in |")
    assert numbers[4].endswith("| the paper has no number |")
    assert benchmark_tables.sources(rows).splitlines()[2:] == [
        "| `a-b`, `a-c` | &lt;id&gt;.wav / more | free |",
        "| `d` | there | free |",
    ]


LINES = [line.partition(" #")[0] for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_commands_that_are_shown_exist(line):
    _, *words = shlex.split(line)
    command = COMMANDS[" ".join(words[:2])]
    parser = Parser(prog="afn")
    for add in command.options:
        add(parser)
    parser.parse_intermixed_args(words[2:])


def test_every_name_that_can_be_chosen_is_there():
    for name in (*PROMPTS, *ABLATIONS, *VARIANTS):
        assert f"`{name}`" in TEXT, name
    for form in FORMS.values():
        assert all(f"`{key}`" in TEXT for key in form.keys)


def test_a_benchmark_of_ones_own_runs_as_shown(tmp_path: Path):
    ((name, given),) = yaml.safe_load(blocks("yaml")[0]).items()
    row, made = BenchmarkRow(name=name, **given), {}
    exec(blocks("python")[0], made)
    lines = [
        {"id": str(n), "file": f"{n}.wav", "birds": ["crow", "wren"], "answer": "wren", "season": "spring"}
        for n in (1, 2)
    ]
    (tmp_path / row.files["questions"]).write_text("\n".join(map(json.dumps, lines)))
    items = list(made[row.loader](Files(tmp_path, row.files)))
    answered = [AnsweredItem(item, said) for item, said in zip(items, ("wren", "crow"), strict=True)]
    for scorer in row.scorers:
        found = rules.score(answered, scorer, Tools())
        assert found.value == 50
        assert found.groups == {"season: spring": (50, 2)}
