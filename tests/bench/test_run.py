"""The benchmarks themselves: what they record, what they refuse to time, what they call slower, what they draw."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench import compare, measure, report, run, timing, virtual_ranks
from bench.ops import Absent, Workload
from bench.record import COLUMNS, Bench, fitted, measured

BENCH = Bench(timing.HostClock(), copy_rate=1e10, matmul_rate=1e11, rounds=5, budget=0.05)


def inputs(rows: int):
    return lambda device, dtype: {
        "x": torch.randn(rows, 32, device=device, dtype=dtype),
        "weight": torch.randn(32, device=device, dtype=dtype),
    }


def plain(i):
    return F.rms_norm(i["x"], (32,), i["weight"], 1e-6)


def missing(i):
    raise Absent("it is not installed")


TINY = Workload(
    "rms_norm", "tiny", inputs(64), ("x", "weight"), (1.0, 1.0), at=inputs, peers={"torch": plain, "nobody": missing}
)


@dataclass(frozen=True)
class Wrong(Workload):
    def call(self, inputs, impl="auto"):
        return tuple(out if impl == "reference" else 1.01 * out for out in super().call(inputs, impl))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("bench") / "ops.jsonl"
    assert run.run([TINY], BENCH, out) == (0, [])
    return run.read(out)


def test_a_workload_end_to_end_on_a_cpu(written):
    by_call = {(x["pass"], x["variant"]): x for x in written}
    assert len(by_call) == len(written) == 7
    assert by_call["forward", "impl=cpu"]["median_us"] > 0, "compiled, and chosen in inference mode alone"
    for x in written:
        assert set(COLUMNS) <= set(x)
        assert (x["device"], x["length"], x["dtype"]) == ("cpu", 1024, "float32")
        assert x["torch"] == torch.__version__
        assert x["python"]
        assert x["launch_us"] is x["gb_s"] is x["of_floor"] is None, "of a GPU, or of the full shape"
    for which in ("forward", "forward+backward"):
        ours, peer, absent = (by_call[which, name] for name in ("ours", "torch", "nobody"))
        assert ours["chosen"] == "reference"
        assert 0 < ours["p20_us"] <= ours["median_us"] <= ours["p80_us"]
        assert ours["error"] < 1e-5
        assert ours["error_at"] == "the timed shape"
        assert (ours["best_peer"], peer["ratio_to_best_peer"]) == ("torch", 1)
        assert ours["ratio_to_best_peer"] == pytest.approx(peer["median_us"] / ours["median_us"], abs=1e-3)
        assert (absent["median_us"], absent["absent"]) == (None, "it is not installed")


def test_what_is_wrong_is_not_timed():
    work = Wrong(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__})
    ours, peer = (x for x in measured(work, "forward", BENCH) if x["variant"] in ("ours", "torch"))
    assert ours["median_us"] is None
    assert "exceeds the budget" in ours["absent"]
    assert run.should_have_run(ours)
    assert peer["median_us"] > 0


def test_what_fails_is_in_the_file_with_the_reason(tmp_path):
    broken = replace(TINY, make=None, at=lambda n: lambda device, dtype: {"x": torch.ones(4, device=device)})
    bad, left = run.run([broken], BENCH, tmp_path / "ops.jsonl")
    assert (bad, left) == (2, [])
    assert all("TypeError" in x["absent"] for x in run.read(tmp_path / "ops.jsonl"))


def test_what_does_not_fit_a_cpu_is_absent_with_its_size():
    work = replace(TINY, at=lambda n: inputs(2**21))
    with pytest.raises(Absent, match="268 MB"):
        fitted(work, "cpu")
    assert all("268 MB" in x["absent"] for x in measured(work, "forward", BENCH))


def test_a_file_keeps_what_was_not_measured_again(tmp_path):
    out = tmp_path / "ops.jsonl"
    run.save(out, [fake("a", 1), fake("b", 2)])
    run.save(out, [fake("a", 3)])
    assert [(x["workload"], x["median_us"]) for x in run.read(out)] == [("b", 2), ("a", 3)]


def test_parts_are_all_of_it():
    parts = [run.selected([], f"{n}/3") for n in (1, 2, 3)]
    assert sorted(str(work) for part in parts for work in part) == sorted(map(str, run.selected([], "1/1")))
    with pytest.raises(SystemExit, match="no workloads for nothing"):
        run.selected(["nothing"], "1/1")


def test_a_call_that_a_cpu_cuts_to_the_same_is_timed_once():
    longer, wider = replace(TINY, name="longer"), replace(TINY, name="wide", at=lambda n: inputs(n + 1))
    assert [str(x) for x in run.distinct([TINY, longer, wider])] == ["rms_norm, tiny", "rms_norm, wide"]


class Ticks(timing.HostClock):
    """A clock that knows how long each call takes and writes down what was called."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.blocks = seconds, []

    def block(self, call, calls):
        self.last = None
        for i in range(calls):
            call(i)
        self.blocks.append((self.last, calls))
        return self.seconds[self.last], 1e-6


