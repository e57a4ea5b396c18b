"""Blends that follow held-out losses: what each rule does, what is refused, and that a run goes on bit by bit."""

import gc
import itertools
import json
import math
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from afn_distributed.process import Process
from afn_model import AFNext, AFNextProcessor
from afn_model.cli import main
from afn_model.data import index
from afn_model.data.loader import Loader, Position
from afn_model.data.plan import Blend
from afn_model.train.curriculum import made_curriculum, read_curriculum, write_curriculum
from afn_model.train.evaluate import HeldLosses
from afn_model.train.held_records import held_sets
from afn_model.train.log import line
from afn_model.train.reblend import RULES, Reblend
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.stopping import Stopped
from afn_model.train.trainer import train
from afn_model.train.validate import check, data_config
from bench.resume import prepare

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
RECORDS, OWN, NOW = {"a": 10, "b": 30, "c": 60}, {"a": 2.0, "b": 1.0, "c": 0.5}, {"a": 1.0, "b": 2.0, "c": 1 / 6}
Q, P = np.array([2, 3, 3]) / 8, np.array([1, 6, 1]) / 8  # shares of 80 samples
LOSSES, BEFORE = {"a": 2.0, "b": 0.5, "c": 1.0}, {"a": 2.5, "b": 2.0, "c": 0.9}
L = np.array([2.0, 0.5, 1.0])


