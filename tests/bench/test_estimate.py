"""Goals against estimates: figures of the committed binaries, and the document."""

import json

import pytest

from bench import estimate
from bench.sm90.command import DOCUMENT, MARK, read_lines
from bench.sm90.estimate import H100, H200

BEFORE = estimate.Kernels("before", read_lines(estimate.RESULTS / "before.jsonl"))
GOALS = {goal.item: goal for goal in estimate.GOALS}
# What was worked out by hand from the same binaries, of an H100.
BY_HAND = {
    "decode_attention 45K, CUDA C++": (35, 38),
    "decode_attention 45K, Triton": (38, 43),
    "log_mel, 30 min, Triton": (0.30, 0.45),
    "log_mel, 30 min, CUDA C++": (0.20, 0.28),
    "log_mel, 30 min, padded, CUDA C++": (0.38, 0.48),
    "attention forward, head dim 128, causal 16K": (400, 450),
    "attention backward, head dim 128, causal 16K": (270, 340),
    "attention forward, packed causal 32K": (370, 420),
    "attention backward, packed causal 32K": (240, 300),
    "encoder attention, head dim 64, 60 x 1500": (370, 430),
    "linear_cross_entropy 8K x 151,672": (580, 640),
    "rms_norm 8192 x 3584 + residual": (0.86, 0.92),
    "rms_norm 8192 x 3584 + residual, backward": (0.65, 0.78),
    "rotary 8192 x (28 + 4) x 128, training": (0.80, 0.88),
    "swiglu 8192 x 18944": (0.88, 0.93),
    "pack_heads 6144 rows to 4 peers": (0.85, 0.90),
}
CUDA = "decode_attention 45K, CUDA C++"


@pytest.mark.parametrize("item", BY_HAND)
def test_estimates_are_near_those_by_hand(item):
    """Within 15 % of the range: half of what such models have been wrong by."""
    low, high = BY_HAND[item]
    assert 0.85 * low <= GOALS[item].value(BEFORE, H100) <= 1.15 * high


def test_every_goal_has_an_estimate_of_before():
    newer = [goal for goal in estimate.GOALS if goal.item.startswith("attention") and "CUDA C++" in goal.item]
    assert all(goal.value(BEFORE, chip) for goal in estimate.GOALS if goal not in newer for chip in (H100, H200))
    assert [goal.value(BEFORE, H100) for goal in newer] == [None] * 6


def test_a_forward_in_turns_is_held_to_what_such_loops_have_reached():
    """A step of 2,048 clocks of products, which nothing is longer than: FlashAttention 3's rate at long lengths."""
    row = {"op": "attention", "workload": "prefill 45K, 28:4 x 128", "kernel": "attention.cu: attention_bfloat16_128"}
    row |= {"instructions": 540, "issue_clk": 1080, "tensor_clk": 2048, "mufu_clk": 1056, "programs": 132}
    goal = GOALS["attention forward, head dim 128, prefill 45K, CUDA C++"]
    found = goal.value(estimate.Kernels("now", [row | {"resident": 132}]), H100)
    assert found == pytest.approx(650, rel=0.01)
    slower = goal.value(estimate.Kernels("now", [row | {"resident": 132, "issue_clk": 4096}]), H100)
    assert slower == pytest.approx(found / 2, rel=0.01)


def test_a_backward_in_turns_is_held_to_what_such_loops_have_reached():
    row = {"op": "attention", "workload": "causal 16K, 28:4 x 128", "programs": 512, "resident": 132}
    row |= {"kernel": "attention_backward.cu: attention_backward_bfloat16_128", "instructions": 960}
    row |= {"issue_clk": 1918, "tensor_clk": 2560, "mufu_clk": 512}
    goal = GOALS["attention backward, head dim 128, causal 16K, CUDA C++"]
    found = goal.value(estimate.Kernels("now", [row]), H100)
    assert found == pytest.approx(573, rel=0.05)  # less what comes before and after
    assert found < 573
    assert goal.value(estimate.Kernels("now", [row | {"issue_clk": 5120}]), H100) < 0.6 * found


