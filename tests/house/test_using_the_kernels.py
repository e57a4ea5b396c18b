"""docs/using-the-kernels.md has a section for every public name, its examples run, its arguments and limits exist."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _triton

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "using-the-kernels.md"
TEXT = DOC.read_text(encoding="utf-8")
PARTS = re.split(r"^### `(\w+)`\n", TEXT, flags=re.M)
SECTIONS = {name: text.partition("\n## ")[0] for name, text in zip(PARTS[1::2], PARTS[2::2], strict=True)}
NAMES = sorted({*ak.__all__, "FeatureExtractor", "ParakeetFeatureExtractor", "nn", "patch"})


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


BEGINNING = blocks(PARTS[0])


def test_every_public_name_has_its_section():
    assert sorted(SECTIONS) == NAMES
    assert len(BEGINNING) == 1


@pytest.mark.parametrize("name", SECTIONS)
def test_its_example_runs(name, capsys):
    if name in ("FeatureExtractor", "ParakeetFeatureExtractor", "patch"):
        pytest.importorskip("transformers")
    (example,) = blocks(SECTIONS[name])
    scope = {}
    exec(compile(BEGINNING[0], DOC.name, "exec"), scope)
    exec(compile(example, f"{DOC.name}: {name}", "exec"), scope)
    assert f"ak.{name}" in example or name == "patch"


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "patch"])
def test_its_example_has_three_lines(name):
    assert len(blocks(SECTIONS[name])[0].splitlines()) == 3


@pytest.mark.parametrize("name", sorted({*ak.OPS, "LogMelStream", "attention_backward", "patch"}))
def test_every_argument_is_named(name):
    text = SECTIONS[name]
    for argument in inspect.signature(getattr(ak, name)).parameters:
        assert re.search(rf"`{argument}\b", text) or argument in ("impl", "model"), argument
    if name != "patch":
        assert "\nLimits: " in text


def test_every_module_is_in_the_table():
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` \|", SECTIONS["nn"], re.M)
    assert {name for name, _ in rows} == set(ak.nn.__all__)
    for name, arguments in rows:
        known = inspect.signature(getattr(ak.nn, name).__init__).parameters
        assert all(argument in known for argument in arguments.split(", ") if argument), name


@pytest.mark.skipif(bool(_triton.available()), reason=_triton.available() or "it can run")
@pytest.mark.parametrize(
    ("op", "width", "arguments"),
    [
        ("rms_norm", 65_536, lambda x, w: (x, w)),
        ("layer_norm", 32_768, lambda x, w: (x, w, w)),
        ("pool_norm", 32_768, lambda x, w: (x, w, w)),
        ("rotary", 1_024, lambda x, w: (x[:, None], x[:, None], torch.zeros(2), w[: len(w) // 2])),
        ("attention", 256, lambda x, w: (x[:, None],) * 3),
        ("decode_attention", 256, lambda x, w: (x[:, None, None],) * 3 + (torch.ones(2, dtype=torch.int64),)),
        (
            "paged_attention",
            256,
            lambda x, w: (
                x[:, None],
                *((x[:, None, None],) * 2),
                *(torch.tensor(n, dtype=torch.int32) for n in ([[0, 1]], [0, 2], [2])),
            ),
        ),
        ("quantize_fp8", 65_536, lambda x, w: (x,)),
    ],
)
def test_limits_are_those_of_the_code(op, width, arguments):
    """The widest row that the document promises runs in Triton, a wider one is refused for its width."""
    assert f"{width:,}" in SECTIONS[op]
    getattr(ak, op)(*arguments(torch.zeros(2, width), torch.zeros(width)), impl="triton")
    with pytest.raises(ValueError, match=f"cannot run this call: .* {width + 16} "):
        getattr(ak, op)(*arguments(torch.zeros(2, width + 16), torch.zeros(width + 16)), impl="triton")


def test_the_extractors_figure_is_in_its_file():
    claimed = int(re.search(r"at least (\d+) × faster", SECTIONS["FeatureExtractor"])[1])
    records = [json.loads(line) for line in (ROOT / "bench/results/cpu/features.jsonl").read_text().splitlines()]
    assert claimed <= min(records[-1]["ratio"].values())
    assert f"transformers {'.'.join(records[-1]['transformers'].split('.')[:2])}" in SECTIONS["FeatureExtractor"]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#][^)]*)\)", TEXT))
def test_links_exist(link):
    assert (DOC.parent / link).exists()


def test_anchors_exist():
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)", TEXT, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= headings
