"""Plans: what they say, what they refuse, and changes that do fit."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from afn_model.config import ModelConfig
from afn_model.data.forecast import Forecast
from afn_model.train import planner
from afn_model.train.account import Account
from afn_model.train.curriculum import Curriculum, Stage, read_curriculum
from afn_model.train.planner import (
    changed,
    check_host,
    check_layout,
    config_of,
    duration,
    lines,
    plan,
    plan_stage,
    remedies,
    search,
)
from afn_model.train.run_layout import RunLayout, for_stage, read_layout
from afn_model.train.typical import longest

ROOT = Path(__file__).parents[3]
FULL = ModelConfig()
AFNEXT = read_curriculum("afnext")
BF16 = RunLayout(dtype="bfloat16", recompute="selective")
SHORT = Stage("short", ("all",), {"x": 1.0}, batch_tokens=8192 * 16)


@pytest.mark.parametrize(
    ("stage", "layout", "gpus", "message"),
    [
        (SHORT, replace(BF16, ulysses=3), 8, "ulysses 3 x ring 1 = 3 ranks for a sequence do not divide 8 GPUs"),
        (SHORT, replace(BF16, ulysses=32), 32, "ulysses 32 is more than the 28 heads"),
        (replace(SHORT, context=16), replace(BF16, ring=16), 16, "a context of 16 tokens is too little for 16 ranks"),
        (SHORT, replace(BF16, shard=3), 8, "shard 3 does not divide 8 GPUs"),
        (SHORT, BF16, 32, "32 ranks cannot share the 16 sequences of a step evenly"),
        (SHORT, replace(BF16, ring=2), 64, "32 groups of 2 ranks cannot share the 16 sequences"),
        (AFNEXT["post"], BF16, 96, "96 ranks cannot share the 128 prompts of a step evenly"),
        (replace(SHORT, context=2**18, batch_tokens=2**18), BF16, 1, "is beyond the model's 131072 positions"),
    ],
)
def test_layouts_that_divide_nothing(stage, layout, gpus, message):
    with pytest.raises(ValueError, match=message) as error:
        check_layout(FULL, stage, layout, gpus)
    assert str(error.value).startswith(f"stage {stage.name}: ")


def test_a_plan_of_every_stage_of_the_curriculum():
    text = list(plan(AFNEXT, read_layout("8gpu"), gpus=8))
    for stage in AFNEXT.stages:
        assert any(line.startswith(f"{stage.name} ({stage.method}): ") and line.endswith("fits") for line in text)
    assert text[0] == "afnext: 8 GPUs of 80 GB; an estimate from shapes and rates, nothing has been run"
    assert sum("steps and hours are left out: no --base" in line for line in text) == 7
    assert sum("while answers are sampled" in line for line in text) == 2
    assert any(line.startswith("assumed: matmul 6.25e+14 FLOP/s") for line in text)


@pytest.mark.parametrize("gpus", [8, 128])
def test_the_document_has_the_plan_of_af_whisper(gpus):
    document = (ROOT / "bench/results/simulated/afwhisper.md").read_text(encoding="utf-8")
    text = list(plan(read_curriculum("afwhisper"), read_layout(f"{gpus}gpu"), gpus=gpus))
    shown = [line for line in text if not line.startswith(("assumed", "  FLOP/s", "  block", "  share", "  steps and"))]
    assert len(shown) == 11
    assert "\n".join(shown) in document


def test_a_base_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ValueError, match=r"^stage pre-1: method sft, and .* which method asr trains$"):
        config_of(AFNEXT["pre-1"], tmp_path)
    speech = read_curriculum("afwhisper")["both"]
    with pytest.raises(ValueError, match=r"^stage both: method asr, and .* has no such decoder$"):
        config_of(speech, tmp_path / "none")
    adapters = replace(speech, lora={"rank": 4, "alpha": 8, "targets": {"encoder": ["q_proj"]}})
    with pytest.raises(ValueError, match=r"^stage both: adapters of method asr are not planned$"):
        check_layout(config_of(speech, None), adapters, BF16, 8)


def test_what_makes_a_stage_of_asr_fit():
    stage = read_curriculum("afwhisper")["both"]
    ways = remedies(config_of(stage, None), stage, for_stage(read_layout("8gpu"), stage), 8, memory=15.0)
    assert ways[0].startswith("  fits with layout: {recompute: ".removeprefix("  fits with "))
    assert "selective" not in ways[0]


def test_what_does_not_fit_is_an_error_after_a_change_that_does():
    text, some = [], Curriculum("some", (replace(SHORT, trains=("adaptor",)), replace(SHORT, name="whole")), {})
    layout = replace(BF16, recompute="none")

    def read() -> None:
        for line in plan(some, layout, gpus=8, memory=36.0):
            text.append(line)

    with pytest.raises(ValueError, match=r"^short, whole: more than 36 GB of a GPU; the lines above say what fits$"):
        read()
    assert sum("DOES NOT FIT" in line for line in text) == 2
    ways = [line for line in text if line.startswith("  fits with layout: {recompute: ")]
    assert len(ways) == 2


def test_a_change_of_layout_that_fits():
    stage, layout = AFNEXT["mid-1"], replace(read_layout("8gpu"), recompute="none")
    assert Account(FULL, stage, layout, 8, longest(stage)).needs() > 80e9
    (way,) = remedies(FULL, stage, layout, 8)
    setting, rate = way.split(": ", 1)[1].rsplit(": ", 1)
    changes = dict(
        pair.removeprefix("--set ").split("=") for pair in setting.split("or ")[1].replace(" --", "|--").split("|")
    )
    other = read_layout(
        "8gpu", {"recompute": "none", **{k: int(v) if v.isdecimal() else v for k, v in changes.items()}}
    )
    assert Account(FULL, stage, other, 8, longest(stage)).needs() <= 80e9
    assert rate.endswith("tokens/s per GPU")


def test_what_fits_on_one_gpu_instead_of_a_full_fine_tune():
    ways = remedies(FULL, SHORT, BF16, 1)
    assert "offload_optimiser: true" in ways[0]
    assert re.fullmatch(r".*: [\d,]+ tokens/s per GPU and [\d,]+ GB of the host for each", ways[0])
    assert ways[1].startswith("trains: language_model, lora: {rank: 16, alpha: 32}")
    assert any(way.startswith("lora: {rank: 16, alpha: 32, base: nf4}") for way in ways)
    assert ways[-1].startswith("--gpus 4")
    small = remedies(FULL, SHORT, BF16, 1, memory=24.0)
    assert small[0].startswith("lora: {rank: 16, alpha: 32, base: nf4}")


def test_the_least_that_is_offloaded_is_proposed(monkeypatch):
    """Moments alone where these are too much, and gradients only where nothing less fits; nothing where it fits."""
    tried = []

    def found(config, stage, layout, gpus, **options):
        tried.append((layout.offload_optimiser, layout.offload_activations, layout.offload_gradients))
        return [(5.0, layout)] if len(tried) == fits else []

    monkeypatch.setattr(planner, "search", found)
    monkeypatch.setattr(planner, "_smaller", lambda stage: [])
    for fits in (1, 2, 3, 4):
        tried.clear()
        way = remedies(FULL, SHORT, replace(BF16, shard=128), 128)[0]
        assert tried == [(False,) * 3, (True, False, False), (True, True, False), (True, True, True)][:fits]
        assert way.count("--set") == fits - 1
    compiled = replace(BF16, compile=True)
    fits = 5
    tried.clear()
    remedies(FULL, SHORT, compiled, 128)
    assert tried == [(False,) * 3, (True, False, False)], "a compiled block keeps its inputs"


def test_one_gpu_of_80_gb_trains_every_stage_whole():
    """By the planner's model and its reserve of 8 GB, and what it says of the host."""
    layout = read_layout("gpu-offload")
    for stage in AFNEXT.stages:
        found = plan_stage(FULL, stage, for_stage(layout, stage), 1)
        assert found.peak < 76, stage.name
        (line,) = (line for line in lines(found) if "of the host" in line)
        assert line.startswith(f"  GB of the host for each GPU: {sum(found.host.values()):,.1f} (")
        assert line.endswith("of transfers a step at 50 GB/s")
    assert not any("of the host" in line for line in lines(plan_stage(FULL, SHORT, BF16, 8)))


