"""Values from YAML: no name leaves the run folder, no few bytes stand for a lot, and every wrong kind is one line."""

import time

import pytest

from afn_model.scoring.judge import Endpoint
from afn_model.train import values
from afn_model.train.curriculum import Stage, read_curriculum, write_curriculum
from afn_model.train.dpo import DPOSettings
from afn_model.train.grpo_settings import GRPOSettings
from afn_model.train.run_layout import read_layout
from afn_model.train.values import made, shown

GOOD = """
datasets: {a: a.jsonl}
stages:
  one: {trains: all, context: 64, batch_tokens: 64, blend: {a: 1}, lr: 1e-3}
"""
LAUGHS = "\n".join(
    ["x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 12)]
)


def said(tmp_path, text: str, monkeypatch=None) -> str:
    """What reading a curriculum says, in one line and without the file's name."""
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_curriculum(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: "), line
    assert "\n" not in line
    assert len(line) < len(str(file)) + 600
    return line.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    "where",
    [
        "datasets: *x11\n",
        "datasets: {a: *x11}\n",
        "stages: *x11\n",
        "defaults: *x11\n",
        "stages: {one: *x11}\n",
        "stages: {one: {trains: all, lr: *x11}}\n",
        "stages: {one: {trains: all, blend: {a: *x11}}}\n",
        "stages: {one: {trains: all, method: *x11}}\n",
        "stages: {one: {trains: all, start: *x11}}\n",
        "*x11 : 1\n",
    ],
)
def test_aliases_are_refused_before_they_are_followed(tmp_path, where):
    began = time.process_time()
    assert "aliases are not read" in said(tmp_path, LAUGHS + "\n" + where)
    assert time.process_time() - began < 2, "9^12 words would take for ever"


def test_what_is_written_has_no_aliases(tmp_path):
    """``defaults`` make stages share their values, which YAML would write as aliases."""
    (tmp_path / "c.yaml").write_text(
        "datasets: {a: a.jsonl}\ndefaults: {trains: [adaptor], context: 64, batch_tokens: 64, layout: {workers: 0}}\n"
        "stages: {one: {blend: {a: 1}}, two: {blend: {a: 1}}}\n"
    )
    found = read_curriculum(tmp_path / "c.yaml")
    assert found.stages[0].layout == found.stages[1].layout == {"workers": 0}
    write_curriculum(found, tmp_path / "again.yaml")
    assert read_curriculum(tmp_path / "again.yaml").stages == found.stages


@pytest.mark.parametrize(
    "key", ["../../escaped", "/escaped", "a/b", "a\\b", "", ".", "..", ".hidden", " a", '"a\\nb"', "x" * 300]
)
def test_a_name_is_one_folder(tmp_path, key):
    key = key if key.startswith('"') else f"'{key}'"
    assert "a name " in said(tmp_path, GOOD.replace("one:", f"{key}:"))
    dataset = GOOD.replace("{a: a.jsonl}", f"{{{key}: a.jsonl}}").replace("{a: 1}", f"{{{key}: 1}}")
    assert "a name " in said(tmp_path, dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize("name", ["tensorboard", "plots", "base", "curriculum.yaml"])
def test_names_that_are_taken(tmp_path, name):
    assert "have a meaning of their own" in said(tmp_path, GOOD.replace("one:", f"{name}:"))


def test_names_of_any_language_are_fine(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD.replace("one:", "erste Stufe é 1:"), encoding="utf-8")
    assert read_curriculum(tmp_path / "c.yaml").stages[0].name == "erste Stufe é 1"
    with pytest.raises(ValueError, match=r"stage '\.\./x': a name"):
        Stage("../x", ("all",), {"a": 1.0}, batch_tokens=8192)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("one:", "1:", "stage 1: a name is text; put it in quotes"),
        ("one:", "null:", "stage None: a name is text"),
        ("{a: a.jsonl}", "{1: a.jsonl}", "dataset 1: a name is text"),
        ("{a: a.jsonl}", "{a: 1}", "dataset 'a': 1 is no path"),
        ("context: 64", "context: .inf", "stage one: context is inf, not a whole number"),
        ("context: 64", "context: .nan", "stage one: context is nan, not a number"),
        ("context: 64", f"context: 1{400 * '0'}", "stage one: context is 1000"),
        ("context: 64", "context: [64]", "stage one: context is [64], not a number"),
        ("context: 64", "context: true", "stage one: context is True, not a number"),
        ("lr: 1e-3", "lr: {a: 1}", "stage one: lr is {'a': 1}, not a number"),
        ("lr: 1e-3", "lr: .nan", "stage one: lr is nan, not a number"),
        ("lr: 1e-3", "lr: -1", "stage one: lr is -1; a number above 0 is expected"),
        ("lr: 1e-3", "warmup: 2", "stage one: warmup is 2; a share of the stage is expected, 0 to below 1"),
        ("lr: 1e-3", "clip: 0", "stage one: clip is 0.0; a number above 0 is expected"),
        ("lr: 1e-3", "steps: 0", "stage one: steps is 0; a number above 0 is expected"),
        ("lr: 1e-3", "epochs: 0", "stage one: epochs is 0.0; a number above 0 is expected"),
        ("lr: 1e-3", "weight_decay: -1", "stage one: weight_decay is -1; 0 or more is expected"),
        ("lr: 1e-3", "bad_share: 2", "stage one: bad_share is 2; a share from 0 to 1 is expected"),
        ("lr: 1e-3", "on_long: keep", "stage one: on_long 'keep' is none of cut, drop, error"),
        ("lr: 1e-3", "max_audio: .inf", "stage one: max_audio inf is no number of seconds"),
        ("lr: 1e-3", "betas: [a, b]", "stage one: betas is 'a', not a number"),
        ("lr: 1e-3", "betas: ab", "stage one: betas: a list is expected, not 'ab'"),
        ("lr: 1e-3", "betas: [0.9, 1]", "stage one: betas [0.9, 1.0] are not two numbers from 0 to below 1"),
        ("lr: 1e-3", "lora: {rank: '8', alpha: 16}", "lora: rank is '8'; a whole number from 1 to 65536"),
        ("lr: 1e-3", "lora: {rank: 1000000000, alpha: 16}", "lora: rank is 1000000000; a whole number from 1 to"),
        ("lr: 1e-3", "lora: {rank: 8, alpha: many}", "lora: alpha is 'many'; a number above 0"),
        ("lr: 1e-3", "lora: {rank: 8, alpha: 16, targets: q_proj}", "lora: targets is 'q_proj'; a list"),
        ("stages:\n", "stages: [x]\nname:\n", "stages: names and values are expected, not ['x']"),
        ("lr: 1e-3", "lora: [8]", "stage one: lora: names and values are expected, not [8]"),
        ("lr: 1e-3", "grpo: 3", "stage one: grpo: names and values are expected, not 3"),
        ("lr: 1e-3", "layout: [x]", "stage one: layout: names and values are expected"),
        ("lr: 1e-3", "cache_encoder: 'yes'", "stage one: cache_encoder is 'yes'; true or false is expected"),
        ("lr: 1e-3", "start: {stage: base, when: 1}", "stage one: start has no when; it takes stage, at"),
        ("lr: 1e-3", "start: {stage: base, at: half}", "stage one: start: at is 'half', not a number"),
        ("trains: all", "trains: 3", "stage one: trains: a list is expected, not 3"),
        ("trains: all", "trains: [[all]]", "stage one: trains [['all']]; the parts are encoder"),
        ("datasets:", "seed: soon\ndatasets:", "seed is 'soon', not a number"),
        ("context: 64", "context:", "stage one: context is None, not a number"),
        ("lr: 1e-3", "lr:", "stage one: lr is None, not a number"),
        ("lr: 1e-3", "clip:", "stage one: clip is None, not a number"),
        ("lr: 1e-3", "chunk:", "stage one: chunk is None, not a number"),
        ("lr: 1e-3", "epochs:", "stage one: epochs is None, not a number"),
        ("{a: 1}", "{a: 1, times: 2}", "stage one: the blend has times, but not the stage that it is like"),
    ],
)
def test_the_wrong_kind_is_one_line(tmp_path, before, after, message):
    assert before in GOOD
    assert message in said(tmp_path, GOOD.replace(before, after, 1))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("lr: 1e-3", "lr: 1e-3, lr: 1e-4", "line 4: lr is given twice"),
        ("{a: 1}", "{a: 1, a: 2}", "line 4: a is given twice"),
        ("\nstages:", "\nstages: {}\nstages:", "line 4: stages is given twice"),
        ("lr: 1e-3", "steps: 010", "line 4: 010 is not a decimal number; text needs quotes"),
        ("lr: 1e-3", "minutes: 1:30", "line 4: 1:30 is not a decimal number; text needs quotes"),
        ("lr: 1e-3", "minutes: -1:30.5", "line 4: -1:30.5 is not a decimal number"),
    ],
)
def test_what_yaml_would_read_as_something_else(tmp_path, before, after, message):
    assert message in said(tmp_path, GOOD.replace(before, after, 1))


