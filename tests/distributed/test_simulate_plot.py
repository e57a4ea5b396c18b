"""Tables, document and plot of the simulation."""

import json
from dataclasses import fields

import pytest
from afn_distributed.costs import ASSUMED
from afn_distributed.simulate import choose, main
from afn_distributed.simulate_plot import best_by_ranks, cells, doubted, million, pick_text, table, verdict


def row(ulysses, ring, speed, *, fits=True, gigabytes=50.0, step_tokens=2_000_000, shard=8):
    found = {"gpus": 64, "ulysses": ulysses, "ring": ring, "shard": shard, "recompute": "selective", "fits": fits}
    found |= {"data": 64 // (ulysses * ring), "memory_gb": {"total": gigabytes}, "step_tokens": step_tokens}
    found |= {"work_imbalance": 1.25}
    if fits:
        found |= {"tokens_s_gpu": speed, "mfu": 0.4, "step_s": 2.0, "exposed_s": 0.1, "exposed_share": 0.05}
        found |= {"waiting_s": 0.02}
    return found


def test_a_table_is_markdown():
    assert table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_cells_of_a_row():
    left = ["8", "U4 x R2", "8", "8 x 8"]
    right = ["50.0", "1.250", "2.0M"]
    times = ["selective", "9,000", "40.0%", "2,000", "100 ms (5.0%)", "1.0%"]
    assert cells(row(4, 2, 9000.0)) == left + times + right
    assert cells(row(4, 2, 0.0, fits=False)) == [*left, "full", "does not fit", "", "", "", "", *right]
    assert million(1_250_000) == "1.2M"


def test_the_best_of_each_group_size():
    rows = [row(2, 1, 10.0), row(1, 2, 12.0), row(4, 1, 0.0, fits=False, gigabytes=90.0)]
    rows.append(row(2, 2, 0.0, fits=False, gigabytes=85.0))
    assert best_by_ranks(rows) == [rows[1], rows[3]], "the fastest that fits, and the smallest where none does"


def test_the_verdict():
    best, near, far = row(2, 1, 1000.0), row(1, 2, 980.0), row(4, 1, 900.0)
    larger = row(1, 1, 1200.0, step_tokens=9_000_000)
    text = verdict([near, best, far, larger], 4_000_000)
    assert text.startswith("Run **ulysses 2 x ring 1 x data 32, weights over 8 GPUs, selective recomputation**: 1,000")
    assert "Within 3%, which the assumptions cannot tell apart: U1 x R2 with shard 8 (98.0%)." in text
    assert text.endswith("Without the limit of 4.0M tokens a step: U1 x R1 at 1,200, with 9.0M.")
    assert "Without" not in verdict([best], 4_000_000)
    assert verdict([row(1, 1, 0.0, fits=False)], 4_000_000) == "Nothing fits."


def test_a_choice_under_doubt():
    before, after = row(2, 1, 1000.0), [row(2, 1, 600.0), row(1, 2, 800.0)]
    assert doubted(before, after, 4_000_000) == "800: U1 x R2, shard 8, selective recomputation (75.0%)"
    gone = [row(2, 1, 0.0, fits=False), after[1]]
    assert doubted(before, gone, 4_000_000).endswith("(does not fit)")
    assert doubted(None, after, 4_000_000) == pick_text(after[1])
    assert pick_text(None) == "nothing fits"


def test_the_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("afn_distributed.simulate.SIZES", (8, 16))
    pytest.importorskip("matplotlib")
    main(["--gpus", "16", "--tokens", "8192", "--limit", "65536", "--out", str(tmp_path / "step")])
    given, *lines = map(json.loads, (tmp_path / "step.jsonl").read_text().splitlines())
    assert given["measured"] is False
    assert given["nvlink"] == ASSUMED.nvlink
    best = choose([row for row in lines if row["gpus"] == 16 and "doubt" not in row], 65_536)
    text = (tmp_path / "step.md").read_text()
    assert "**Nothing here was measured.**" in text
    assert f"ulysses {best['ulysses']} x ring {best['ring']} x data {best['data']}" in text
    assert f"{best['tokens_s_gpu']:,.0f} tokens/s/GPU" in text
    assert all(item.metadata["source"] in text for item in fields(ASSUMED))
    assert (tmp_path / "step.png").stat().st_size > 10_000
