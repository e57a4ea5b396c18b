"""The plan of ten minutes fits ten minutes; what hangs, crashes or comes too late is a line; what is wrong is shown."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from afn_kernels import _cuda
from afn_kernels.verify.shapes import checks
from bench import run as bench_run
from bench.first import __main__ as first
from bench.first import built, child, figures, harness, launches, plan, profile, report, sweeps
from bench.first import checks as step_checks
from bench.first import engine as engine_checks
from bench.first.__main__ import selected
from bench.first.checks import ops_of
from bench.first.plan import Phase, PlanStep
from bench.first.runner import Journal, Runner
from tests.captures import stand_in
from tests.cuda import compiler, gemm

ROOT = Path(__file__).parents[2]
FAKE = """
import json, os, signal, subprocess, sys, time
what = sys.argv[1]
print(json.dumps({"kind": "said", "what": what, "ptxas": os.environ.get("TRITON_PTXAS_PATH")}), flush=True)
print("and words", flush=True)
if what in ("hang", "noise"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(json.dumps({"kind": "child", "pid": child.pid}), flush=True)
    time.sleep(600)
if what == "crash":
    os.kill(os.getpid(), signal.SIGABRT)
if what == "error":
    raise ValueError("the reason")
print("{half a line")
"""


def steps(**limits: int) -> tuple[PlanStep, ...]:
    return tuple(PlanStep(name, (name,), limit, "", name == "noise") for name, limit in limits.items())


@pytest.fixture
def ran(tmp_path):
    """Runs phases with a child that needs no torch; the lines."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def run(*phases: Phase, total: float = 60.0, **options) -> list[dict]:
        journal = Journal(tmp_path / "out", {"common": 1})
        environment = {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
        runner = Runner(journal, total, environment, child=(sys.executable, str(script)), **options)
        bad = runner.run(phases)
        journal.close()
        lines = report.read(tmp_path / "out")
        not_done = {x["step"] for x in lines if x["kind"] == "step" and x["status"] != "done"}
        assert set(bad) == not_done
        return lines

    return run


def test_the_plan_fits():
    phases = plan.plan()
    for part, most in plan.PARTS.items():
        assert plan.seconds(phases, part) <= most
    assert sum(plan.seconds(phases, part) for part in plan.PARTS) <= plan.TOTAL
    everything = [one for phase in phases for one in phase.steps]
    assert len({one.name for one in everything}) == len(everything)
    text = plan.text(phases)
    assert f"Part A: at most {plan.seconds(phases, 'A')} s of 335 s" in text
    assert all(one.name in text and one.answers in text for one in everything)
    assert f"Part C: at most {plan.seconds(phases, 'C')} s of what these leave" in text
    limit = int(re.search(r"timeout --foreground (\d+)\W.*bench\.first", (ROOT / "Makefile").read_text())[1])
    assert plan.TOTAL + 10 <= limit <= 590


def test_seconds_on_paper():
    three = steps(a=10, b=10, c=5)
    assert Phase("", "A", 1, three).seconds() == 25
    assert Phase("", "A", 2, three).seconds() == 15
    assert Phase("", "A", 9, (*three, *steps(noise=50))).seconds() == 10


def test_every_step_and_row_exists():
    import importlib

    for phase in (*plan.plan(), *plan.rehearsal()):
        for one in phase.steps:
            if one.words[0] != "planted":
                module = importlib.import_module(f"bench.first.{child.STEPS[one.words[0]]}")
                assert callable(getattr(module, one.words[0]))
    named = [op for group in (*plan.GROUPS, "rest") for op in ops_of(group)]
    assert sorted(named) == sorted({check.op for check in checks("full")})
    for name, (op, _, which) in (plan.GOALS | plan.MORE).items():
        work, asked = figures.workload(name)
        assert (work.op, asked) == (op, which)
        assert which == "forward" or work.wrt


def test_a_sweep_changes_what_is_chosen():
    from afn_kernels.attention import triton as attention

    found = sweeps.TABLE["attention_forward_128"]
    asked = ("forward", 128, False, False, torch.device("meta"))
    before = attention.choose(*asked)
    with sweeps.changed(found, {"keys": 48, "stages": 7}):
        assert (attention.choose(*asked).keys, attention.choose(*asked).stages) == (48, 7)
        assert attention.choose("carry", *asked[1:]) == attention.choose("carry", *asked[1:])
        assert attention.choose("carry", *asked[1:]).stages != 7
    assert attention.choose(*asked) == before
    with sweeps.changed(found, {"no_such_field": 1}), pytest.raises(TypeError, match="no_such_field"):
        attention.choose(*asked)


def test_what_hangs_or_crashes_ends_alone(ran):
    began = time.monotonic()
    lines = ran(Phase("one", "A", 4, steps(hang=1, crash=20, error=20, good=20)))
    assert time.monotonic() - began < 15
    ended = {x["step"]: x for x in lines if x["kind"] == "step"}
    assert {name: x["status"] for name, x in ended.items()} == {
        "hang": "timed out", "crash": "crashed", "error": "failed", "good": "done",
    }  # fmt: skip
    assert "SIGABRT" in ended["crash"]["why"]
    assert "ValueError: the reason" in ended["error"]["why"]
    said = [x for x in lines if x["kind"] == "said"]
    assert {(x["step"], x["phase"], x["part"], x["common"]) for x in said} == {
        (name, "one", "A", 1) for name in ("hang", "crash", "error", "good")
    }
    (pid,) = (x["pid"] for x in lines if x["kind"] == "child")
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("what a step had begun is still there")


def test_the_deadline_skips_and_cuts(ran):
    lines = ran(
        Phase("one", "A", 1, steps(hang=30)), Phase("two", "B", 1, steps(good=30)), total=1.0, slow=0.05
    )  # fmt: skip
    ended = {x["step"]: x for x in lines if x["kind"] == "step"}
    assert ended["hang"]["status"] == "timed out"
    assert ended["hang"]["took_s"] < 1.4
    assert ended["good"]["status"] == "skipped"
    assert "it may take 2 s" in ended["good"]["why"]
    assert not [x for x in lines if x["kind"] == "said" and x["step"] == "good"]


def test_noise_ends_with_its_phase_and_the_other_assembler_is_named(ran):
    began = time.monotonic()
    other = PlanStep("good", ("good",), 20, "", ptxas=True)
    lines = ran(Phase("one", "A", 1, (*steps(noise=50), other)))
    assert time.monotonic() - began < 10
    assert {x["status"] for x in lines if x["kind"] == "step"} == {"done"}
    assert next(x["ptxas"] for x in lines if x["step"] == "good" and x["kind"] == "said").endswith("bin/ptxas")


def line(kind: str, status: str = "ok", **more) -> dict:
    return {"kind": kind, "step": more.pop("step", "a step"), "part": "A", "phase": "p", "status": status, **more}


def test_what_is_wrong_is_shown(tmp_path):
    lines = [
        line("verify", op="swiglu", check="5 x 40", impl="triton", used=0.5, error=1e-3),
        line("verify", "failed", op="swiglu", check="9 x 40", impl="triton", used=1.5, error=2e-3,
             reason="out0 is off"),
        line("repeats", "failed", op="rotary", check="5", impl="triton", why="out0 has other bits"),
        line("step", "skipped", step="sweep x", why="3 s are left"),
        line("step", "timed out", step="planted hang", took_s=1.0, at_s=1.0, why=""),
        line("step", "done", step="planted crash", took_s=1.0, at_s=1.0, why=""),
    ]  # fmt: skip
    text = "".join(json.dumps(x) + "\n" for x in lines)
    (tmp_path / "first.jsonl").write_text(text + '{"kind": "verify", "op": "swig')
    assert report.write(tmp_path) == 3
    found = (tmp_path / "first.md").read_text()
    assert "| checks against float64 | 1 failed, 1 ok |" in found
    assert "| verify | swiglu, 9 x 40, triton | failed | out0 is off |" in found
    assert "| repeats | rotary, 5, triton | failed | out0 has other bits |" in found
    assert "planted crash | failed | planted, and the runner says done" in found
    assert "planted hang |" not in found.partition("## Not right")[2].partition("##")[0]
    assert "| swiglu | triton | 1 of 2 | 9 x 40 | 1.50 |" in found
    assert "| step | sweep x | 3 s are left |" in found
    assert "ehears" not in found
    (tmp_path / "first.jsonl").write_text(json.dumps(lines[0] | {"rehearsal": "on a CPU"}) + "\n")
    assert report.write(tmp_path) == 0
    assert "**No GPU has run this.**" in (tmp_path / "first.md").read_text()


def test_the_engine_is_in_the_report(tmp_path):
    lines = [
        line("engine", check="bits: warm, bfloat16"),
        line("engine", "failed", check="graphs: graphs, bfloat16", apart=0.1, budget=0.05, used=2.0, why="0.1 apart"),
        line("serving", figure="decode", how="graphs", kv="bfloat16", batch=64, context=1024, layers=28, step_ms=9.5,
             tokens_per_s=6736.84, gb_s=2100.0),
        line("serving", "skipped", figure="decode", kv="bfloat16", batch=64, context=45_056, why="it takes 165 GB"),
    ]  # fmt: skip
    (tmp_path / "first.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert report.write(tmp_path) == 1
    found = (tmp_path / "first.md").read_text()
    assert "| the engine | 1 failed, 1 ok |" in found
    assert "| engine | graphs: graphs, bfloat16 | failed | 0.1 apart |" in found
    assert "| graphs: graphs, bfloat16 | failed | 2.00 | 1.0e-01 |" in found
    assert "| bfloat16 | 64 | 1024 | graphs | 28 | 9.5 | 6,737 | 2,100 |" in found
    assert "| serving | decode | it takes 165 GB |" in found


def test_an_engine_that_says_something_else_is_found(capsys, monkeypatch):
    """The engine's judge: its own answers are within the budget, and those of other weights are not."""
    monkeypatch.setattr(engine_checks, "GPU", False)
    monkeypatch.setattr(engine_checks, "LENGTHS", (5, 70))
    monkeypatch.setattr(engine_checks, "ORDERS", 2)
    given, model = engine_checks.prompts(), engine_checks.network(torch.float32, "cpu")
    judge = engine_checks.AnswerJudge(torch.float32, given, True)
    distance, likelier = judge(engine_checks.said(engine_checks.engine_of(model), given, audio=True))
    assert distance <= judge.allowed
    assert likelier <= 2 * judge.allowed
    with torch.no_grad():
        model.language_model.layers[1].self_attn.fused.bias.add_(1e-3)
    distance, _ = judge(other := engine_checks.said(engine_checks.engine_of(model), given, audio=True))
    assert distance > judge.allowed
    assert engine_checks.apart([([1, 2, 3], torch.tensor([-1.0, -2.0, -3.0]))],
                               [([1, 5, 3], torch.tensor([-1.0, -2.5, -9.0]))]) == 0.5  # fmt: skip
    assert not engine_checks.equal(other, [(tokens, logprobs + 1e-7) for tokens, logprobs in other])
    monkeypatch.setitem(engine_checks.CHECKS, "bits", lambda: 1 / 0)
    monkeypatch.setattr(child, "END", time.monotonic() + 60)  # not that of when these tests were imported
    assert engine_checks.engine("bits") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["why"]) == ("failed", "ZeroDivisionError: division by zero")


def test_only_what_was_right_and_never_wrong_is_timed(monkeypatch):
    lines = [
        line("verify", op="a", impl="triton"), line("verify", op="a", impl="cuda"), line("verify", op="b", impl="cuda"),
        line("repeats", "failed", op="a", impl="cuda"), line("verify", "failed", op="b", impl="cuda"),
    ]  # fmt: skip
    monkeypatch.setattr(figures, "told", lambda: lines)
    assert figures.usable("a", "triton") == ""
    for op, impl in (("a", "cuda"), ("b", "cuda")):
        assert figures.usable(op, impl) == figures.usable(op, impl, judged=False) == "part A found it wrong"
    assert figures.usable("c", "triton") == "part A did not find it right"
    assert figures.usable("c", "triton", judged=False) == ""


def test_directions_do_not_depend_on_strides():
    x = {"x": torch.randn(3, 5, requires_grad=True)}
    calls = (lambda i: i["x"] * 2, lambda i: (i["x"].T.contiguous() * 2).T)
    grads = [figures.directed(call, [x], ("x",))(0)[0] for call in calls]
    assert torch.equal(*grads)
    assert not torch.equal(grads[0], torch.ones(3, 5))


def test_what_checkers_and_profilers_print():
    assert launches.judged("words\n========= ERROR SUMMARY: 0 errors\n", 0) == ("ok", "")
    assert launches.judged("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0) == ("ok", "")
    text = "========= Invalid __global__ read of size 4\n=========     at log_mel\n========= ERROR SUMMARY: 2 errors\n"
    assert launches.judged(text, 9) == ("failed", "2 findings: Invalid __global__ read of size 4; at log_mel")
    assert launches.judged("no such tool", 1)[0] == launches.judged("", -9)[0] == launches.judged("", 0)[0] == "failed"
    table = '==PROF== x\n"ID","Metric Name","Metric Unit","Metric Value"\n"0","Duration","us","12.5"\n"0","","",""\n'
    assert profile.metrics(table) == {"Duration, us": "12.5"}
    assert profile.metrics("==ERROR== ERR_NVGPUCTRPERM") == {}


def test_distances_of_kept_launches():
    expected = np.array([1.0, -4.0, np.nan], np.float32).view(np.uint8)
    assert harness.apart(np.array([1.5, -4.0, 7.0], np.float32).view(np.uint8), expected, "float32") == 0.125
    assert harness.apart(np.array([np.nan, -4.0, 7.0], np.float32).view(np.uint8), expected, "float32") == float("inf")
    half = torch.tensor([1.0, -2.0]).bfloat16().view(torch.uint8).numpy()
    assert harness.values(half, "bfloat16").tolist() == [1.0, -2.0]


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_a_kept_launch_runs_again(tmp_path, monkeypatch):
    monkeypatch.setattr(launches, "PLACE", tmp_path)
    monkeypatch.setattr(launches, "SOURCES", ("qkv_rotary",))
    launches.launches()
    (file,) = tmp_path.glob("qkv_rotary-*.npz")
    lines = harness.run(launches.Host(), file)
    assert [x["kernel"] for x in lines] == [f"qkv_rotary_{name}" for name in ("float32", "bfloat16", "float16")]
    for x in lines:
        assert x["status"] == "ok"
        assert len(x["written"]) == 3  # q and two caches
        assert set(x["written"].values()) == {0.0}
    kept = dict(np.load(file))
    about = json.loads(str(kept["about"]))
    source = str(about[0]["pointers"][0][1])  # what it reads first
    kept[f"0.{source}.before"] = np.zeros_like(kept[f"0.{source}.before"])
    np.savez(tmp_path / "other.npz", **kept)
    assert max(harness.run(launches.Host(), tmp_path / "other.npz")[0]["written"].values()) > 0.1


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_a_kept_launch_has_tensor_maps_of_its_own_buffers(tmp_path, monkeypatch):
    csrc = gemm.folder(tmp_path / "csrc")
    monkeypatch.setattr(_cuda, "sources", lambda: csrc)
    monkeypatch.setattr(launches, "PLACE", tmp_path)
    monkeypatch.setattr(launches, "SOURCES", ("gemm",))
    made = {one.name: partial(one, *gemm.operands(one, 64, 64, 256)) for one in gemm.GEMMS}
    monkeypatch.setattr(launches, "calls", lambda source: [made[name] for name in ("bf16_three", "f16_parts")])
    launches.launches()
    (file,) = tmp_path.glob("gemm-*.npz")
    kept = np.load(file)
    for about in json.loads(str(kept["about"])):
        places, buffers, _, what = zip(*about["maps"], strict=True)
        assert places == (0, 128, 256)
        assert len(set(buffers)) == 3
        assert what[1] == {"element": 2, "swizzle": 128, "sizes": [256, 64], "box": [64, 64], "strides": [512]}
    for line in harness.run(launches.Host(), file):
        assert line["status"] == "ok"
        assert list(line["written"].values()) == [0.0]


def test_what_is_built_is_not_built_again(monkeypatch):
    monkeypatch.setattr(built._cuda, "shipped", lambda: (["a", "b"], ["a"]))
    assert built.missing() == "no machine code of b"
    monkeypatch.setattr(built._cuda, "shipped", lambda: (["a"], ["a"]))
    monkeypatch.setattr(built._cuda, "stale", lambda name: True)
    assert built.missing() == "the machine code of a is of another source"
    monkeypatch.setattr(built._cuda, "stale", lambda name: False)
    monkeypatch.setattr(built.importlib.util, "find_spec", lambda name: None)
    assert built.missing() == "afn_distributed is not installed"
    monkeypatch.setattr(built.importlib.util, "find_spec", lambda name: name)
    assert built.missing() == ""


def test_a_run_can_keep_its_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    seen = []
    monkeypatch.setattr(bench_run.Bench, "of", lambda *_, **__: BENCH)
    monkeypatch.setattr(bench_run, "run", lambda *_: seen.append(os.environ["TRITON_CACHE_DIR"]) or (0, []))
    for words in (["--keep-caches"], []):
        bench_run.main([*words, "--only", "rms_norm", "--out", str(tmp_path / "x.jsonl")])
    assert seen[0] == "mine"
    assert seen[1] != "mine"


class _Nothing:
    device = "cpu"

    def reached(self) -> dict:
        return {}


BENCH = _Nothing()


def test_phases_and_steps_by_name():
    phases = plan.plan()
    assert [x.name for x in selected(phases, "goals,setting", "")] == ["setting", "goals"]
    assert [one.name for x in selected(phases, "", "goal swiglu,noise") for one in x.steps] == ["noise", "goal swiglu"]
    with pytest.raises(SystemExit, match="no phase nowhere; there are setting"):
        selected(phases, "nowhere", "")
    with pytest.raises(SystemExit, match="no step nothing"):
        selected(phases, "", "nothing")


@pytest.mark.slow
def test_a_rehearsal_from_end_to_end(tmp_path):
    """Processes, limits, lines, report: a fault on purpose, a check, and a row that is timed because it was right."""
    wanted = "planted hang,planted crash,verify fp8,goal quantize_fp8"
    command = [sys.executable, "-m", "bench.first", "--rehearse", "--out", str(tmp_path), "--steps", wanted]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr + (tmp_path / "first.log").read_text()
    lines = report.read(tmp_path)
    ended = {x["step"]: x["status"] for x in lines if x["kind"] == "step"}
    assert ended == {"planted hang": "timed out", "planted crash": "crashed", "verify fp8": "done",
                     "goal quantize_fp8": "done"}  # fmt: skip
    assert all(x["rehearsal"] for x in lines)
    (row,) = (x for x in lines if x["kind"] == "goal")
    assert row["median_us"] > 0
    assert {x["op"] for x in lines if x["kind"] == "verify"} == {"quantize_fp8"}
    assert len(list(tmp_path.iterdir())) <= 8
    assert "**No GPU has run this.**" in (tmp_path / "first.md").read_text()


def test_times_are_taken_alone_but_not_for_ever(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FIRST_LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(child, "LIMIT", 0.4)
    monkeypatch.setattr(child, "END", time.monotonic() + 60)
    with (tmp_path / "lock").open("a") as other:
        with child.alone(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not capsys.readouterr().out
        fcntl.flock(other, fcntl.LOCK_SH)  # prepares and hangs
        with child.preparing():
            pass
        began = time.monotonic()
        monkeypatch.setattr(child, "END", began + 0.4)
        with child.alone(), (tmp_path / "lock.line").open("a") as second:
            assert time.monotonic() - began > 0.1
            assert "another step still prepared" in json.loads(capsys.readouterr().out)["why"]
            with pytest.raises(BlockingIOError):  # who is ready stands in line all the same
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_tool_that_is_ended_leaves_what_it_said(tmp_path):
    program = "import subprocess, sys; print('said', flush=True); subprocess.run(['sleep', '2'])"
    began = time.monotonic()
    assert child.output([sys.executable, "-c", program], 0.5, tmp_path) == ("said\n", "", None)
    assert time.monotonic() - began < 1.8
    assert child.output(["sh", "-c", "echo a; echo b >&2; exit 9"], 5, tmp_path) == ("a\n", "b\n", 9)


def test_no_gpu_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(first.ctypes, "CDLL", _Driver(0, 0))
    assert first.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "gpu-first: no GPU is here (its driver finds none); REHEARSE=1 needs none\n"
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(first.ctypes, "CDLL", _Driver(100, 0))
    assert first.no_gpu() == "its driver ends with 100"
    monkeypatch.setattr(first.ctypes, "CDLL", _Driver(0, 1))
    assert first.no_gpu() == ""


class _Driver:
    def __init__(self, code: int, count: int):
        self.code, self.count = code, count

    def __call__(self, _):
        return self

    def cuInit(self, _):
        return self.code

    def cuDeviceGetCount(self, place):
        place._obj.value = self.count
        return 0


def test_a_failed_capture_gives_the_stream_back(monkeypatch):
    streams, _, _ = stand_in(monkeypatch)

    def call(_):
        if streams[0] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        figures.replayed(call, 1)
    assert streams[0] != "capture"


def test_the_lean_tile_is_swept():
    lean = {"queries": 128, "keys": 64, "warps": 4, "stages": 2, "lean": True}
    assert lean in sweeps.TABLE["attention_forward_128"].changes


def test_a_half_written_line_stops_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "FOLDER", tmp_path)
    (tmp_path / "first.jsonl").write_text('{"kind": "ceilings"}\n{"kind": "ver')
    assert child.told() == [{"kind": "ceilings"}]


def test_tests_end_before_their_step_does(monkeypatch):
    found = step_checks._Report()
    session = types.SimpleNamespace(items=[1, 2, 3], shouldstop=False)
    found.pytest_collection_finish(session)
    for end, stops in ((60.0, False), (step_checks.SPARE - 1, "no time is left")):
        monkeypatch.setattr(child, "END", time.monotonic() + end)
        found.pytest_runtest_logstart()
        found.pytest_runtest_logfinish()
        assert session.shouldstop == stops
    assert found.unasked == 1


def test_checkers_at_the_same_time_have_their_own_ports():
    words = "  --launch-timeout arg (=10)  Seconds\n  --base-port arg (=49152)  Ports\n"
    assert launches.apart(words, 0) == ["--base-port", "49152", "--launch-timeout", "40"]
    assert launches.apart(words, 3)[1] == "49344"
    assert launches.apart("  --max-connections-of-others\n", 1) == []