def test_variants_take_turns_and_every_call_of_a_block_has_its_own_copy():
    clock = Ticks({"a": 1e-4, "b": 1e-2, "c": 1e-3})
    seen = []

    def variant(name):
        def call(i):
            clock.last = name
            seen.append((name, i))

        return call

    found = timing.interleaved(clock, {name: variant(name) for name in "abc"}, copies=4, rounds=6, budget=10)
    assert [found[name].device for name in "abc"] == [[1e-4] * 6, [1e-2] * 6, [1e-3] * 6]
    rounds = [[name for name, _ in clock.blocks[6 + 3 * n :][:3]] for n in range(7)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) == 3, "another order each round"
    assert set(clock.blocks[6:]) == {("a", 4), ("b", 1), ("c", 2)}
    assert {i for name, i in seen if name == "a"} == {0, 1, 2, 3}


def test_quantiles_are_numpys():
    values = torch.rand(17).tolist()
    for q in (0, 0.2, 0.5, 0.8, 1):
        assert timing.quantile(values, q) == pytest.approx(np.quantile(values, q))


@pytest.mark.parametrize(
    ("gpu", "folder"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", "t4"),
    ],
)
def test_folder_of_a_gpu(gpu, folder):
    assert measure.folder_name(gpu) == folder


def fake(workload: str, median: float | None, variant: str = "ours", noise: float = 0.01, **columns) -> dict:
    """A record made up for these tests."""
    record = dict.fromkeys(COLUMNS) | {"op": "made_up", "workload": workload, "pass": "forward", "variant": variant}
    role = variant if variant == "ours" else "peer"
    record |= {"role": role, "device": "cpu", "machine": "made up", "cores": 1, "threads": 1, "load": 0.0}
    record |= {"date": "2000-01-01", "copy_gb_s": 1.0, "matmul_tflops": 1.0, "torch": "0", "triton": None}
    times = {} if median is None else {"p20_us": (1 - noise) * median, "p80_us": (1 + noise) * median}
    return record | {"python": "0", "median_us": median, **times, **columns}


def both(tmp_path, before: list[dict], after: list[dict]) -> list[str]:
    for name, records in (("before", before), ("after", after)):
        (tmp_path / name).write_text("".join(json.dumps(x) + "\n" for x in records))
    return [str(tmp_path / "before"), str(tmp_path / "after")]


BEFORE = [fake("same", 100), fake("noisy", 100, noise=0.2), fake("slow", 100), fake("fast", 100)]
AFTER = [fake("same", 101), fake("noisy", 115, noise=0.2), fake("slow", 130), fake("fast", 50)]


def test_compare_finds_a_planted_slow_down_and_no_noise(tmp_path, capsys):
    files = both(tmp_path, BEFORE, AFTER)
    found = compare.beyond_noise(compare.changes(BEFORE, AFTER))
    assert [(x.record["workload"], round(x.change, 2)) for x in found] == [("slow", 0.3), ("fast", -0.5)]
    assert compare.main(files) == 0
    assert compare.main([*files, "--fail-slower", "40"]) == 0
    assert compare.main([*files, "--fail-slower", "20"]) == 1
    said = capsys.readouterr().out
    assert "slower: 1" in said
    assert "faster: 1" in said
    assert "2 of 4 within noise" in said


