"""DPO: its formula, what it learns, pairs that cannot be used, and a run that goes on where it stopped."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from afn_model.audio.recording import Audio
from afn_model.data import index
from afn_model.data.loader import GlobalBatch, MicroBatch, Position
from afn_model.data.records import Sample, check
from afn_model.prompt.conversation import Turn
from afn_model.train.curriculum import read_curriculum
from afn_model.train.dpo import DPO, DPOSettings, prepare_pair
from afn_model.train.grpo import frozen_reference
from afn_model.train.prepare import DONE
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from bench.resume import prepare
from tests.budget import assert_within
from tests.model.train.lending import lent_in_order
from tests.tiny import noise, tiny

QUESTIONS = ("What is said?", "Which is louder?", "When does the dog bark?")


def pairs() -> list[Sample]:
    """Three questions, one with audio; the preferred answers are of other lengths than the others."""
    turns = [[Turn("user", (question,))] for question in QUESTIONS]
    turns[1] = [Turn("user", (Audio(noise(0.4, 1), 16_000), QUESTIONS[1]))]
    answers = [("A dog barks.", "One two three."), ("One", "A dog barks at 3.2 s."), ("A dog barks at 3.2 s.", "two")]
    return [Sample(f"p{i}", turns[i], 0.0, chosen=a, rejected=b) for i, (a, b) in enumerate(answers)]


def step_of(samples: list[Sample]) -> GlobalBatch:
    return GlobalBatch([MicroBatch(None, samples, [""] * len(samples), [])], Position(), len(samples))


def method(**settings) -> DPO:
    model, processor = tiny()
    return DPO(model, processor, DPOSettings(**settings), frozen_reference(model))


@pytest.fixture(scope="module")
def moved() -> tuple:
    """(model, processor, reference): a policy that has gone a little way from its reference."""
    model, processor = tiny()
    reference = frozen_reference(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
    return model, processor, reference


@pytest.mark.parametrize(("wrong", "budget"), [(0.0, None), (0.2, 1)])
def test_the_loss_is_the_formula(moved, wrong, budget):
    """Against loops over pairs, each answer with its own copy of the prompt."""
    model, processor, reference = moved
    one = DPO(model, processor, DPOSettings(beta=0.3, label_smoothing=wrong, pass_tokens=budget), reference)
    (losses,) = one.updates(step_of(pairs()))
    assert len(losses) == (1 if budget is None else 3)
    with torch.no_grad():
        found = float(sum(loss() for loss in losses))

    expected, margins, size = 0.0, [], 0.0
    for sample in pairs():
        gained = []
        for text in (sample.chosen, sample.rejected):
            turns = [*sample.turns, Turn("assistant", (text,))]
            batch = processor.pack([processor.prepare(turns, training=True)])
            with torch.no_grad():
                # Supervised are the answer's tokens and the one that closes the turn.
                logs = [-float(network.double().loss(batch, total=1.0)) for network in (model, reference)]
            gained.append(0.3 * (logs[0] - logs[1]))
            size += sum(map(abs, logs))
        margins.append(gained[0] - gained[1])
        expected -= (1 - wrong) * math.log(1 / (1 + math.exp(-margins[-1]))) / 3
        expected -= wrong * math.log(1 / (1 + math.exp(margins[-1]))) / 3
    model.float(), reference.float()
    # Log-probabilities of some 10 are sums over a network of a few hundred roundings; their sum enters with weight 0.3.
    assert_within(torch.tensor(found), torch.tensor(expected), 300 * torch.finfo(torch.float32).eps * size)
    metrics = one.metrics()
    assert metrics["reward_margin"] == pytest.approx(sum(margins) / 3, rel=1e-3)
    assert metrics["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 3)
    assert metrics["reward_margin"] == pytest.approx(metrics["reward_chosen"] - metrics["reward_rejected"], rel=1e-4)


def test_it_learns_what_is_preferred():
    one = method(beta=0.5)
    optimiser = torch.optim.AdamW(one.model.parameters(), 3e-4)
    rows = []
    for _ in range(4):
        (losses,) = one.updates(step_of(pairs()))
        for loss in losses:
            loss().backward()
        optimiser.step()
        optimiser.zero_grad()
        rows.append(one.metrics())
    assert rows[0] == {"reward_margin": 0.0, "accuracy": 0.0, "reward_chosen": 0.0, "reward_rejected": 0.0}
    assert rows[-1]["accuracy"] == 1.0
    assert rows[-1]["reward_margin"] > 1.0
    assert one.work()["tokens"] > 0


def test_the_reference_is_asked_first_and_given_back():
    model, processor = tiny()
    lent, order = lent_in_order(model)
    one = DPO(model, processor, DPOSettings(pass_tokens=1), lent)
    for loss in next(one.updates(step_of(pairs()[:2]))):
        loss().backward()
    assert order == ["lent", *[("reference", False)] * 2, "back", *[("policy", True)] * 2]


def test_pairs_that_cannot_be_used_and_a_rank_without_pairs():
    one = method()
    one.context, samples = 512, pairs()[:1]
    bad = [replace(samples[0], id="half", rejected=""), replace(samples[0], id="long", chosen="dog " * 600)]
    step = step_of([*samples, *bad])
    (losses,) = one.updates(step)
    assert len(losses) == 1
    assert step.micro[0].samples == samples
    (half, why), (long, tokens) = step.micro[0].bad
    assert (half, why) == ("half", "no pair: chosen and rejected are expected")
    assert (long, tokens.partition(" ")[2]) == ("long", "tokens of prompt and answer, but the context is 512")

    one.sharded, others = True, [1.0, 1.0, 0.0, 1.0]  # another rank has two passes, and a pair
    one.gather = lambda tensor: tensor + (others.pop(0) if others else 0.0)
    (losses,) = one.updates(step_of([]))
    assert len(losses) == 2
    for loss in losses:
        assert loss.args[0].packed.batch.pcm is not None
        loss().backward()
    assert all(not p.grad.any() for p in one.model.parameters() if p.grad is not None)
    assert one.metrics() == {}


def test_an_answer_has_the_tokens_that_training_supervises():
    _, processor = tiny()
    for sample in pairs():
        pair = prepare_pair(processor, sample, DPOSettings(), 512)
        for text, tokens in zip((sample.chosen, sample.rejected), pair.answers, strict=True):
            whole = processor.prepare([*sample.turns, Turn("assistant", (text,))], training=True)
            assert whole.ids[whole.labels != -100].tolist() == tokens
            assert whole.ids[: len(pair.prepared.ids)].tolist() == pair.prepared.ids.tolist()


@pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
def test_a_run_goes_on_with_the_same_bits(tmp_path):
    prepare(tmp_path, steps=4)
    records = [json.loads(line) for line in (tmp_path / "tones.jsonl").read_text().splitlines()]
    for record in records:
        said = record["conversations"].pop()["value"]
        record |= {"chosen": said, "rejected": "a tone" if "low" in said else "a low tone"}
    (tmp_path / "tones.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    index.build(tmp_path / "tones.jsonl", check=check)
    plan = read_curriculum(tmp_path / "tones.yaml")
    stage = replace(plan.stages[0], method="dpo", batch_prompts=4, batch_tokens=0, dpo={"beta": 0.5})

    def go(run):
        options = Options(show=False, tensorboard=False)
        layout = RunLayout(workers=0, log_every=1, checkpoint_every=2, keep=9)
        train(replace(plan, stages=(stage,)), tmp_path / "base", run, layout=layout, options=options)
        rows = [json.loads(line) for line in (run / "all" / "log.jsonl").read_text().splitlines()]
        return [(row["step"], row["loss"], row["grad_norm"], row["reward_margin"]) for row in rows]

    whole = go(tmp_path / "run")
    assert [row[0] for row in whole] == [0, 1, 2, 3]
    assert whole[0][1] == pytest.approx(math.log(2))
    assert len({row[1] for row in whole}) == 4
    for left in (DONE, "model", "checkpoints/step-00000004"):
        path = tmp_path / "run" / "all" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert go(tmp_path / "run") == whole


@pytest.mark.parametrize("settings", [{"beta": 0}, {"beta": math.inf}, {"label_smoothing": 0.5}, {"pass_tokens": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="are expected"):
        DPOSettings(**settings)


def test_it_needs_a_reference():
    with pytest.raises(ValueError, match="DPO needs a reference"):
        DPO(*tiny(), DPOSettings(), None)
