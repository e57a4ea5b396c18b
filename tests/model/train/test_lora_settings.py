"""A stage's LoRA settings, and patterns that end."""

import re
import time
from pathlib import Path

import pytest

from afn_model.train.lora_settings import BESIDE, OWN, by_pattern, check_lora, checked_patterns, targets_by_part

GOOD = {"rank": 8, "alpha": 16}
ALL = ("encoder", "adaptor", "language_model", "lm_head")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"dora": True}, "lora has no dora; it takes rank, alpha, targets, rslora"),
        ({"targets": {"encodr": "all-linear"}}, "lora: targets has no encodr; it takes language_model, encoder"),
        ({"targets": {}}, "lora: targets names no part"),
        ({"targets": {"encoder": []}}, "lora: targets is []; a list of layers' names or all-linear"),
        ({"rslora": 1}, "lora: rslora is 1; true or false"),
        ({"rank_pattern": {"q_proj": 0}}, "lora: rank_pattern: q_proj is 0; a whole number from 1"),
        ({"alpha_pattern": {"q_proj": 0}}, "lora: alpha_pattern: q_proj is 0; a number above 0"),
        ({"rank_pattern": {"(": 2}}, "lora: rank_pattern: '(' is neither a layer's name nor a simple pattern"),
        ({"dropout": 1.0}, "lora: dropout is 1.0; a share from 0 to below 1"),
        ({"base": "nf3"}, "lora: base is 'nf3'; nf4 or int8 is expected"),
        ({"base": "nf4", "targets": {"encoder": ["fc1"]}}, "lora: a base in nf4 cannot train whole"),
    ],
)
def test_settings_that_are_none(change, line):
    with pytest.raises(ValueError) as caught:
        check_lora(GOOD | change, ALL, False, "sft", "lora")
    assert str(caught.value).startswith(line)


def test_what_depends_on_the_stage():
    check_lora(GOOD | {"base": "nf4", "targets": {"encoder": ["fc1"]}}, ("encoder",), False, "sft", "lora")
    check_lora({"dropout": 0.1, "base": "int8"}, ALL, True, "sft", "lora")
    for given, modules, adapter, method, line in (
        (
            GOOD | {"targets": {"lm_head": "all-linear"}},
            ("encoder",),
            False,
            "sft",
            "is for stages that train",
        ),
        (GOOD | {"dropout": 0.1}, ALL, False, "grpo", "dropout is for sft"),
        (GOOD, ALL, True, "sft", "rank, alpha is the adapter's"),
    ):
        with pytest.raises(ValueError, match=line):
            check_lora(given, modules, adapter, method, "lora")


def test_targets_of_parts():
    given = {"lm_head": "all-linear", "encoder": ["fc1"]}
    assert targets_by_part(given, "x") == {"encoder": ("fc1",), "lm_head": ("lm_head",)}
    assert targets_by_part(None, "x")["language_model"][0] == "q_proj"


def test_patterns_match_names_from_one_of_their_dots_on():
    patterns = {"q_proj": 1, r"layers\.1\..*": 2, "encoder.*fc1": 3}
    for name, value in (
        ("model.layers.0.self_attn.q_proj", 1),
        ("model.layers.1.mlp", 2),
        ("encoder.layers.0.fc1", 3),
        ("model.layers.10.mlp", 0),
        ("xq_proj", 0),
    ):
        assert by_pattern(patterns, name, 0) == value, name


def test_a_hostile_pattern_ends():
    for pattern in ("(a+)+b", "a*" * 3, "a" * 201, "a{9}{9}", 3):
        with pytest.raises(ValueError, match="is neither a layer's name nor a simple pattern of names"):
            checked_patterns({pattern: 1}, "rank_pattern")
    before = time.process_time()
    by_pattern(checked_patterns({".*.*x": 1}, "rank_pattern"), "a.b" * 30, 0)
    assert time.process_time() - before < 5


def test_the_table_in_the_documentation_has_every_setting():
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text.partition("| lora setting |")[2].partition("\n\n")[0], re.M)
    assert sorted(rows) == sorted({*OWN, *BESIDE})