def test_nothing_stands_for_no_end_and_no_contexts(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD.replace("lr: 1e-3", "steps: null, minutes: null, lora: null"))
    assert read_curriculum(tmp_path / "c.yaml").stages[0].steps is None
    (tmp_path / "mine.yaml").write_text("contexts:\nworkers: 0")
    assert read_layout(tmp_path / "mine.yaml").contexts == {}


def test_nothing_is_too_deep(tmp_path):
    assert "nested too deeply" in said(tmp_path, "datasets: " + "[" * 100_000)


def test_all_linear_is_the_seven_layers(tmp_path):
    for targets in ("all-linear", "null"):
        lora = f"lora: {{rank: 8, alpha: 16, targets: {targets}}}"
        (tmp_path / "c.yaml").write_text(GOOD.replace("lr: 1e-3", lora))
        assert read_curriculum(tmp_path / "c.yaml").stages[0].lora == {"rank": 8, "alpha": 16}


def test_what_is_set_on_the_command_line_is_blamed_for_itself(tmp_path):
    with pytest.raises(ValueError, match=r"^--set recompute='ful': layout: recompute 'ful' is none of none, encoder"):
        read_layout("cpu", {"recompute": "ful"})
    with pytest.raises(ValueError, match=r"^--set keep=0: layout: keep"):
        read_layout("cpu", {"keep": 0})
    (tmp_path / "mine.yaml").write_text("workers: many")
    with pytest.raises(ValueError, match=r"mine\.yaml: layout: workers is 'many', not a number"):
        read_layout(tmp_path / "mine.yaml")


