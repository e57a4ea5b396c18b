"""``afn curate`` from its command line: exit codes, and one line for what is wrong."""

import json

import pytest

from afn_model.cli import main
from afn_model.curate.plan import read_plan
from tests.model.curate.toy import WORDS, Toy


@pytest.fixture
def toy(tmp_path):
    toy = Toy(tmp_path, words={name: word for name, word in WORDS.items() if word != "broken"})
    toy.plan()
    return toy


def afn(*words):
    return main(["curate", *map(str, words)])


def test_a_run_and_what_is_asked_of_it(toy, capsys):
    plan, out = toy.folder / "plan.yaml", toy.out
    assert afn(plan, "--out", out, "--workers", 1) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[2].startswith("afn: gate: 8 rows, 6 kept, 2 dropped; 8 run in ")
    assert afn("run", plan, "--out", out, "--workers", 1, "--quiet", "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [one["run"] for one in json.loads(printed.out)] == [8, 0, 0, 0, 0, 0]
    assert afn("status", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["stages"][2]["dropped"] == {"short": 2}
    assert afn("explain", out, "u:g") == 0
    assert "end 1: kept: record GOLF! x1" in capsys.readouterr().out
    assert afn("report", out) == 0
    assert afn("audit", out) == 0
    (toy.folder / "names.txt").write_text("u:g\n\n")
    assert afn("takedown", out, "--list", toy.folder / "names.txt") == 0
    assert "end: the next run writes anew 0000" in capsys.readouterr().out
    assert afn("audit", out) == 1
    assert afn(plan, "--out", out, "--workers", 1, "--quiet") == 0
    assert afn("audit", out) == 0
    capsys.readouterr()
    assert afn(plan, "--out", out, "--dry-run", "--hours", "100", "--json") == 0
    assert [one["hours"] for one in json.loads(capsys.readouterr().out)][:2] == [100, 100]


def test_exit_codes_of_quarantine_and_budgets(toy):
    plan, out = toy.folder / "plan.yaml", toy.out
    toy.told["budgets"] = {"shout": {"calls": 1}}
    toy.plan()
    assert afn(plan, "--out", out, "--workers", 1, "--quiet") == 4
    (toy.folder / "down").touch()
    toy.told["budgets"] = {}
    toy.say(WORDS)
    toy.plan()
    run = ["run", plan, "--out", out, "--workers", 1, "--quiet"]
    assert afn(*run, "--set", "shout.mark='?'") == 3
    assert afn(*run, "--only", "end") == 2  # what it reads was not run with this mark


def test_a_plan_to_copy_is_the_one_that_is_run_by_its_name(tmp_path, capsys):
    assert afn("plan", "talks") == 0
    printed = capsys.readouterr().out
    (tmp_path / "talks.yaml").write_text(printed)
    plans = read_plan(tmp_path / "talks.yaml"), read_plan("talks")
    assert len({tuple(stage.name for stage in plan.stages) for plan in plans}) == 1
    assert plans[0].annotators == plans[1].annotators
    assert printed.startswith("# Every stage in order")
    assert afn("plan", "licences") == 2
    assert capsys.readouterr().err == "afn: error: no plan 'licences'; this package has demo and talks\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "least=3"], "--set least=3: expected STAGE.PARAMETER=VALUE"),
        (["--set", "gate.least=["], "the value is no YAML"),
        (["--set", "gate.least=x"], "least must be a whole number, got 'x'"),
        (["--set", "gate.most=3"], "has no parameter most; it has least"),
        (["--only", "gates"], "no stage 'gates' in the plan"),
        (["--limit", "0"], "'0' is not a positive whole number"),
        (["--hours", "3"], "--hours is for --dry-run"),
        (["--dry-run"], "give --hours"),
        (["--dry-run", "--hours", "nan"], "'nan' is not a number of hours"),
    ],
)
def test_bad_input_is_one_line(toy, capsys, words, told):
    assert afn("run", toy.folder / "plan.yaml", "--out", toy.out, "--workers", 1, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (toy.out / "stages").exists()


def test_folders_without_a_run(tmp_path, capsys):
    for words in (["status", tmp_path], ["explain", tmp_path, "x"], ["audit", tmp_path], ["report", tmp_path]):
        assert afn(*words) == 2
        assert "no run of afn curate is in it" in capsys.readouterr().err
    assert afn("takedown", tmp_path) == 2
    assert "nothing to take down" in capsys.readouterr().err