def test_compare_takes_the_peers_drift_for_the_machines(tmp_path):
    peers = [fake("same", median, variant="torch") for median in (100, 135)]
    found = compare.beyond_noise(compare.changes([*BEFORE, peers[0]], [*AFTER, peers[1]]))
    assert [x.record["workload"] for x in found] == ["fast"]


def test_compare_refuses_another_machine(tmp_path, capsys):
    assert compare.main(both(tmp_path, BEFORE, [x | {"cores": 64} for x in AFTER])) == 2
    assert "not the same machine" in capsys.readouterr().err


def test_compare_says_what_it_cannot_read(tmp_path, capsys):
    before, nowhere = both(tmp_path, BEFORE, AFTER)[0], str(tmp_path / "nowhere")
    assert compare.main([before, nowhere]) == 2
    assert capsys.readouterr().err == f"{nowhere}: No such file or directory\n"
    assert compare.main([str(tmp_path), before]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: Is a directory\n"
    for text in ("{", '{"op": "made_up"}\n', "[1]\n", "3\n"):
        Path(nowhere).write_text(text)
        assert compare.main([before, nowhere]) == 2
        assert capsys.readouterr().err.startswith(f"{nowhere}: not a file of python -m bench.run")


GPU = {"device": "cuda", "gpu": "NVIDIA H200", "driver": "0", "floor_us": 50, "gb_s": 2400.0, "of_reachable": 0.6}
RECORDS = [
    fake("won", 100, chosen="triton", best_peer="torch", ratio_to_best_peer=1.5, of_floor=0.5, **GPU),
    fake("won", 150, variant="torch", best_peer="torch", ratio_to_best_peer=1.0, of_floor=0.3, **GPU),
    fake("lost", 100, chosen="triton", best_peer="torch", ratio_to_best_peer=0.8, of_floor=0.5, tflops=99.0, **GPU),
    fake("lost", 80, variant="torch", best_peer="torch", ratio_to_best_peer=1.0, of_floor=0.6, tflops=120.0, **GPU),
    *(fake(name, None, variant="liger", absent="it is not installed") | GPU for name in ("won", "lost")),
]


def test_report_marks_what_loses_and_what_is_absent(tmp_path):
    (tmp_path / "ops.jsonl").write_text("".join(json.dumps(x) + "\n" for x in RECORDS))
    report.main([str(tmp_path)])
    text = (tmp_path / "ops.md").read_text()
    assert "# Ops on NVIDIA H200" in text
    assert "2 rows: 1 faster, 1 loses." in text
    assert "| made_up | lost | forward | 100.0 (triton) | 0.50 | 0.60 | torch | 80.0 | 0.80 | **loses** |" in text
    assert "| made_up | liger | all | it is not installed |" in text
    pytest.importorskip("matplotlib")
    for name in ("peers.png", "roofline.png", "bars-made_up.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_report_of_a_cpu_says_that_it_is_no_gpu(written):
    text = report.markdown(written)
    assert "this says nothing about a GPU" in text
    assert "tiny, cut to length 1024" in text


def test_virtual_ranks_small_on_a_cpu():
    record = virtual_ranks.measure(1, "cpu", contexts=(96,), ranks=(2,))
    assert [(row["clips"], row["ranks"], row["backward"]) for row in record["rows"]] == [
        (clips, ranks, backward) for clips in ("one", "mix") for backward in (False, True) for ranks in (1, 2)
    ]
    assert all(row["ms"] > 0 for row in record["rows"])


def test_copies_under_kernels_are_not_exposed():
    def event(cat, stream, ts, dur):
        return {"ph": "X", "cat": cat, "ts": ts, "dur": dur, "args": {"stream": stream}}

    trace = [
        event("kernel", 7, 0, 1000),
        event("kernel", 7, 1500, 1000),
        event("gpu_memcpy", 20, 800, 400),  # half of it after the first kernel
        event("gpu_memcpy", 20, 1600, 300),
        event("kernel", 20, 2400, 300),  # a copy by a kernel, mostly after the end
        {"cat": "cpu_op", "ts": 0, "dur": 5000},
    ]
    assert virtual_ranks.exposed(trace) == {"kernel_ms": 2.0, "copy_ms": 1.0, "exposed_ms": 0.4}
