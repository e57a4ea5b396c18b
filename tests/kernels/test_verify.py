"""``ak.verify``: a real run on the CPU, what it writes and how auto follows, processes that die, the command line."""

import json
import sys
import threading
import warnings
from collections import Counter

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _verdicts
from afn_kernels._registry import OPS
from afn_kernels.verify import __main__ as command
from afn_kernels.verify import processes, run
from tests.budget import note
from tests.kernels.verify import planted
from tests.kernels.verify.planted import FAULTS

PLAIN = ("cpu", "sdpa", "matmul", "reference")  # what no interpreter runs


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty cache that counts, and a process that has seen nothing."""
    monkeypatch.setenv("AFN_CACHE", str(tmp_path))
    monkeypatch.setenv("AFN_VERDICTS", "1")
    _verdicts.forget()
    yield tmp_path / "verdicts"
    _verdicts.forget()


def test_every_op_on_this_cpu(kept):
    report = ak.verify(impls=PLAIN, device="cpu", seed=torch.initial_seed() % 2**31)
    assert not report.failed, str(report)
    assert {row["status"] for row in report.rows} == {"ok", "timed"}
    asked = Counter((row["op"], row["impl"]) for row in report.rows if row["status"] == "ok")
    here = {op: [row.impl for row in ak.explain(op).rows if row.status != "unavailable"] for op in OPS}
    assert set(asked) == {(op, impl) for op, impls in here.items() for impl in impls if impl in PLAIN}
    for row in report.rows:
        if row["status"] == "ok":
            note(row["used"], f"{row['op']}, {row['check']}")
    text = str(report)
    assert "0 failed, 0 skipped" in text
    assert report.file in text
    assert "fastest first, float32 forward 16 one causal: " in text
    times = {op for op, kinds in _verdicts.of(-1).order.items() for sizes in kinds.values() if sizes}
    assert times == set(OPS)
    found = next(row for row in report.rows if row["status"] == "timed" and row["op"] == "log_mel")
    fastest = min(found["seconds"]["float32 forward"], key=found["seconds"]["float32 forward"].get)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ak.explain("log_mel", torch.zeros(8, 3200)).chosen == fastest


def test_kernels_in_the_interpreter(kept):
    """They are compared as on a GPU, and not timed."""
    found = ak.verify(["rms_norm", "swiglu", "decode_attention", "pack_heads"], device="cpu")
    assert not found.failed, str(found)
    if next(row for row in ak.explain("swiglu").rows if row.impl == "triton").status == "unavailable":
        pytest.skip("no interpreter of Triton")
    asked = Counter((row["op"], row["impl"]) for row in found.rows if row["status"] == "ok")
    assert asked["decode_attention", "triton"] == 5
    if next(row for row in ak.explain("pack_heads").rows if row.impl == "cuda").status != "unavailable":
        assert (asked["decode_attention", "cuda"], asked["pack_heads", "cuda"]) == (2, 2)
    for row in found.rows:
        assert not {"triton", "cuda"} & {name for times in row.get("seconds", {}).values() for name in times}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_a_row_a_line_of_the_file_and_never_chosen(kept, fault):
    with planted.planted(fault, "good"):
        report = ak.verify(["rms_norm"], device="cpu", time=False)
        assert {row["impl"] for row in report.failed} == {fault}
        assert Counter(row["status"] for row in report.rows if row["impl"] != fault) == {"ok": 4}
        assert f"rms_norm             5 x 48{'':<34}{fault[:10]}" in str(report)
        kept_rows = json.loads(next(kept.glob("*.json")).read_text())["rows"]
        assert {row["impl"] for row in kept_rows if row["status"] == "failed"} == {fault}
        x = torch.randn(5, 48)
        with pytest.warns(UserWarning, match=f"leaves {fault} aside"):
            found = ak.rms_norm(x, torch.ones(48))
        assert torch.equal(found, ak.rms_norm(x, torch.ones(48), impl="reference"))
        assert ak.explain("rms_norm", x, torch.ones(48)).chosen == "good"


def test_nothing_is_kept_where_nobody_wants_it(kept):
    assert not ak.verify(["swiglu"], impls=["reference"], device="cpu", time=False, keep_file=False).file
    assert not kept.exists()


def test_bad_names():
    with pytest.raises(ValueError, match="verify: no op 'fft'; there are apply_rotary, attention"):
        ak.verify(["fft"])
    with pytest.raises(ValueError, match="verify: no implementation 'tritn'; there are cpu, "):
        ak.verify(impls=["tritn"])
    with pytest.raises(ValueError, match="verify: size='huge', expected 'full' or 'toy'"):
        ak.verify(size="huge")
    with pytest.raises(ValueError, match="verify: device='meta', expected cpu"):
        ak.verify(device="meta")


def test_the_command_line(kept, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["verify", "--ops", "swiglu,rms_norm", "--impl", "reference", "--json"])
    assert command.main() == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert Counter(row["status"] for row in rows) == {"ok": 3, "timed": 2}
    assert len(_verdicts.read(torch.device("cpu"))) == len(rows)
    with planted.planted("raising"):
        monkeypatch.setattr(sys, "argv", ["verify", "--ops", "rms_norm", "--no-time", "--no-file"])
        assert command.main() == 1
        assert "4 ok" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["verify", "--ops", "fft"])
    assert command.main() == 2
    assert capsys.readouterr().err.startswith("no op 'fft'")


def test_a_context_that_is_lost_ends_the_process(monkeypatch):
    monkeypatch.setattr(run, "_lost", lambda device: True)
    rows = []
    with planted.planted("raising", "good"), pytest.raises(run.DeviceLost, match="out of resource"):
        rows.extend(run.rows("toy", torch.device("cpu"), ops={"rms_norm"}))
    monkeypatch.setattr(sys, "argv", ["verify", "--ops", "rms_norm", "--no-file", "--json"])
    with planted.planted("raising", "good"):
        assert command.main() == processes.LOST


def test_a_check_that_does_not_fit_is_skipped(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 2**30, 80 * 2**30))
    monkeypatch.setattr(run, "_tidy", lambda device: None)
    (large,) = (one for _, one in run.selected("full", {"linear_logprob"}))
    assert run._lack(large, torch.device("cuda")) == f"needs {large.need() / 2**30:.1f} GiB, 2.0 GiB are free"
    assert not run._lack(next(one for _, one in run.selected("full", {"rms_norm"})), torch.device("cuda"))
    rows = list(run.rows("full", torch.device("cuda"), ops={"linear_logprob"}))
    assert [(row["check"], row["status"]) for row in rows] == [(large.name, "skipped")]


def test_memory_is_lent_up_to_what_is_there():
    room = processes.Room(10)
    with room.taken(6), room.taken(4):
        assert room._used == 10
    with room.taken(99):  # more than there is: by itself
        assert room._used == 10
    assert room._used == 0


@pytest.mark.slow
def test_a_process_that_dies_costs_one_row(kept, monkeypatch):
    """One implementation kills its process, at the first check: the others go on in another, without it."""
    monkeypatch.setattr(processes, "MODULE", planted.HERE)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows = list(processes.rows("toy", torch.device("cpu"), ops={"rms_norm"}, seed=3))
    results = [(row["check"], row["impl"], row["status"]) for row in rows if row["status"] != "timed"]
    assert sorted(results) == [
        ("5 x 48", "dying", "failed"),
        ("5 x 48", "good", "ok"),
        ("5 x 48", "reference", "ok"),
        ("7 x 48, residual", "good", "ok"),
        ("7 x 48, residual", "reference", "ok"),
    ]
    assert next(row for row in rows if row["impl"] == "dying")["reason"] == "its process was ended by SIGKILL"
    (times,) = (row for row in rows if row["status"] == "timed")
    assert set(times["seconds"]["float32 forward"]) == {"good", "reference"}


CHILD = """
import json, sys
start, crash = int(sys.argv[sys.argv.index("--start") + 1]), sys.argv[1]
skipped = sys.argv[sys.argv.index("--skip") + 1].split(",") if "--skip" in sys.argv else []
for number in range(start, 3):
    if crash == f"before {number}":
        raise RuntimeError("no such device")
    if "rms_norm:a" not in skipped:
        print(json.dumps({"number": number, "impl": "a", "status": "begun"}))
        if crash == f"in {number}":
            raise RuntimeError("no such device")
        print(json.dumps({"number": number, "impl": "a", "status": "ok"}))
