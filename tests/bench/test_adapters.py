"""What LoRA takes on one GPU: the count on tensors without data against arithmetic."""

import re
from pathlib import Path

import pytest

from afn_model.config import preset
from afn_model.train.flops import language_model_linear
from bench.adapters import HEAD_LOSS, count

FILE = Path(__file__).parents[2] / "bench" / "results" / "memory" / "adapters.md"


@pytest.mark.slow
def test_blocks_keep_their_inputs_alone_where_they_are_recomputed():
    config, context = preset("tiny"), 512
    found = {mode: count(config, "nf4", mode, context=context, rank=2) for mode in ("none", "full")}
    row, text = 2 * context, config.text
    block = 2 * text.width * row  # its two inputs
    none, full = (found[mode]["step"] - HEAD_LOSS for mode in ("none", "full"))
    # Without recomputation a block keeps at least q, k, v, attention's output and the MLP's three products as well.
    more = (text.heads + 2 * text.kv_heads) * text.head_dim + text.width + 3 * text.ffn
    assert none - full > (text.layers - 1) * more * row - block
    assert found["none"]["base"] == found["full"]["base"]
    ranked = (
        2
        * text.layers
        * (4 * text.width + 2 * text.kv_heads * text.head_dim + 2 * text.width + 3 * (text.width + text.ffn))
    )
    assert found["full"]["adapters"] == 2 * 4 * ranked


def test_the_committed_table_has_the_bytes_of_the_weights():
    rows = re.findall(r"^\| (\w+) \| full \| ([\d.]+) ", FILE.read_text(), re.M)
    weights = {base: float(size) for base, size in rows}
    linear = language_model_linear(preset("af-next").text) / 2 / 1e9
    nf4 = linear * (1 / 2 + 1 / 64 + 4 / 64 / 256)
    assert weights["bfloat16"] - 2 * linear + nf4 == pytest.approx(weights["nf4"], abs=0.011)
    assert weights["bfloat16"] - linear == pytest.approx(weights["int8"], abs=0.02)
