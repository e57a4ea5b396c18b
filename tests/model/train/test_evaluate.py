"""Held-out evaluation while a stage trains: it disturbs nothing, goes on after a stop, and says which model is kept."""

import copy
import json
import math
import os
import signal
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_model import AFNext, AFNextProcessor
from afn_model.data import index
from afn_model.data.loader import GlobalBatch, MicroBatch
from afn_model.data.plan import Blend, Position, question
from afn_model.data.records import parse_sample
from afn_model.infer.answer import answer
from afn_model.infer.sampling_params import SamplingParams
from afn_model.scoring import rewards
from afn_model.train.checkpoint import Checkpoints
from afn_model.train.curriculum import read_curriculum
from afn_model.train.dpo import DPO, DPOSettings
from afn_model.train.evaluate import Evaluator, reference, scored, undisturbed
from afn_model.train.grpo import GRPO, GRPOSettings, frozen_reference
from afn_model.train.held_records import held_out
from afn_model.train.log import is_evaluation
from afn_model.train.resume import Progress
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.stopping import Stopped
from afn_model.train.trainer import train
from afn_model.train.validate import MODEL, data_config
from bench.resume import prepare
from tests.budget import assert_within
from tests.distributed.ranks import run

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
LAYOUT = RunLayout(workers=0, log_every=1, checkpoint_every=3, keep=1)
TRAINED = ("step", "loss", "grad_norm", "lr")
HELD = ("step", "eval_loss", "eval_losses", "eval_exact", "eval_wer", "best_step", "eval_reward", "eval_rewards")
EVAL = {"data": "held", "every": 2, "metrics": ["exact", "wer"], "max_new_tokens": 2, "samples": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The corpus of tones, cut into 36 records to train on and 12 held out, with what all methods train on."""
    folder = tmp_path_factory.mktemp("tones")
    prepare(folder)
    lines = []
    for record in map(json.loads, (folder / "tones.jsonl").read_text().splitlines()):
        true = record["conversations"][1]["value"]
        least = 0 if int(record["id"]) % 4 else 5  # words: no two ranks have the same rewards
        graded = [{"kind": "cer", "text": true}, {"kind": "constraint", "name": "words", "min": least, "weight": 0.5}]
        lines.append(json.dumps({**record, "chosen": true, "rejected": "a tone", "rewards": graded}) + "\n")
    for name, some in (("tones", lines[:36]), ("held", lines[36:])):
        (folder / f"{name}.jsonl").write_text("".join(some))
        index.build(folder / f"{name}.jsonl")
    text = (folder / "tones.yaml").read_text().replace("tones.jsonl}", "tones.jsonl, held: held.jsonl}")
    (folder / "tones.yaml").write_text(text)
    return folder


def go(folder, run, on_row=None, callbacks=(), **changes):
    plan = read_curriculum(folder / "tones.yaml")
    plan = replace(plan, stages=(replace(plan.stages[0], **{"steps": 5, **changes}),))
    options = Options(show=False, tensorboard=False, on_row=on_row, callbacks=callbacks)
    train(plan, folder / "base", run, layout=LAYOUT, options=options)
    rows = [json.loads(line) for line in (run / "all" / "log.jsonl").read_text().splitlines()]
    trained, held = ([row for row in rows if is_evaluation(row) == which] for which in (False, True))
    return [[{k: r.get(k) for k in keys} for r in some] for keys, some in ((TRAINED, trained), (HELD, held))]


METHODS = {
    "sft": {},
    "dpo": {"batch_prompts": 4},
    "grpo": {"batch_prompts": 4, "grpo": {"group": 4, "max_new_tokens": 4, "kl": 0, "dynamic_sampling": 1}},
}


def found_by(process, folder, method):
    """What an evaluation by a method finds on a rank, of a model that has moved away from its reference."""
    plan = read_curriculum(folder / "tones.yaml")
    stage = replace(plan.stages[0], method=method, eval={"data": "held", "metrics": ["cer"]}, **METHODS[method])
    model = AFNext.from_pretrained(folder / "base")
    given = model, AFNextProcessor.from_pretrained(folder / "base", pcm_dtype=torch.int16)
    trained = None
    if method == "dpo":
        trained = DPO(*given, DPOSettings(), frozen_reference(model), context=192, gather=processes.sum_over)
    if method == "grpo":
        trained = GRPO(*given, GRPOSettings(**stage.grpo), gather=processes.sum_over)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    evaluate = Evaluator(replace(plan, stages=(stage,)), stage, *given, process, None, False, trained)
    found = evaluate()
    assert evaluate() == found, "a second time, of recordings that were kept"
    return found, trained


@pytest.fixture(scope="module")
def alone(folder):
    """By method: what one rank finds, and the trained method."""
    here = Process(0, 1, 0, torch.device("cpu"), False)
    return {method: found_by(here, folder, method) for method in METHODS}


def held_samples(folder):
    return [parse_sample(json.loads(line), folder) for line in (folder / "held.jsonl").read_text().splitlines()]


def test_dpo_is_evaluated_by_its_loss_and_margins(folder, alone):
    found, method = alone["dpo"]
    samples = held_samples(folder)
    (losses,) = method.updates(GlobalBatch([MicroBatch(None, samples, [""] * 12)], Position(), 12))
    with torch.no_grad():
        loss = sum(one() for one in losses)
    expected = {"loss": float(loss), **method.metrics()}
    names = {"loss", "accuracy", "reward_margin", "reward_chosen", "reward_rejected"}
    assert expected.keys() == names
    assert found.keys() == {f"eval_{name}" for name in (*names, "samples", "bad", "cer")}
    assert (found["eval_samples"], found["eval_bad"]) == (12, 0)
    for name, value in expected.items():
        # Sums of answers' log-probabilities, β · some 40 nats, in float32 and another order.
        assert_within(torch.tensor(found[f"eval_{name}"]), torch.tensor(value), 2**-18 * (1 + abs(value)))


def test_grpo_is_evaluated_by_the_rewards_of_greedy_answers(folder, alone):
    found, method = alone["grpo"]
    model, processor = method.model, copy.copy(method.processor)
    asked = [question(sample.turns) for sample in held_samples(folder)]
    said = [one.text for one in answer(model, processor, asked, SamplingParams(max_new_tokens=4), batch_size=12)]
    graded = [
        rewards.reward(text, sample.rewards, [], []) for sample, text in zip(held_samples(folder), said, strict=True)
    ]
    assert found["eval_rewards"] == {kind: fmean(one[kind] for one in graded) for kind in ("cer", "constraint")}
    assert found["eval_reward"] == pytest.approx(fmean((one["cer"] + 0.5 * one["constraint"]) / 1.5 for one in graded))
    assert 0 < found["eval_reward"] < 1
    assert (found["eval_samples"], found["eval_bad"]) == (12, 0)


def same_on_this_rank(process, folder, alone):
    for method, expected in alone.items():
        found, _ = found_by(process, folder, method)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=2**-18), (method, name)


@pytest.mark.slow
def test_two_ranks_find_what_one_does(folder, alone):
    run(2, same_on_this_rank, folder, {method: found for method, (found, _) in alone.items()})


@pytest.mark.slow
def test_grpo_goes_on_after_a_stop(folder, tmp_path):
    """With prompts drawn again, and evaluations of which the best one is kept."""
    change = {"method": "grpo", **METHODS["grpo"], "eval": {"data": "held", "every": 2, "keep_best": True}}
    whole = go(folder, tmp_path / "whole", **change)
    assert [row["step"] for row in whole[1]] == [1, 3, 4]
    assert all(0 <= row["eval_reward"] <= 1 for row in whole[1])

    def stop(row):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="after step 4"):
        go(folder, tmp_path / "stop", on_row=stop, **change)
    assert go(folder, tmp_path / "stop", **change) == whole
    log = (tmp_path / "whole" / "all" / "log.jsonl").read_text().splitlines()
    assert any(row.get("draws", 1) > 1 for row in map(json.loads, log))


def weights(run):
    return load_file(run / "all" / MODEL / "model.safetensors")


@pytest.mark.slow
def test_it_disturbs_nothing_and_goes_on_after_a_stop(folder, tmp_path):
    plain, none = go(folder, tmp_path / "plain")
    assert none == []
    trained, held = go(folder, tmp_path / "eval", eval=EVAL)
    assert trained == plain
    without = weights(tmp_path / "plain")
    assert all(torch.equal(value, without[name]) for name, value in weights(tmp_path / "eval").items())
    assert [row["step"] for row in held] == [1, 3, 4]
    assert go(folder, tmp_path / "eval", on_row=lambda row: pytest.fail("trained again")) == [trained, held]
    # A signal before step 3 leaves that step's evaluation to the run that goes on.

    def stop(row):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="after step 4"):
        go(folder, tmp_path / "stop", on_row=stop, eval=EVAL)
    assert go(folder, tmp_path / "stop", eval=EVAL) == [trained, held]


def test_the_loss_is_the_mean_over_supervised_tokens(folder):
    plan = read_curriculum(folder / "tones.yaml")
    stage = replace(plan.stages[0], eval={"data": "held"})
    plan = replace(plan, stages=(stage,))
    model, processor = AFNext.from_pretrained(folder / "base"), AFNextProcessor.from_pretrained(folder / "base")
    here = Process(0, 1, 0, torch.device("cpu"), False)
    evaluate = Evaluator(plan, stage, model, processor, here, None, False)
    found = evaluate()
    assert found == evaluate()
    assert found["eval_samples"] == 12
    total = tokens = 0.0
    for record in (json.loads(line) for line in (folder / "held.jsonl").read_text().splitlines()):
        talk = [record["conversations"][0], record["conversations"][1]]
        batch = processor({"sound": str(folder / record["sound"]), "conversations": talk}, training=True)
        with torch.no_grad():
            total += float(model.loss(batch)) * batch.supervised
        tokens += batch.supervised
    assert found["eval_tokens"] == tokens
    # The recordings are int16 here and float32 there, and sums of some 50 float32 losses have another order.
    assert_within(torch.tensor(found["eval_loss"]), torch.tensor(total / tokens), 2**-15 * total / tokens)


@pytest.mark.slow
def test_the_best_is_kept_and_the_stage_ends_when_nothing_gets_better(folder, tmp_path):
    """A rate that destroys the model."""
    told = []

    class Told:
        def on_start(self, facts):
            told.append(facts["from_step"])

        def on_eval(self, row):
            told.append(row["step"])

        def on_end(self, folder):
            told.append(folder and folder.name)

    change = {"data": "held", "every": 1, "patience": 2, "keep_best": True}
    trained, held = go(folder, tmp_path, callbacks=(Told(),), eval=change, lr=3.0, warmup=0.0, steps=12)
    losses = [row["eval_loss"] for row in held]
    best = losses.index(min(losses))
    last = best + 2
    assert [row["step"] for row in held] == [row["step"] for row in trained] == list(range(last + 1))
    assert held[-1]["best_step"] == best
    assert told == [0, *range(last + 1), MODEL]
    names = sorted(path.name for path in (tmp_path / "all" / "checkpoints").glob("step-*"))
    assert names == [f"step-{best + 1:08d}", f"step-{last + 1:08d}"]
    assert_is_checkpoint(AFNext.from_pretrained(tmp_path / "all" / MODEL), tmp_path / "all" / "checkpoints" / names[0])
    facts = json.loads((tmp_path / "all" / "done.json").read_text())
    assert (facts["step"], facts["best_step"], facts["since_best"]) == (last + 1, best + 1, 2)


def test_a_checkpoint_holds_how_evaluations_went():
    progress = Progress(5, 40.0, 1.5, Position(1, 2, 0), [0.5], evaluated=4, best_step=2, best_value=0.25, since_best=1)
    facts = json.loads(json.dumps(progress.facts()))
    assert Progress.of(facts) == progress
    before = {name: facts[name] for name in ("step", "seen", "seconds", "position", "exported")}  # of an older version
    assert Progress.of(before) == Progress(5, 40.0, 1.5, Position(1, 2, 0), [0.5])


def assert_is_checkpoint(model, path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert Checkpoints(path.parent).load_weights(path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_held_back_is_not_trained_on(folder):
    plan = read_curriculum(folder / "tones.yaml", changes={"eval.share": "1e-1", "eval.patience": None})
    (stage,) = plan.stages
    training = data_config(plan, stage).records["tones"]
    held = held_out(plan, stage)["records"]["tones"]
    assert len(held) == 4
    assert sorted([*training, *held]) == list(range(36))
    blend = Blend(data_config(plan, stage))
    assert {blend.draw(i)[1] for i in range(len(blend.order))} == set(training)


def test_overlap_is_refused(folder, tmp_path):
    text = (folder / "tones.jsonl").read_text().splitlines()[5]
    record = json.loads(text) | {"sound": str(folder / "5.wav")}
    (tmp_path / "seen.jsonl").write_text(json.dumps(record) + "\n")
    index.build(tmp_path / "seen.jsonl")
    with pytest.raises(
        ValueError, match=r"stage all: eval: .*1 held-out recordings are trained on: record 0 .*tones\[5\]"
    ):
        go(folder, tmp_path / "run", eval={"data": str(tmp_path / "seen.jsonl")})
    assert not (tmp_path / "run" / "all").exists()


def test_scores():
    pairs = [
        ({"messages": [{"role": "assistant", "content": true}]}, said) for true, said in (("A b c.", "a b"), ("d", "d"))
    ]
    assert scored("exact", pairs) == 0.5
    assert scored("wer", pairs) == 1 / 4
    assert scored("cer", pairs) == 1 / 4
    assert math.isnan(scored("exact", []))
    assert scored("score", [({"truth": {"answer": "x"}}, "X!")]) == 1
    assert reference({"conversations": [{"from": "human", "value": "?"}]}) is None
    assert reference({"messages": [{"role": "user", "content": "?"}], "truth": {"answer": "x"}}) == "x"


def test_mode_and_random_states_are_what_they_were():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    model[1].eval()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with undisturbed(model):
        assert not model[0].training
        torch.rand(7)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.equal(torch.rand(3), expected)