print("{ a line of somebody else")
if crash != "at the end":
    print(json.dumps({"status": "over"}))
    sys.exit(1)
"""
WHY = "its process ended with 1: RuntimeError: no such device"
NONE = [(0, "a", "ok", ""), (1, "a", "ok", ""), (2, "a", "ok", "")]


@pytest.mark.parametrize(
    ("crash", "expected"),
    [
        ("nowhere", NONE),
        ("before 0", [(0, "", "skipped", WHY), *NONE[1:]]),
        ("before 2", [*NONE[:2], (1, "", "skipped", f"after a: {WHY}"), (2, "", "skipped", WHY)]),
        ("in 1", [NONE[0], (1, "a", "failed", WHY)]),
        ("at the end", [*NONE, (2, "", "skipped", "after a: its process ended with 0")]),
    ],
)
def test_an_exception_that_nobody_catches_loses_no_check_silently(crash, expected, tmp_path, monkeypatch):
    """It ends a process with the code that failed checks have too."""
    (tmp_path / "verify_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(processes, "MODULE", "verify_child")
    (one, *_) = (one for _, one in run.selected("toy", {"rms_norm"}))
    own = [(number, one) for number in range(3)]
    found = processes.survive(own, [crash, "--size", "toy"], 100.0, (), threading.Event())
    assert [(row["number"], row["impl"], row["status"], row.get("reason", "")) for row in found] == expected


@pytest.mark.parametrize(
    "error", [TimeoutError("10 s are over"), MemoryError("none"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")]
)
def test_a_lack_of_memory_or_time_is_nobodys_fault(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(run, "judge", fail)
    rows = run.rows("toy", torch.device("cpu"), ops={"rms_norm"}, impls=["reference"], time_them=False)
    assert {row["status"] for row in rows} == {"skipped"}


def test_a_process_that_says_nothing_is_ended(monkeypatch):
    monkeypatch.setattr(processes, "MODULE", planted.HERE)
    go_on, stop = threading.Event(), threading.Event()
    assert list(processes.lines(["--hang"], 0.5, go_on)) == [{"ended": "no answer in 0 s"}]
    stop.set()
    assert list(processes.lines(["--hang"], 1000.0, stop)) == [{"ended": "its process was ended by SIGKILL"}]
