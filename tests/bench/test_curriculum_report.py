"""The report on a curriculum: claims turn when numbers turn, an unfinished run is reported as far as it got."""

import copy
import json
import math
import sys

import pytest

from afn_model.bootstrap.tiny_curriculum import REWARDED
from bench import curriculum_report as report
from bench.curriculum_picture import spread

AXES = ("music", "talkers", "long", "skills", "multi_audio", "multi_turn", "safety", "multilingual", "text", "cot")
STEPS = {"base": 0, "pre-1": 80, "pre-2": 120, "mid-1": 900, "mid-2": 500, "post": 120, "cot-sft": 350, "cot-rl": 60}
BECOMES = {"mid-2": "Captioner", "post": "Instruct", "cot-rl": "Think"}
LEVELS = {
    "base": 0.1,
    "pre-1": 0.3,
    "pre-2": 0.5,
    "mid-1": 0.7,
    "mid-2": 0.9,
    "post": 0.9,
    "cot-sft": 0.9,
    "cot-rl": 0.9,
}
COT = {"cot-sft": 0.6, "cot-rl": 0.85}


def stage(name: str) -> dict:
    level, cot = LEVELS[name], COT.get(name, 0.05)
    example = {
        "id": "music-heldout-0-000000",
        "question": "<sound>\nflute | or_horn?",
        "answer": f"<think>{name}</think>",
        "truth": "flute",
    }
    return {
        "becomes": BECOMES.get(name, ""),
        "axes": {axis: cot if axis == "cot" else level for axis in AXES},
        "n": dict.fromkeys(AXES, 60),
        "reward": level + 0.08 * (name in ("post", "cot-sft", "cot-rl")),
        "temporal_with_reasoning": cot,
        "temporal_direct": 0.4,
        "timestamps_within_1_s": cot,
        "answers_with_most_timestamps_right": cot,
        "examples": [example, example | {"id": "music-heldout-0-000020", "truth": "the second"}],
    }


def scores(mean: float, n: int = 60) -> str:
    """Scores of records, 0 and 1, of about this mean."""
    return " ".join("1" if i < round(mean * n) else "0" for i in range(n))


def filled(stage: dict) -> dict:
    """The stage with scores of records that its means are those of."""
    means = stage["axes"] | {key: stage[key] for key in ("temporal_direct", "timestamps_within_1_s")}
    means["timestamps_within_1_s"] = stage["answers_with_most_timestamps_right"]
    shares = dict.fromkeys(REWARDED, " ".join([str(stage["reward"])] * 60))
    return stage | {"records": {name: scores(mean) for name, mean in means.items()}, "rewards": shares}


def reinforced(before: float, *after: float) -> dict:
    """A stage of reinforcement measured on two axes of different weights, the same on both."""
    start, *seeds = [{axis: scores(mean, 100) for axis in ("safety", "cot")} for mean in (before, *after)]
    after = {str(seed): found for seed, found in enumerate(seeds)}
    return {"start": "", "blend": {"safety": 2, "cot": 1}, "before": start, "after": after}


def results(*names: str) -> dict:
    names = names or tuple(STEPS)
    return {
        "seed": 0,
        "scale": 1.0,
        "stages": {name: filled(stage(name)) for name in names},
        "starts": 1,
        "seconds": dict.fromkeys(names, 300.0) | {"post_seeds": 90.0, "cot-rl_seeds": 30.0},
        "total_seconds": 300.0 * len(names) + 120,
        "machine": {
            "date": "2026-01-02T03:04:05+00:00",
            "machine": "x86_64",
            "cores": 2,
            "threads": 2,
            "load": 1.0,
            "python": "3.11.7",
            "torch": "2.11.0",
        },
        "reinforcement": {"post": reinforced(0.5, 0.7, 0.71, 0.72), "cot-rl": reinforced(0.6, 0.8, 0.8, 0.8)},
    }


def rows(name: str) -> list[dict]:
    some = []
    for step in range(0, STEPS[name], 20):
        row = {"stage": name, "step": step, "progress": (step + 1) / STEPS[name], "seconds": 2.0 * step, "loss": 1.0}
        if name in ("post", "cot-rl"):
            row |= {"reward": 0.5, "kl": 0.01, "rewards": {"exact": 0.4, "format": step / STEPS[name]}}
        else:
            row |= {"losses": {axis: math.exp(-step / 400) * (i + 1) for i, axis in enumerate(AXES)}}
        some.append(row)
    return some