def test_a_value_is_shown_in_bounded_length():
    assert len(shown("x" * 10**6)) < 100
    assert len(shown([["y" * 1000] * 1000] * 1000)) < 4000
    assert shown(10**5000) == "a number of 16610 bits"
    assert values.whole("1e3", "n") == 1000


def test_fields_of_stages_change():
    raw = {"defaults": {"lora": {"rank": 4, "alpha": 8}}, "stages": {"a": {"lr": 1}, "lora": {}}}
    known = ("lr", "lora")
    found = values.changed_stages(raw, {"a.lr": 2, "a.lora.rank": 16, "lora.lora.alpha": 1}, known)
    expected = {"a": {"lr": 2, "lora": {"rank": 16, "alpha": 8}}, "lora": {"lora": {"rank": 4, "alpha": 1}}}
    assert found["stages"] == expected
    assert raw["stages"] == {"a": {"lr": 1}, "lora": {}}
    one = {"stages": {"lora": {"lora": {"rank": 4}}}}
    found = values.changed_stages(one, {"lora.rank": 8, "lora.lr": 3}, known)
    assert found == {"stages": {"lora": {"lora": {"rank": 8}, "lr": 3}}}
    with pytest.raises(ValueError, match=r"--set lr: which stage\? STAGE.lr, with one of a, lora"):
        values.changed_stages(raw, {"lr": 2}, known)
    with pytest.raises(ValueError, match=r"--set a.lr.x: lr is 1, which has no fields"):
        values.changed_stages(raw, {"a.lr.x": 2}, known)


@pytest.mark.parametrize(
    ("settings", "text", "message"),
    [
        (GRPOSettings, "{group: 2.5}", "group is 2.5, not a whole number"),
        (GRPOSettings, "{updates: [2]}", r"updates is \[2\], not a number"),
        (GRPOSettings, "{kl: .nan}", "kl is nan, not a number"),
        (GRPOSettings, "{temperature: hot}", "temperature is 'hot', not a number"),
        (GRPOSettings, "{kl: null}", "kl is None, not a number"),
        (GRPOSettings, "{drop_equal: 'no'}", "drop_equal is 'no'; true or false is expected"),
        (GRPOSettings, "{loss: 3}", "loss is 3; text is expected"),
        (GRPOSettings, "{max_seconds: 0}", "max_seconds is 0.0; above 0 or null is expected"),
        (DPOSettings, "{max_seconds: -1}", "max_seconds is -1.0; above 0 or null is expected"),
        (DPOSettings, "{beta: true}", "beta is True, not a number"),
        (DPOSettings, "{betta: 1}", "has no"),
        (Endpoint, "{url: 5, model: m}", "url is 5; text is expected"),
        (Endpoint, "{url: 'http://x', model: m, concurrency: 1.5}", "concurrency is 1.5, not a whole number"),
        (Endpoint, "{}", "missing 2 required"),
    ],
)
def test_settings_of_the_wrong_kind_are_one_line(settings, text, message):
    with pytest.raises(ValueError, match=f"^here: .*{message}|^here {message}") as caught:
        made(settings, values.parse_yaml(text), "here")
    assert "\n" not in str(caught.value)


def test_settings_are_numbers_where_yaml_reads_text():
    """YAML 1.1 takes 1e-3 for text."""
    assert made(GRPOSettings, values.parse_yaml("{kl: 1e-3, clip_high: null}"), "here") == GRPOSettings(kl=1e-3)
    assert made(DPOSettings, values.parse_yaml("{beta: 1e-1, pass_tokens: 64.0}"), "here") == DPOSettings(0.1, 0, 64)
