"""``afn batch`` from its command line."""

import json

import pytest

from afn_model.cli import main
from afn_model.cli.batch import BatchBar, left_of, told_of
from afn_model.infer.batch import BatchProgress
from tests.tiny import record, save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def test_a_batch(model, tmp_path, capsys):
    record(tmp_path / "talk.flac", 1.0)
    said = [{"from": "human", "value": "<sound>\nWhat is said?"}]
    rows = [
        {"id": 1, "sound": "talk.flac", "conversations": said},
        {"id": 2, "sound": "talk.flac", "conversations": said, "max_tokens": 3},
        {"id": 3, "sound": "gone.flac", "conversations": said},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["batch", str(source), str(target), "--model", str(model), "--max-new-tokens", "5"]
    assert main([*command, "--limit", "2"]) == 0
    assert capsys.readouterr().err == f"afn: {target}: 2 lines, 0 of them errors\n"
    assert main([*command, "--in-order", "--deterministic"]) == 1
    assert capsys.readouterr().err == f"afn: {target}: 1 lines, 1 of them errors, 2 were answered before\n"
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    found = {row["id"]: row for row in map(json.loads, target.read_text().splitlines())}
    assert [found[name]["tokens"] for name in (1, 2)] == [5, 3]
    assert found[3]["error"] == {
        "code": "invalid_request",
        "message": f"{tmp_path}/gone.flac: no such file",
        "line": 3,
    }
    target.unlink()
    assert main([*command, "--max-errors", "0"]) == 2
    assert "1 lines with errors; the last one, line 3" in capsys.readouterr().err
    assert main(["batch", str(source), str(target), "--model", "nowhere"]) == 2
    assert capsys.readouterr().err == "afn: error: nowhere: no such folder\n"


def test_what_progress_says():
    text = BatchProgress(lines=3, of_lines=9)
    assert told_of(text) == "3 of 9 lines"
    heard = BatchProgress(lines=3, of_lines=9, seconds=1800, of_seconds=7200, errors=2)
    assert told_of(heard) == "3 of 9 lines, 0.5 of 2.0 hours of audio, 2 errors"
    assert left_of(heard, 60) == ", about 0:03:00 left"
    assert left_of(BatchProgress(of_lines=9), 60) == ""


def test_a_log_has_a_line_now_and_then(capsys):
    with BatchBar(every=0.0) as bar:
        bar.show(BatchProgress(lines=3, of_lines=9))
    assert "afn: 3 of 9 lines, about 0:00:00 left\n" in capsys.readouterr().err
    with BatchBar(every=3600.0) as bar:
        bar.show(BatchProgress(lines=3, of_lines=9))
    assert capsys.readouterr().err == ""