def write_run(folder, found: dict):
    for name in found["stages"]:
        if name != "base":
            start = {"stage": "mid-1", "at": 0.5} if name == "mid-2" else {"stage": before(name), "at": 1.0}
            method = "grpo" if name in ("post", "cot-rl") else "sft"
            done = {"stage": {"method": method, "start": start}, "step": STEPS[name], "seconds": 200.0}
            (folder / name).mkdir(parents=True)
            (folder / name / "done.json").write_text(json.dumps(done))
            (folder / name / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found))
    return folder


def before(name: str) -> str:
    return list(STEPS)[list(STEPS).index(name) - 1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "whole", results())


def weigh(run, change=lambda found: None) -> dict[str, report.Claim]:
    """The claims by letter after a change to the results."""
    read = report.read(run)
    found = copy.deepcopy(read.results)
    change(found)
    found["stages"] = {name: filled(stage) for name, stage in found["stages"].items()}
    return dict(zip("abcdefg", report.claims(report.CurriculumReport(found, read.logs, read.trained)), strict=True))


def put(path: str, value):
    """A change: stages/mid-2/axes/music = value."""

    def change(found: dict) -> None:
        *way, last = path.split("/")
        for key in way:
            found = found[key]
        found[last] = value

    return change


def test_a_good_run_holds_in_everything(whole):
    found = weigh(whole)
    assert [claim.verdict for claim in found.values()] == ["holds"] * 7, found
    assert "Smallest margin +0.200" in found["b"].text
    assert "spread of Instruct's reward (largest − smallest of 3 seeds) 0.020" in found["b"].text
    assert found["f"].text.startswith("40.0 minutes")
    assert "other seeds of the stages of reinforcement, and more prompts, took 2.0 more" in found["f"].text
    assert "post (100 safety, 100 cot), from 0.500: seed 0 +0.200 ± 0.030 (6.6 errors); seed 1 " in found["g"].text
    assert "in it, and by axis safety +0.210 ± 0.041, cot +0.210 ± 0.041. cot-rl (" in found["g"].text


@pytest.mark.parametrize(
    ("letter", "path", "value", "words"),
    [
        ("a", "stages/mid-2/axes/talkers", 0.1, "Not above the bootstrap: talkers."),
        ("b", "reinforcement/post", reinforced(0.5, 0.65, 0.75, 0.85), "Smallest margin +0.150"),
        ("c", "stages/cot-rl/answers_with_most_timestamps_right", 0.5, "chance may have decided it"),
        ("d", "stages/post/temporal_direct", 0.86, "at its best (directly)"),
        ("d", "stages/post/temporal_with_reasoning", 0.99, "at its best (asked to reason)"),
        ("e", "stages/cot-sft/axes/long", 0.6, "cot-sft lowers long 0.90 → 0.60"),
        ("e", "stages/pre-2", LEVELS["pre-1"], "No change beyond two standard errors: pre-2"),
        ("f", "seconds/mid-1", 1500.0, "60.0 minutes"),
        ("g", "reinforcement/cot-rl", reinforced(0.6, 0.8, 0.61, 0.8), "seed 1 +0.010 ± 0.010 (1.0 errors)"),
    ],
)
def test_a_claim_turns_when_its_numbers_turn(whole, letter, path, value, words):
    change = put("stages/pre-2", stage("pre-1")) if path == "stages/pre-2" else put(path, value)
    found = weigh(whole, change)
    assert found[letter].verdict == "DOES NOT HOLD"
    assert words in found[letter].text
    others = {name: claim.verdict for name, claim in found.items() if name not in (letter, "e")}
    assert set(others.values()) == {"holds"}, others


def test_a_stage_of_reinforcement_helps_by_its_own_reward(whole):
    """On its own prompts, where what every stage is asked has not moved."""
    same = put("stages/cot-rl", stage("cot-sft") | {"becomes": "Think"})
    assert weigh(whole, same)["e"].holds
    rows = report.changes(report.read(whole))
    assert "reward on 200 prompts 0.60 → 0.80" in rows["cot-rl"][0]

    def flat(found):
        same(found)
        found["reinforcement"]["cot-rl"] = reinforced(0.6, 0.6, 0.8, 0.8)

    assert weigh(whole, flat)["e"].text.startswith("No change beyond two standard errors: cot-rl.")


def test_a_gain_within_the_error_says_so(whole):
    claim = weigh(whole, put("stages/mid-2/axes/music", 0.15))["a"]
    assert claim.holds
    assert claim.text.endswith("Above it by less than two standard errors of the difference: music.")


@pytest.mark.parametrize("found", [{}, {"post": reinforced(0.5, 0.6)}, {"post": reinforced(0.5, 0.6, 0.6)}])
def test_fewer_than_three_seeds_tell_nothing(whole, found):
    claims = weigh(whole, put("reinforcement", found))
    assert claims["b"].holds is None
    assert claims["b"].text.startswith("one seed only: 0.90 ± 0.02 → 0.98 ± 0.01, a difference of +0.080 ± ")
    assert claims["g"].holds is None


