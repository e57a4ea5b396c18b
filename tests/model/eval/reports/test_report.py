"""What a run's folder says of it, and the files of its report."""

import errno
import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders import COPY
from afn_model.eval.reports import picture
from afn_model.eval.reports.markdown import markdown
from afn_model.eval.reports.report import code_version, run_facts, write_report
from afn_model.eval.reports.scored import scored
from afn_model.eval.running.asks import AskSettings
from afn_model.eval.running.run import SPENT, write_run
from afn_model.eval.score import Tools
from tests.model.eval.reports.test_scored import FACTS, ROW, answers

MODEL = {"name": "tiny", "weights": "abc123"}


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture
def out(tmp_path):
    """A run of two benchmarks, the files of one being a copy of ours."""
    for name in ("some", "other"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "some" / COPY).write_text("synthetic")
    rows = [ROW, replace(ROW, name="other")]
    asking = AskSettings(MODEL, prompt="official", generation={"temperature": 0.5})
    write_run(tmp_path / "out", rows, tmp_path / "data", asking, limit=4)
    spent = {"seconds": 1800, "audio_seconds": 7200, "answers": 5, "errors": 1}
    (tmp_path / "out" / SPENT).write_text(f"{json.dumps(spent)}\n{json.dumps(spent)}\n{{torn")
    return tmp_path / "out"


def test_a_folder_says_how_its_items_were_asked(out):
    other = replace(ROW, name="other", official_prompt="choose-letter")
    facts = run_facts(out, [ROW, other], unreadable={"a.wav": "no such file"})
    assert facts.prompts == {"some": "choose", "other": "choose-letter"}
    assert (facts.hours, facts.audio_hours, facts.answers, facts.limit) == (1, 4, 8, 4)
    assert facts.copies == {"some"}
    assert facts.asking["model"] == MODEL
    assert facts.code == code_version()
    text = markdown(scored([ROW], {"some": answers("dog")}, Tools()), facts)
    for said in (
        "tiny",
        "abc123",
        '"temperature": 0.5',
        "- asked: 8 answers in 1.0 h of all processes together, 4.0 h of audio",
        "## Recordings that cannot be read",
        "a.wav: no such",
    ):
        assert said in text
    assert "> **The numbers of all benchmarks here are of synthetic rows" in text


def test_a_report_has_the_numbers_side_by_side(out):
    some = answers("dog", "dog", "cat", "dog")
    some[1] = replace(some[1], finish="length")
    row = replace(ROW, notes=("A quirk.",), files={"questions": "test.json"})
    scores = scored([row], {"some": some}, Tools(), {"songs": "the folder\n| is empty"})
    (out.parent / "data" / "some" / "test.json").write_text(json.dumps([{"id": f"i{n}"} for n in range(4)]))
    facts = replace(FACTS, asking={**FACTS.asking, "model": MODEL}, data=str(out.parent / "data"))
    text = write_report(out, scores, facts).read_text()
    assert "- answers in the form that the authors' scorer reads: submissions/some.json" in text
    assert [one["model_output"] for one in json.loads((out / "submissions/some.json").read_text())][2] == "cat"
    assert (
        "| Some | 4 / 4 | accuracy % | 75.00 | 25.00 to 100.00 | 75.00 | 70.00 | +5.00 | 50.00 | 80.00 X | yes |"
        in text
    )
    assert "The paper's number is reproduced: 70 lies in the interval." in text
    assert "| task: sound | 2 | 50.00 | 50.00 | 60.00 |" in text
    for said in ("- answers cut by their length: 1", "- A quirk.", "- songs: the folder \\| is empty"):
        assert said in text
    assert "synthetic" not in text
    assert "Not every item" not in text
    assert ("![" in text) == (out / "report.png").exists() == (find_spec("matplotlib") is not None)
    told = json.loads((out / "scores.json").read_text(), parse_constant=no_constant)
    assert told["version"] == 1
    assert told["complete"] is False, "songs were not asked"
    found = told["benchmarks"]["some"]
    assert found["scorers"][0]["value"] == 75
    assert found["scorers"][0]["groups"]["task: sound"] == {"value": 50, "n": 2}
    assert found["targets"] == {
        "instruct": {"all": 70, "task: sound": 60},
        "think": {},
        "captioner": {},
        "af3": {"all": 50},
        "other": {"all": 80},
    }
    assert found["comparable"] is True
    lines = [json.loads(line) for line in (out / "scored.jsonl").read_text().splitlines()]
    assert [line["scorers"]["official"]["part"][0] for line in lines] == [1, 1, 0, 1]
    assert [line["output"] for line in lines] == ["dog", "dog", "cat", "dog"]
    assert "dog" in lines[0]["scorers"]["strict"]["read"]


def test_items_without_a_scored_answer_are_in_the_record(out):
    row = replace(ROW, files={"questions": "none.json"})
    scores = scored([row], {"some": [AnsweredItem(answers("dog")[0].item, None)]}, Tools())
    write_report(out, scores, FACTS)
    (line,) = (json.loads(line) for line in (out / "scored.jsonl").read_text().splitlines())
    assert line["output"] is None
    assert line["scorers"]["official"]["part"] is None


def test_names_of_any_text_are_cells_of_a_table(out, monkeypatch):
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    strange = "a|b\n# \ud800"
    row = replace(ROW, loader="gtzan")
    asked = [replace(one, item=replace(one.item, groups={"task": strange})) for one in answers("dog")]
    facts = replace(run_facts(out, [row]), unreadable={strange: "no such file"})
    write_report(out, scored([row], {"some": asked}, Tools()), facts)
    text = (out / "report.md").read_text()
    assert "| task: a\\|b # \\ud800 | " in text
    assert "- a\\|b # \\ud800: no such file" in text
    assert json.loads((out / "scores.json").read_text())["unreadable"] == {"a|b\n# \\ud800": "no such file"}


def test_lines_of_spent_time_that_are_none(out):
    with (out / SPENT).open("ab") as file:
        file.write(b"\n5\n\xff\n[]\n")
    assert run_facts(out, [ROW]).answers == 8


def test_a_full_disk_costs_the_report_alone(out, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture, "draw", full)
    with pytest.raises(ValueError, match=f"^{out}: no report was written .No space left on device.; the answers are"):
        write_report(out, scored([ROW], {}, Tools()), run_facts(out, []))