def test_a_host_that_is_too_small_is_one_line(monkeypatch):
    layout = replace(BF16, offload_optimiser=True)
    account = Account(FULL, SHORT, layout, 8, longest(SHORT))
    need = 8 * sum(account.host().values())
    monkeypatch.setattr(planner, "available", lambda: need)
    check_host(FULL, SHORT, layout, 8, 8)
    monkeypatch.setattr(planner, "available", lambda: need - 1)
    check_host(FULL, SHORT, layout, 8, 7)
    with pytest.raises(
        ValueError, match=r"stage short: what is offloaded takes [\d.]+ GB of the host \(moments "
    ) as error:
        check_host(FULL, SHORT, layout, 8, 8)
    assert str(error.value).endswith("are free; optimiser: adamw8bit takes less")


def test_a_search_is_best_first_and_fits():
    found = search(FULL, SHORT, BF16, 8)
    rates = [rate for rate, _ in found]
    assert rates == sorted(rates, reverse=True)
    assert all(Account(FULL, SHORT, layout, 8, longest(SHORT)).needs() <= 80e9 for _, layout in found[::7])
    best = found[0][1]
    assert (best.ulysses, best.ring) == (1, 1)
    assert changed(BF16, best, 8) == {"recompute": best.recompute}
    assert changed(replace(BF16, recompute=best.recompute), best, 8) == {}
    assert search(FULL, SHORT, BF16, 8, memory=10.0) == []


def forecast(**more) -> Forecast:
    numbers = dict.fromkeys(Forecast.__dataclass_fields__, 0)
    numbers |= {"records": 100, "hours": 50.0, "samples_per_epoch": 100, "tokens_per_epoch": 30_000, "epochs": 2.0}
    numbers |= {"samples": 200, "tokens": 60_000, "optimiser_steps": 40}
    return Forecast(**{**numbers, **more})


def test_hours_are_steps():
    found = plan_stage(FULL, SHORT, BF16, 8, forecast=forecast())
    low, middle, high = found.hours
    assert low < middle < high
    assert middle == pytest.approx(40 * found.step.total / 3600)
    assert plan_stage(FULL, SHORT, BF16, 8, forecast=forecast(epochs=float("inf"))).hours is None
    clock = plan_stage(FULL, replace(SHORT, minutes=0.6), BF16, 8, forecast=forecast())
    assert clock.hours[1] == pytest.approx(0.01)
    assert plan_stage(FULL, SHORT, BF16, 8).hours is None


def test_times_to_read():
    seconds = (0.01234, 12.34, 185.0, 3600.0, 200_000.0, 7.2e6)
    assert [duration(x) for x in seconds] == ["0.0123 s", "12.3 s", "3.08 min", "1 h", "55.6 h", "2,000 h"]


def test_numbers_of_gpus_that_are_none():
    some = Curriculum("some", (SHORT,), {})
    for options in ({"gpus": 0}, {"memory": 0.0}, {"memory": float("nan")}):
        with pytest.raises(ValueError, match="are expected"):
            list(plan(some, BF16, **options))
