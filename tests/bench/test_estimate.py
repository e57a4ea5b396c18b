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
    """But where there was no kernel before."""
    without = {goal.item for goal in estimate.GOALS for chip in (H100, H200) if not goal.value(BEFORE, chip)}
    assert without == {f"linear_fp8 {workload}" for workload in estimate.PRODUCTS}


def test_an_fp8_product_by_hand():
    """What L2 gives binds; 36 rounds of 28 blocks of 48 KB at 36 bytes a clock, and 2,080 clocks to write a tile."""
    item = "8192 x 3584 x 18944, tiles"
    line = {"op": "linear_fp8", "workload": item, "kernel": "linear_fp8.cu: linear_fp8_256x128_by_tile"}
    line |= {"instructions": 245, "issue_clk": 490, "tensor_clk": 1024, "mufu_clk": 0, "programs": 132, "resident": 132}
    found = GOALS[f"linear_fp8 {item}"].value(estimate.Kernels("now", [line]), H100)
    seconds = 36 * (28 * 49152 / 36 + 2080) / 1.7e9 + 3e-6
    assert found == pytest.approx(2 * 8192 * 3584 * 18944 / seconds / 1e12, rel=1e-3)


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
