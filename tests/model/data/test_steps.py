"""What a step is said to hold is what it trains on."""

import json
from dataclasses import replace

import pytest

from afn_model import AFNextProcessor
from afn_model.cli import main
from afn_model.data.loader import Loader
from afn_model.data.steps import rows_of, shorter
from afn_model.train.curriculum import read_curriculum
from afn_model.train.validate import data_config
from bench.resume import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    prepare(folder)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_the_plan_is_what_is_decoded(folder, rank):
    plan = read_curriculum(folder / "tones.yaml")
    config = replace(data_config(plan, plan.stages[0]), max_seconds=1.5, on_long="drop")
    loader = Loader(config, AFNextProcessor.from_pretrained(folder / "base"), dp_rank=rank, dp_size=2)
    for step, jobs, batch in zip(range(4), loader.planned(), loader, strict=False):
        rows = rows_of(loader, jobs)
        micro = batch.micro
        assert [row["id"] for row in rows if "id" in row] == [s.id for one in micro for s in one.samples], step
        found = [(f"{r['dataset']}[{r['record']}]", r["left_out"]) for r in rows if "left_out" in r]
        assert found == [one for m in micro for one in m.dropped]
        for number, one in enumerate(micro):
            own = [row["tokens"] for row in rows if row["sequence"] == number and "id" in row]
            assert one.batch.input_ids.numel() <= sum(own) <= 192 if own else not one.samples


def test_the_command(folder, capsys):
    words = ["data", "step", str(folder / "tones.yaml"), "all", "--model", str(folder / "base")]
    assert main([*words, "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["sequence"] for row in rows} == {0, 1, 2, 3}
    assert main([*words, "3", "--rank", "1/2", "--json"]) == 0
    mine = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in mine] == [row["id"] for row in rows if row["sequence"] % 2]
    assert main([*words, "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{len(rows)} samples in 4 sequences, at most {sum(row['tokens'] for row in rows)} tokens, ")
    first = rows[0]
    assert f"\n  tones[{first['record']}]  {first['id']}  {first['tokens']} tokens, {first['seconds']:.1f} s" in said
    assert "'Which tone?' → 'a " in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["24"], "stage all: step 24 of 24, counted from 0"),
        (["x"], "'x' is not a whole number from 0"),
        (["0", "--rank", "2/2"], "'2/2' is not R/N, such as 3/8"),
        (["0", "--rank", "0/3"], "a step has 4 sequences"),
    ],
)
def test_what_is_wrong_is_said(folder, capsys, more, message):
    words = ["data", "step", str(folder / "tones.yaml"), "all", *more, "--model", str(folder / "base")]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_texts_are_short():
    assert shorter("a\n b") == "a b"
    assert len(shorter("a" * 100)) == 60