def test_a_run_that_was_stopped_proves_no_time(whole):
    claim = weigh(whole, put("starts", 2))["f"]
    assert claim.holds is None
    assert claim.text.startswith("At least 40.0 minutes")


def test_other_work_beside_a_run_is_told(whole):
    assert "Other work" not in weigh(whole)["f"].text
    found = weigh(whole, put("machine/load", 11.3))
    assert found["f"].text.endswith(" Other work ran beside it: a load of 11.3 on 2 cores.")


def test_a_small_run_proves_no_time(whole):
    assert weigh(whole, put("scale", 0.1))["f"].holds is None


def test_errors():
    """At 0 and 1 there is an error too, and it falls with the root of n."""
    assert report.error(0.5, 98) == pytest.approx(0.05)
    assert [report.error(0.0, 60), report.error(1.0, 60)] == pytest.approx([math.sqrt(61) / 62**1.5] * 2)


def test_one_measure_may_be_compared_with_another():
    think, instruct = filled(stage("cot-rl")), filled(stage("post"))
    ahead = report.apart(instruct, think, "temporal_with_reasoning", "temporal_direct")
    assert ahead.difference == pytest.approx(0.85 - 0.4)
    most = report.apart(instruct, think, "answers_with_most_timestamps_right")
    assert most.difference == pytest.approx(0.85 - 0.05)


def test_what_is_written(whole, tmp_path):
    text_file, picture = report.write(whole, tmp_path / "deep" / "v1.0")
    assert (text_file.name, picture.name) == ("v1.0.md", "v1.0.png")
    text = text_file.read_text("utf-8")
    assert "![held-out scores, losses and rewards over the stages](v1.0.png)" in text
    assert "mid-1 900 steps (SFT) in 200 s" in text
    assert "post 120 steps (GRPO) in 200 s" in text
    assert "2 CPU cores (x86_64" in text
    assert "| talkers | 0.10 | 0.30 | 0.50 | 0.70 | 0.90 | 0.90 | 0.90 | 0.90 | 60 |" in text
    assert "| reward | 0.10 | 0.30 | 0.50 | 0.70 | 0.90 | 0.98 | 0.98 | 0.98 | 300 |" in text
    assert "| mid-2 | mid-1 at 0.5 of its way (compared with its end) |" in text
    assert "**(f) The whole takes less than 60 minutes: holds.**" in text
    shown = [line for line in text.splitlines() if line.startswith("| music | &#60;sound&#62; flute \\| or\\_horn? |")]
    assert len(shown) == 1, "the first example of an axis, and no other"
    assert shown[0].endswith(
        "| &#60;think&#62;mid-2&#60;/think&#62; | &#60;think&#62;post&#60;/think&#62; | "
        "&#60;think&#62;cot-rl&#60;/think&#62; |"
    )
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(picture.read_bytes()[16:20], "big") == 1600


@pytest.mark.parametrize("count", [1, 3, 5])
def test_an_unfinished_run(tmp_path, count):
    found = results(*list(STEPS)[:count])
    del found["machine"], found["reinforcement"]
    run = write_run(tmp_path / "run", found)
    if count == 3:
        (run / "pre-2" / "done.json").unlink()
    text = report.write(run)[0].read_text("utf-8")
    assert (run / "report.png").stat().st_size > 5000
    assert f"The run is unfinished: {', '.join(list(STEPS)[count:])} not evaluated yet." in text
    verdicts = {letter: claim.verdict for letter, claim in weigh(run).items()}
    assert verdicts == dict.fromkeys("abcdefg", "cannot be told") | ({"a": "holds"} if count == 5 else {})
    assert "(Think)" not in text
    if count == 3:
        assert "pre-2 101 steps (SFT) in 200 s" in text, "from the last row of its log"


def test_labels_keep_apart_and_near():
    assert spread([0.5, 0.1, 0.9], 0.05) == pytest.approx([0.5, 0.1, 0.9])
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.0, 0.0, 1.0], 0.1) == pytest.approx([0.0, 0.1, 1.0])


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["curriculum_report", str(tmp_path)])
    for written, words in (
        (None, "no such file"),
        ("{", "results.json: Expecting"),
        ('{"stages": {}}', "no stage has"),
        ('{"stages": {"base": {}}}', "scores of single records are missing"),
    ):
        if written is not None:
            (tmp_path / "results.json").write_text(written)
        with pytest.raises(SystemExit, match=words) as stopped:
            report.main()
        assert "\n" not in str(stopped.value.code)