def test_a_kernel_that_is_not_there():
    assert GOALS[CUDA].value(estimate.Kernels("now", []), H100) is None
    without = [x for x in BEFORE.lines if x.get("kernel") != "dkv_kernel"]
    assert GOALS["attention backward, packed causal 32K"].value(estimate.Kernels("now", without), H100) is None
    lines = [x for x in estimate.estimates(BEFORE.lines, without) if "backward, packed" in x["item"]]
    assert "| – / – | ≥ 500 | – / – |" in estimate.table(lines)


def test_a_kernel_of_a_width():
    """decode_attention in CUDA C++ has a kernel for every head dimension, and had one for all."""
    lines = [x | {"kernel": f"{x['kernel']}_128"} if ".cu" in x.get("kernel", "") else x for x in BEFORE.lines]
    assert GOALS[CUDA].value(estimate.Kernels("before", lines), H100) == GOALS[CUDA].value(BEFORE, H100)
    lines = [x | {"kernel": f"{x['kernel']}_fp8"} if ".cu" in x.get("kernel", "") else x for x in BEFORE.lines]
    assert GOALS[CUDA].value(estimate.Kernels("before", lines), H100) is None


def test_one_release_is_news_in_cuda_alone():
    now = estimate.Kernels("now", BEFORE.lines)
    triton, cuda = (GOALS[f"decode_attention 45K, {name}"] for name in ("Triton", "CUDA C++"))
    assert triton.value(now, H100) == triton.value(BEFORE, H100)
    assert cuda.value(now, H100) < cuda.value(BEFORE, H100)


def test_shares_of_goals():
    assert GOALS["attention forward, packed causal 32K"].share(315, 630) == 0.5
    assert GOALS[CUDA].share(66, 33) == 0.5


def test_a_better_binary_has_a_better_estimate():
    """Half of the instructions in dkv's loop, and loads ahead."""
    lines = [
        x | {"issue_clk": x["issue_clk"] / 2, "ahead": True} if x.get("kernel") == "dkv_kernel" else x
        for x in BEFORE.lines
    ]
    changed = {
        x["item"] for x in estimate.estimates(BEFORE.lines, lines)
        if x["now_h100"] != GOALS[x["item"]].value(BEFORE, H100) and x["item"].startswith("attention b")
        and x["now_h100"] > 1.15 * x["before_h100"]
    }  # fmt: skip
    assert len(changed) == 2


def test_the_document_holds_the_estimates():
    """python -m bench.estimate --out bench/results/sm90 writes both."""
    file = estimate.RESULTS / "estimates.jsonl"
    held = DOCUMENT.read_text().partition(estimate.BEGIN)[2].partition(estimate.END)[0].strip()
    assert held == (estimate.table(read_lines(file)).strip() if file.exists() else "")


def test_the_command_writes_a_file_and_a_document(tmp_path, monkeypatch, capsys):
    document = tmp_path / "RESULTS.md"
    document.write_text(f"first\n{estimate.BEGIN}\nold\n{estimate.END}\nlast\n{MARK} -->\n<!-- end -->\n")
    estimate.into_document("new\n", document)
    estimate.into_document("new\n", document)
    assert document.read_text() == (f"first\n{estimate.BEGIN}\nnew\n{estimate.END}\nlast\n{MARK} -->\n<!-- end -->\n")
    document.write_text("no marks\n")
    with pytest.raises(ValueError, match="put both lines where the table belongs"):
        estimate.into_document("new\n", document)
    written = []
    monkeypatch.setattr(estimate, "into_document", written.append)
    before = str(estimate.RESULTS / "before.jsonl")
    estimate.main(["--before", before, "--now", before, "--out", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "estimates.jsonl").open()]
    assert [x["item"] for x in lines] == list(GOALS)
    assert estimate.table(lines) in capsys.readouterr().out
    assert not written, "only the committed folder's estimates go into the document"
    monkeypatch.setattr(estimate, "RESULTS", tmp_path)
    estimate.main(["--before", before, "--now", before, "--out", str(tmp_path)])
    assert written == [estimate.table(lines)]
    with pytest.raises(SystemExit, match="No such file"):
        estimate.main(["--before", str(tmp_path / "none.jsonl")])
