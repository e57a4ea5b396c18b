"""``afn bench`` from its command line: a tiny model through every loader, killed and gone on with, scored again."""

import json
import shutil

import pytest

pytest.importorskip("espeakng_loader", reason="copies speak with espeakng-loader")

from afn_model.cli import main
from afn_model.eval.table import chosen
from tests.model.infer.text_endpoint import reply, text_endpoint
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run of all copies, its exit code and its folder."""
    out = tmp_path_factory.mktemp("demo")
    code = main(["bench", "run", "--suite", "demo", "--out", str(out), *small(model)])
    return code, out


def small(model):
    return ["--model", str(model), "--max-new-tokens", "4", "--quiet"]


def answers(out):
    rows = [json.loads(line) for path in (out / "answers").glob("*.jsonl") for line in path.read_text().splitlines()]
    return {row["id"]: row["answer"] for row in rows}


def test_every_benchmark_is_asked_and_scored(whole):
    code, out = whole
    assert code == 0
    found = json.loads((out / "scores.json").read_text())
    assert set(found["benchmarks"]) == {row.name for row in chosen(["demo"])}
    assert found["complete"]
    assert len(answers(out)) > 250
    report = (out / "report.md").read_text()
    assert "of synthetic rows" in report
    assert "reproduced" not in report


def test_a_part_that_is_lost_is_asked_again_by_other_shares(whole, model, tmp_path, capsys):
    wanted, out = answers(whole[1]), tmp_path / "again"
    shutil.copytree(whole[1], out)
    (path,) = (out / "answers").glob("*.jsonl")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])  # a torn line, and half of the answers
    command = ["bench", "run", "--suite", "demo", "--out", str(out), *small(model)]
    assert main([*command, "--share", "2/3"]) == 3
    assert 0 < len(answers_whole(out)) < len(wanted)
    assert main([*command, "--share", "1/3"]) == 3
    assert main([*command, "--share", "3/3"]) == 0
    assert answers_whole(out) == wanted
    capsys.readouterr()
    assert main(["bench", "score", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]


def answers_whole(out):
    found = {}
    for path in (out / "answers").glob("*.jsonl"):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                row = json.loads(line)
                found[row["id"]] = row["answer"]
    return found


def test_what_is_missing_is_named_and_the_exit_code_is_3(whole, model, tmp_path, capsys):
    data = tmp_path / "data"
    for name in ("mmar", "librispeech-clean"):
        shutil.copytree(whole[1] / "data" / name, data / name)
    next((data / "mmar").rglob("*.wav")).unlink()
    command = ["--suite", "mmar,librispeech-clean,tedlium", "--data", str(data)]
    assert main(["bench", "doctor", *command]) == 3
    told = capsys.readouterr().out
    assert "no " in told
    assert "tedlium" in told
    assert main(["bench", "run", *command, "--out", str(tmp_path / "out"), *small(model)]) == 3
    captured = capsys.readouterr()
    assert "afn: tedlium: " in captured.err
    assert "Not asked: tedlium. " in captured.out
    assert "mmar: 1 of 5 items have an error, such as " in captured.out
    report = (tmp_path / "out/report.md").read_text()
    assert "no such file" in report
    assert " to " in report
    assert main(["bench", "score", str(tmp_path / "out"), "--data", str(tmp_path / "gone")]) == 2
    assert "gone: no such folder; --data says where" in capsys.readouterr().err
    assert (tmp_path / "out/report.md").read_text() == report
    assert main(["bench", "run", *command, "--out", str(tmp_path / "out"), *small(model), "--limit", "1"]) == 2
    assert "is the folder of another run (limit: none there, 1 here)" in capsys.readouterr().err


def test_a_text_model_answers_from_captions(whole, model, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AFN_MODEL", raising=False)
    data = tmp_path / "data"
    shutil.copytree(whole[1] / "data" / "mmar", data / "mmar")
    command = ["bench", "run", "--suite", "mmar", "--data", str(data), "--out", str(tmp_path / "out"), *small(model)]
    assert main([*command, "--variant", "captioner"]) == 2
    assert "--then-url" in capsys.readouterr().err
    with text_endpoint(lambda body: reply("(A)")) as there:
        assert main([*command, "--variant", "captioner", "--then-url", there.url]) == 0
        asked = [body for _, _, body in there.asked if body]
    assert len(asked) == 5
    assert all("[Recording 1, " in json.dumps(body["messages"]) for body in asked)
    assert main(["bench", "score", str(tmp_path / "out")]) == 0
    assert main(["bench", "run", "--suite", "mmar", "--data", str(data), "--out", str(tmp_path / "two")]) == 2
    assert "--model or --url" in capsys.readouterr().err


def test_lists(capsys):
    assert main(["bench", "list", "--suite", "row-18"]) == 0
    assert capsys.readouterr().out.count("librispeech-") == 2
    assert main(["bench", "list", "--suite", "beyond", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"diarisation", "multi-talker"}
    assert main(["bench", "list", "--suite", "nothing"]) == 2
    assert main(["bench", "run", "--share", "9/8", "--suite", "demo"]) == 2
    assert "such as 1/8" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_a_folder_is_made(model, tmp_path, capsys):
    out, command = tmp_path / "out", ["bench", "run", "--suite", "mmar", "--out", str(tmp_path / "out"), *small(model)]
    here = ["--data", str(tmp_path)]
    for options, said in (
        (["--data", str(tmp_path / "none")], "none: no such folder; --data holds a folder for each benchmark"),
        ([*here, "--prompt", "nothing"], "nothing: no such prompt; there are official, "),
        ([*here, "--then-url", "http://127.0.0.1:9/v1"], "--then-url is of --variant captioner"),
        ([*here, "--judge-model", "x"], "--judge-model needs --judge-url"),
    ):
        assert main([*command, *options]) == 2
        assert said in capsys.readouterr().err
    assert not out.exists()


def test_who_interrupts_is_told_how_to_go_on(model, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("afn_model.eval.running.run.prepare", interrupted)
    command = ["bench", "run", "--suite", "mmar", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*command, *small(model)]) == 130
    assert capsys.readouterr().err == "afn: stopped; the same command goes on\n"