def by_hand(rule):
    """New shares before the floor."""
    weights = {
        "loss": Q * L**2,
        "doremi": P * np.exp(2 * np.array([0.5, 0.0, 0.25])),
        # A sample of a, b, c was worth 0.5 / (1 / 8), 1.5 / (6 / 8), −0.1 / (1 / 8), of which 4 is the most.
        "bandit": P * np.exp(2 * np.array([4.0, 2.0, -0.8]) / 4),
        "fixed": None,
    }[rule]
    return None if weights is None else weights / weights.sum()


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule):
    reference = {"a": 1.5, "b": 0.6, "c": 0.75} if rule == "doremi" else {}
    settings = Reblend(rule, {name: "h" for name in OWN}, rate=2.0, floor=0.2, reference=reference)
    found = settings.blend(OWN, NOW, RECORDS, LOSSES, BEFORE)
    shares = np.array([found[name] * RECORDS[name] / 80 for name in OWN])
    expected = by_hand(rule)
    assert shares == pytest.approx(P if expected is None else 0.8 * expected + 0.2 * Q)
    assert shares.sum() == pytest.approx(1), "an epoch keeps its samples"
    wild = settings.blend(OWN, NOW, RECORDS, {"a": 1e6, "b": 1e-300, "c": 0.0}, BEFORE)
    least = np.array([wild[name] / OWN[name] for name in OWN])
    assert rule == "fixed" or min(least) >= 0.2 * (1 - 1e-12), "the floor holds, and nothing overflows"
    if rule == "bandit":
        assert settings.blend(OWN, NOW, RECORDS, LOSSES) == NOW, "nothing is known of one measurement"
        assert settings.blend(OWN, NOW, RECORDS, LOSSES, LOSSES) == NOW
    own = {"a": 1.0, "b": 0.3, "c": 0.7}
    same = settings.blend(own, own, {"a": 301, "b": 77, "c": 1003}, dict.fromkeys(own, 0.6), BEFORE)
    assert rule in ("doremi", "bandit") or same == own, "what rounding changes is no other blend"
    unseen = settings.blend({**OWN, "d": 0.0}, {**NOW, "d": 0.0}, {**RECORDS, "d": 5}, LOSSES, BEFORE)
    assert unseen == pytest.approx({**found, "d": 0.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones in two datasets of 20 and 16 records, each with 6 held out; one has an answer at random."""
    folder = tmp_path_factory.mktemp("blend")
    prepare(folder)
    lines = (folder / "tones.jsonl").read_text().splitlines()
    for at, (name, some) in enumerate(
        (("a", lines[:20]), ("b", lines[20:36]), ("a-held", lines[36:42]), ("b-held", lines[42:]))
    ):
        records = [json.loads(text) for text in some]
        for number, record in enumerate(records):
            if name.startswith("b"):
                record["conversations"][1]["value"] = ("a low tone", "middle", "Which tone?")[(number * 7 + at) % 3]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        index.build(folder / f"{name}.jsonl")
    return folder


def plan(folder, rule="loss", **changes):
    stage = {"trains": "language_model", "context": 192, "batch_tokens": 384, "lr": 1e-2, "blend": {"a": 1, "b": 1}}
    stage |= {"epochs": math.inf, "steps": 6, "chunk": 40}
    stage["reblend"] = {"rule": rule, "every": 2, "held": {"a": "a-held.jsonl", "b": "b-held.jsonl"}, "samples": 3}
    datasets = {"a": "a.jsonl", "b": "b.jsonl"}
    return made_curriculum({"datasets": datasets, "stages": {"all": stage | changes}}, "blends", folder)


def go(folder, run, given, on_row=None, workers=0, every=9):
    layout = RunLayout(workers=workers, log_every=1, checkpoint_every=every, keep=1)
    shown = Options(show=False, tensorboard=False, on_row=on_row)
    train(given, folder / "base", run, layout=layout, options=shown)
    rows = [json.loads(text) for text in (run / "all" / "log.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "grad_norm", "eval_held", "blend_before", "blend")
    found = [{key: row[key] for key in keys if key in row} for row in rows]
    return found, load_file(run / "all" / "model" / "model.safetensors"), rows


class Crash(Exception):
    pass


def test_a_run_goes_on_bit_by_bit_around_a_change(folder, tmp_path):
    given, others = plan(folder), set(multiprocessing.active_children())
    whole, weights, rows = go(folder, tmp_path / "whole", given)
    changes = [row for row in whole if "blend" in row]
    assert [row["step"] for row in changes] == [1, 3, 5]
    assert changes[0]["blend_before"] == {"a": 1, "b": 1}
    assert all(after["blend_before"] == before["blend"] for before, after in itertools.pairwise(changes))
    assert all(row["blend"] != row["blend_before"] for row in changes[:2])
    assert changes[2]["blend"] == changes[2]["blend_before"], "nothing is left to blend at the end"
    for row in changes:
        assert 20 * row["blend"]["a"] + 16 * row["blend"]["b"] == pytest.approx(36)
    text = line(next(row for row in rows if "blend" in row))
    assert "held-out losses a " in text
    assert "blend a 1, b 1  now a " in text
    facts = json.loads((tmp_path / "whole" / "all" / "done.json").read_text())
    assert facts["position"][3] == 2
    assert 0 < facts["blends"][0]["seen"] < facts["blends"][1]["seen"] < facts["seen"]

    def ends(at, how):
        def on_row(row):
            if row["step"] == at:
                how()

        return on_row

    def killed():
        raise Crash

    def told():
        os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "parts"
    parts = (
        (1, 0, told, Stopped, 9, 2),  # a signal after step 0 stops it after step 1, before the blend changes
        (0, 4, killed, Crash, 3, 3),  # it goes on between two changes
        (1, 4, killed, Crash, 4, 4),  # it goes on right behind a change
    )
    for workers, at, how, error, every, left in parts:
        with pytest.raises(error):
            go(folder, run, given, ends(at, how), workers, every)
        newest = max(path.name for path in (run / "all" / "checkpoints").glob("step-*"))
        assert newest == f"step-{left:08d}"
    found, ended, _ = go(folder, run, given)
    assert found == whole
    assert all(torch.equal(value, weights[name]) for name, value in ended.items())
    gc.collect()  # what a crash has left in cycles
    assert set(multiprocessing.active_children()) <= others, "the loaders' workers of earlier blends are gone"


def test_a_bandit_measures_before_the_first_step_and_fixed_changes_nothing(folder, tmp_path):
    rows, _, _ = go(folder, tmp_path / "bandit", plan(folder, "bandit", steps=3))
    assert [(row["step"], "loss" in row) for row in rows] == [
        (0, False),
        (0, True),
        (1, True),
        (1, False),
        (2, True),
        (2, False),
    ]
    assert rows[0]["blend"] == rows[0]["blend_before"]
    assert rows[3]["blend"] != rows[3]["blend_before"]
    plain, weights, _ = go(folder, tmp_path / "plain", plan(folder, steps=3, reblend={}))
    rows, same, _ = go(folder, tmp_path / "fixed", plan(folder, "fixed", steps=3))
    assert [row for row in rows if "loss" in row] == plain
    assert all(torch.equal(value, weights[name]) for name, value in same.items())
    with pytest.raises(ValueError, match=r"finished with other settings: reblend\.every was 2"):
        go(
            folder,
            tmp_path / "fixed",
            plan(folder, "fixed", steps=3, reblend={**plan(folder, "fixed").stages[0].reblend, "every": 3}),
        )
    (folder / "a-other.jsonl").write_text((folder / "b-held.jsonl").read_text())
    index.build(folder / "a-other.jsonl")
    other = plan(folder, "fixed", steps=3)
    other.stages[0].reblend["held"]["a"] = str(folder / "a-other.jsonl")
    with pytest.raises(ValueError, match="finished with other data: a, held out was"):
        go(folder, tmp_path / "fixed", other)


def test_the_order_after_a_change_is_one_of_its_own(folder):
    processor = AFNextProcessor.from_pretrained(folder / "base")
    given = plan(folder)
    config = data_config(given, given.stages[0])
    first, second, third = (config, *(config.reblended({"a": 1.0, "b": 1.0}, n) for n in (1, 2)))
    orders = [[Blend(c).draw(i) for i in range(36)] for c in (first, second, third)]
    assert len({tuple(order) for order in orders}) == 3
    assert len({frozenset(order) for order in orders}) == 1, "all records again, whatever was read before"
    assert next(iter(Loader(second, processor, position=Position(change=1)))).position.change == 1
    with pytest.raises(ValueError, match="the blend has changed 1 times"):
        Loader(second, processor)


def test_losses_that_are_no_numbers(folder):
    given = plan(folder)
    model, processor = AFNext.from_pretrained(folder / "base"), AFNextProcessor.from_pretrained(folder / "base")
    held = HeldLosses(
        given, given.stages[0], model, processor, Process(0, 1, 0, torch.device("cpu"), False), None, False
    )
    assert held().keys() == {"a", "b"}
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(ValueError, match=r"^all: reblend: the held-out loss of dataset a is nan$"):
        held()


def test_what_is_refused(folder, tmp_path):
    good = plan(folder).stages[0].reblend
    for wrong, message in {
        "rule": (["loss"], r"rule is \['loss'\]; one of loss, doremi, bandit, fixed is expected"),
        "rule ": ("best", "rule is 'best'; one of loss, doremi, bandit, fixed is expected"),
        "every": (0, "every is 0; a whole number from 1"),
        "rate": (0.0, "rate is 0.0; a number above 0"),
        "floor": (0.0, "floor is 0.0; a share above 0 and up to 1"),
        "held": ({"a": "x"}, r"held names \['a'\]; the blend sees \['a', 'b'\]"),
        "reference": ({"a": 1.0, "b": 1.0}, "reference is .*; nothing but for doremi"),
        "speed": (1, "has no speed; it takes rule, held"),
    }.items():
        with pytest.raises(ValueError, match=f"^stage all: reblend:? ?{message[1]}"):
            plan(folder, reblend={**good, wrong.strip(): message[0]})
    with pytest.raises(ValueError, match=r"reference names \[\]"):
        plan(folder, "doremi")
    with pytest.raises(ValueError, match="stage all: reblend is for stages of sft and asr, not dpo"):
        plan(folder, method="dpo", batch_prompts=4)
    given = plan(folder, blend={"a": 0.1, "b": 1})
    with pytest.raises(ValueError, match=r"reblend: the floor leaves a no sample: 0\.1 of a β of 0\.1 for 20 records"):
        check(given, given.stages[0], 1)
    seen = plan(folder, reblend={**good, "held": {**good["held"], "b": "a.jsonl"}})
    with pytest.raises(ValueError, match=r"stage all: reblend: b: .* 20 held-out recordings are trained on"):
        go(folder, tmp_path, seen)
    fast = {"a": "a.jsonl", "b": {"path": "b.jsonl", "speed": 1.1}}
    stages = {"all": {"trains": "adaptor", "batch_tokens": 8192, "blend": {"a": 1, "b": 1}, "reblend": good}}
    stages["all"]["reblend"] = {**good, "held": {"a": "b", "b": "a-held.jsonl"}}
    other = made_curriculum({"datasets": fast, "stages": stages}, "blends", folder)
    with pytest.raises(ValueError, match=r"^stage all: reblend: a: dataset b has a speed, but held-out recordings are"):
        held_sets(other, other.stages[0])
    write_curriculum(plan(folder), folder / "written.yaml")
    assert read_curriculum(folder / "written.yaml").stages == plan(folder).stages
    assert main(["data", "step", str(folder / "written.yaml"), "all", "2", "--model", str(folder / "base")]) != 0
