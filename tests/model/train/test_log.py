"""The log of a run: rows that survive being killed, what is shown, and what is counted between rows."""

import json
import os
import sys

import pytest
import torch

from afn_model.train import log
from afn_model.train.log import Meter, RunLog, by_axis, clock, line


def write(folder, steps, **options) -> RunLog:
    run = RunLog(folder, stage="pre-1", **{"show": False} | options)
    for step in steps:
        run({"step": step, "progress": (step + 1) / 10, "seconds": 2.0 * (step + 1), "loss": 1 / (step + 1)})
    return run


def steps(folder) -> list[int]:
    return [json.loads(text)["step"] for text in (folder / "pre-1" / "log.jsonl").read_text().splitlines()]


def test_every_row_is_on_disk_at_once(tmp_path):
    run = write(tmp_path, [0])
    assert steps(tmp_path) == [0]
    run({"step": 1, "loss": torch.tensor(0.5), "losses": {"music": torch.tensor(float("nan"))}, "mfu": None})
    row = log.read_rows(run.path)[-1]
    assert row == {"stage": "pre-1", "step": 1, "loss": 0.5, "losses": {"music": None}, "mfu": None, "bad": 0}
    run.close()


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path):
    run = write(tmp_path, range(6))
    whole = run.path.read_text()
    run.path.write_text(whole + '{"stage": "pre-1", "step": 6, "lo')
    assert log.read_rows(run.path)[-1]["step"] == 5
    write(tmp_path, [4, 5], from_step=4)
    assert run.path.read_text() == whole
    write(tmp_path, [])
    assert steps(tmp_path) == []


def test_killed_while_the_log_is_cut(tmp_path, monkeypatch):
    run = write(tmp_path, range(6))
    whole = run.path.read_text()

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, [], from_step=2)
    assert run.path.read_text() == whole


def test_a_damaged_line_is_named(tmp_path):
    run = write(tmp_path, range(2))
    run.path.write_text("nonsense\n" + run.path.read_text())
    with pytest.raises(ValueError, match=r"log\.jsonl, line 1"):
        write(tmp_path, [])


def test_bad_samples_are_named_once(tmp_path):
    run = write(tmp_path, [])
    run.bad([("a.wav", "no such file"), ("b.wav", "2 samples\u2028")])
    run.bad([("a.wav", "no such file")])
    run.bad([])
    run.row(step=0)
    with run.bad_path.open("a") as file:
        file.write('{"step": 3, "name": "of another rank", "reason": ""}\n{"name": "to')
    again = write(tmp_path, [], from_step=1)
    again.bad([("b.wav", "2 samples"), ("c.wav", "torn")])
    again.row(step=1)
    assert [row["bad"] for row in log.read_rows(run.path)] == [2, 4]
    lines = run.bad_path.read_text().splitlines()
    assert [lines.pop(3), *(json.loads(text)["name"] for text in lines)] == [
        '{"name": "to',
        "a.wav",
        "b.wav",
        "of another rank",
        "c.wav",
    ]


def test_what_is_shown(tmp_path, capsys):
    write(tmp_path, range(4), show=True, every=2)
    said = capsys.readouterr()
    assert [text.split()[:3] for text in said.out.splitlines()] == [["pre-1", "step", "0"], ["pre-1", "step", "2"]]
    assert "loss 1.0000" in said.out
    assert "0:18 left" in said.out
    assert said.err == "", "no terminal, no bar"
    write(tmp_path, range(4))
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with write(tmp_path, range(5), show=True):
        pass
    said = capsys.readouterr()
    assert "50%" in said.err
    assert "0:10 left" in said.err
    assert len([text for text in said.out.splitlines() if "loss" in text]) == 5


def test_a_line_has_what_was_measured():
    row = {"stage": "mid-1", "step": 7, "progress": 0.25, "loss": 2.0, "tokens_per_s": 18_250.4, "mfu": 0.5217}
    row |= {"audio_hours_per_s": 0.16, "data_wait": 0.002, "memory_gb": 70.0, "left_s": 7503, "bad": 2}
    text = line(row)
    for part in ("25%", "loss 2.0000", "18,250 tokens/s", "0.16 h audio/s", "MFU 52.2%", "data wait 0.2%", "70.00 GB"):
        assert part in text
    assert text.endswith("2 bad  2:05:03 left")
    assert "MFU" not in line(row | {"mfu": None}), "a CPU has none"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (5, "0:05"), (303, "5:03"), (7503, "2:05:03"), (273_600, "3 d 04 h")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_meter_sums_between_rows():
    meter = Meter()
    meter.peak = 1000.0
    meter.step(tokens=100, supervised=10, audio_seconds=36, wait_s=0.5, step_s=2, flops=900)
    meter.step(tokens=300, supervised=20, audio_seconds=36, wait_s=0.5, step_s=2, flops=1100)
    row = meter.row()
    assert row.pop("memory_gb") > 0.01
    assert row == {
        "tokens": 400,
        "supervised": 30,
        "tokens_per_s": 100.0,
        "audio_hours_per_s": 0.005,
        "mfu": 0.5,
        "data_wait": 0.25,
    }
    assert meter.row()["tokens"] == 0
    assert Meter("cpu").row()["mfu"] is None


def test_losses_by_axis():
    assert by_axis({"talkers": (6.0, 3), "music": (torch.tensor(1.0), 2), "text": (0.0, 0)}) == {
        "music": 0.5,
        "talkers": 2.0,
    }


def test_sampled_answers_are_kept_and_cut_with_the_rows(tmp_path):
    run = write(tmp_path, [0, 1])
    for step in (0, 1):
        run.answers(step, [{"id": "clip 1", "answers": [{"text": "a bell \ud800é", "reward": torch.tensor(0.5)}]}])
    run.answers(2, [])
    found = log.read_rows(run.answers_path)
    assert [row["step"] for row in found] == [0, 1]
    assert found[0]["id"] == "clip 1"
    assert found[0]["answers"] == [{"text": "a bell ?é", "reward": 0.5}]
    write(tmp_path, [], from_step=1)
    assert [row["step"] for row in log.read_rows(run.answers_path)] == [0]


def test_a_line_says_what_was_measured_and_no_more():
    row = {"stage": "post", "step": 3, "loss": -1e-9, "audio_hours_per_s": 0.0, "reward": 0.25, "bad": 0}
    assert line(row).split() == ["post", "step", "3", "loss", "0.0000", "reward", "0.250"]
    assert line(row | {"loss": -0.25}).split()[4] == "-0.2500"
    said = line(row | {"audio_hours_per_s": 0.5, "cut": 1200, "dropped": 0, "bad": 3})
    assert "0.5 h audio/s" in said
    assert said.endswith("1,200 cut  3 bad")
