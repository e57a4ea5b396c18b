"""The fuzzer finds what is wrong, each kind reads its own whole files, and a small sample of cases has no findings."""

import ctypes
import json
import os
import random
import sys
import time
import warnings
from pathlib import Path

import pytest

from bench import fuzz, fuzz_kinds, fuzz_mutations

SAMPLE = 30


@pytest.fixture
def in_folder(tmp_path):
    (tmp_path / "case").mkdir()
    return tmp_path / "case"


@pytest.mark.parametrize("kind", fuzz_kinds.KINDS)
def test_whole_files_are_accepted(kind, in_folder):
    attempt = fuzz_kinds.KINDS[kind](in_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempt.read(in_folder)
    assert all((in_folder / name).is_file() for name in attempt.files)


@pytest.mark.parametrize("kind", ["configs", "adapters", "templates", "processors", "weights"])
def test_mutated_files_are_accepted_or_refused_in_a_line(kind):
    outcomes = list(fuzz.run(kind, 1, list(range(SAMPLE))))
    assert [outcome.case for outcome in outcomes] == list(range(SAMPLE))
    assert [outcome for outcome in outcomes if outcome.word == "finding"] == []
    assert {outcome.word for outcome in outcomes} == {"accepted", "refused"}


def test_a_case_is_a_function_of_seed_kind_and_number():
    data = b'{"a": [1, 2, {"b": "c"}], "d": null}'
    for name in ("a.json", "a.yaml", "a.jinja", "a.tar"):
        first, same = (fuzz_mutations.mutated(data, name, random.Random("0 x 7")) for _ in range(2))
        assert first == same
        assert len({fuzz_mutations.mutated(data, name, random.Random(i)) for i in range(20)}) > 10
    whole, again = (list(fuzz.run("configs", 3, [5, 2])) for _ in range(2))
    assert whole == again


def spin(_):
    while True:
        pass


def several_lines(_):
    raise ValueError("one\ntwo")


def panic(_):
    raise type("PanicException", (BaseException,), {})("a panic")


def bad(_):
    raise KeyError("hidden_size")


def writes(folder: Path):
    with warnings.catch_warnings():
        (folder.parent / "escaped").write_text("x")


def reads(folder: Path):
    with open(folder.parent / fuzz_kinds.OUTSIDE, "w"):
        pass


def dies(_):
    os._exit(3)


def eats(_):
    bytearray(1 << 30)


def sleeps(_):
    time.sleep(60)


def crashes(_):
    ctypes.string_at(0)


def refuses(_):
    raise OSError(2, "No such file")


CASES = {
    "accepted": (lambda _: None, "accepted", ""),
    "refused": (refuses, "refused", "No such file"),
    "hangs": (spin, "finding", "more than 1 s"),
    "several lines": (several_lines, "finding", "refused in no single line"),
    "panic": (panic, "finding", "PanicException: a panic"),
    "another exception": (bad, "finding", "KeyError: 'hidden_size'"),
    "writes outside": (writes, "finding", "opened outside of its folder: "),
    "opens what is beside": (reads, "finding", "opened outside of its folder: "),
    "ends the process": (dies, "finding", "its process ended with 3"),
    "crashes": (crashes, "finding", "its process ended with -11"),
    "memory": (eats, "finding", "MemoryError"),
    "sleeps": (sleeps, "finding", "more than 2 s"),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc of Linux")
@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_found(case, monkeypatch):
    read, word, said = CASES[case]

    def kind(folder: Path) -> fuzz_kinds.Attempt:
        (folder / "a.json").write_text('{"a": 1}')
        return fuzz_kinds.Attempt(("a.json",), read)

    monkeypatch.setitem(fuzz_kinds.KINDS, "made", kind)
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 1)
    monkeypatch.setattr(fuzz, "BYTES", 1 << 28)
    monkeypatch.setattr(fuzz, "WALL_SECONDS", 2 if case == "sleeps" else 60)
    outcomes = [outcome for outcome in fuzz.run("made", 0, [4]) if "wrote beside" not in outcome.said]
    assert [(outcome.kind, outcome.case, outcome.word) for outcome in outcomes] == [("made", 4, word)]
    assert said in outcomes[0].said


def test_cases_go_on_after_one_that_ends_its_process(monkeypatch, tmp_path, capsys):
    def kind(folder: Path) -> fuzz_kinds.Attempt:
        (folder / "a.json").write_text('{"a": 1}')
        done = iter([None, None, dies])
        return fuzz_kinds.Attempt(("a.json",), lambda home: (next(done) or (lambda _: None))(home))

    monkeypatch.setitem(fuzz_kinds.KINDS, "made", kind)
    arguments = ["--kind", "made", "--count", "5", "--seed", "2", "--out", str(tmp_path / "fuzz.jsonl")]
    assert fuzz.main(arguments) == 1
    assert "5 cases, 1 findings" in capsys.readouterr().out
    record = json.loads((tmp_path / "fuzz.jsonl").read_text())
    assert (record["cases"], record["seed"]) == (5, 2)
    assert record["kinds"]["made"] == {"accepted": 4, "finding": 1}
    assert [finding["case"] for finding in record["findings"]] == [2]
