"""GRPO: it learns what is rewarded, stands still where nothing is, and reports what happened."""

import copy
import math
import random

import pytest
import torch

from afn_model.afnext import AFNext
from afn_model.audio.recording import Audio
from afn_model.config import AudioConfig
from afn_model.data.loader import GlobalBatch, MicroBatch, Position
from afn_model.data.records import Sample
from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor
from afn_model.train import grpo
from afn_model.train.activation_checkpoint import checkpoint_blocks
from afn_model.train.grpo import GRPO, GRPOSettings, advantages, frozen_reference
from tests import tiny
from tests.budget import assert_same_but_rounding, assert_within
from tests.orders import in_orders
from tests.tiny import noise, record

WORDS = ("red", "green", "blue", "white", "black", "grey", "brown", "pink")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = {"sky?": "blue", "grass?": "green", "snow?": "white", "coal?": "black"}


def build() -> tuple[AFNext, AFNextProcessor]:
    processor = tiny.processor([*WORDS, *QUESTIONS, "user", "assistant"], 320, chat_template=TEMPLATE)
    torch.manual_seed(0)
    audio = AudioConfig(width=64, layers=1, heads=1, ffn=64)
    return AFNext(tiny.config(processor, width=64, layers=2, audio=audio)), processor


@pytest.fixture(scope="module")
def warmed() -> tuple[AFNext, AFNextProcessor]:
    """A model that has learnt to answer any question by some colour, each equally often."""
    model, processor = build()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    rng = random.Random(0)
    for _ in range(60):
        batch = processor(
            [
                [{"role": "user", "content": question}, {"role": "assistant", "content": rng.choice(WORDS)}]
                for question in QUESTIONS
                for _ in range(4)
            ],
            training=True,
        )
        model.loss(batch).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model, processor


@pytest.fixture
def pair(warmed):
    model, processor = warmed
    return copy.deepcopy(model), processor


def asks(question: str, *rewards: dict, audio: Audio | None = None, name: str = "") -> Sample:
    parts = (question,) if audio is None else (audio, question)
    turns = [Turn("user", parts), Turn("assistant", ("never shown",))]
    return Sample(name or question, turns, 0.0, "text", "", "", rewards, {})


def colours() -> list[Sample]:
    return [asks(question, {"kind": "exact", "answer": answer}) for question, answer in QUESTIONS.items()]


def step_of(samples: list[Sample], number: int = 0) -> GlobalBatch:
    micro = MicroBatch(None, samples, [sample.axis for sample in samples], [])
    return GlobalBatch([micro], Position(0, number), len(samples))


def method(pair, reference=None, seed: int = 1, **settings) -> GRPO:
    model, processor = pair
    found = GRPOSettings(**{"group": 8, "max_new_tokens": 6, "kl": 0.0, **settings})
    reference = frozen_reference(model) if found.kl and reference is None else reference
    return GRPO(model, processor, found, reference, seed=seed)


def gradients(one: GRPO, step: GlobalBatch) -> dict[str, torch.Tensor]:
    """Gradients of the first update."""
    one.model.zero_grad()
    losses = next(one.updates(step))
    for loss in losses:
        loss().backward()
    return {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}


def run(one: GRPO, steps: int, lr: float = 2e-3) -> list[dict]:
    """Metrics of every step."""
    optimiser = torch.optim.AdamW(one.model.parameters(), lr, weight_decay=0.0)
    rows = []
    for number in range(steps):
        for losses in one.updates(step_of(colours(), number)):
            for loss in losses:
                loss().backward()
            torch.nn.utils.clip_grad_norm_(one.model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        rows.append(one.metrics())
    return rows


def test_the_reference_of_a_model_that_recomputes_is_its_own(pair):
    model, processor = pair
    checkpoint_blocks(model, "full")
    reference = frozen_reference(model)
    batch, answers = processor([[{"role": "user", "content": "sky?"}]]), [[[20, 30, 40]]]
    with torch.no_grad():
        before = model.answer_logprobs(batch, answers)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        assert torch.equal(reference.answer_logprobs(batch, answers), before)
        assert not torch.equal(model.answer_logprobs(batch, answers), before)


@pytest.mark.parametrize("seed", [1, 2])
def test_it_learns_what_is_rewarded(pair, seed):
    rows = run(method(pair, kl=0.01, group=16, seed=seed), 60, lr=1e-3)
    start = sum(row["reward"] for row in rows[:3]) / 3
    end = sum(row["reward"] for row in rows[-10:]) / 10
    assert start < 0.3, "one colour of eight is right"
    assert end >= 0.95
    assert rows[-1]["rewards"] == {"exact": rows[-1]["reward"]}
    assert rows[0]["kl"] == 0 < rows[-1]["kl"]
    assert rows[-1]["entropy"] < 0.5 * rows[0]["entropy"]
    assert max(row["mismatch_max"] for row in rows) < 1e-4
    assert all(row["mismatch"] <= row["mismatch_max"] for row in rows)
    assert all(row["clip_share"] == 0 for row in rows), "with one update nothing has moved yet"
    assert 2 <= rows[-1]["length"] <= 6


def test_answers_of_the_first_prompts_are_kept(pair):
    one = method(pair, prompts=1, group=4)
    samples = [asks(question, {"kind": "exact", "answer": answer}, name="a") for question, answer in QUESTIONS.items()]
    next(one.updates(step_of(samples)))
    (kept,) = one.answers
    assert kept["id"] == "a"
    assert len(kept["answers"]) == 4
    for answer in kept["answers"]:
        assert answer.keys() == {"text", "reward", "rewards"}
        assert answer["reward"] == answer["rewards"]["exact"]
    next(one.updates(step_of([])))
    assert one.answers == []


def test_the_same_seed_gives_the_same_bits(pair):
    model, processor = pair
    runs = [run(method((copy.deepcopy(model), processor), kl=0.01, seed=seed), 4) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_zero_advantage_moves_nothing(pair):
    model, _ = pair
    before = copy.deepcopy(model.state_dict())
    same = [asks(q, {"kind": "constraint", "name": "words", "max": 9}) for q in QUESTIONS]
    for settings in ({}, {"kl": 0.1}):
        one = method(pair, **settings)
        found = gradients(one, step_of(same))
        assert found, "there was something to train"
        assert all(not gradient.any() for gradient in found.values())
        optimiser = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
        optimiser.step()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_reference_pulls_back(pair):
    model, _ = pair
    reference = frozen_reference(model)
    run(method(pair), 10)
    same = [asks(q, {"kind": "constraint", "name": "words", "max": 9}) for q in QUESTIONS]

    one = method(pair, reference, kl=1.0, group=16)
    (losses,) = one.updates(step_of(same))
    before = sum(loss() for loss in losses)
    before.backward()
    assert before > 0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
        assert sum(loss() for loss in losses) < before


def test_the_loss_is_the_formula(pair):
    """Against loops over answers and tokens, at a policy that has moved away from the old one and the reference."""
    model, _ = pair
    one = method(pair, kl=0.3, updates=2, clip=0.1, group=6)
    step = step_of(colours())
    updates = one.updates(step)
    for loss in next(updates):
        loss().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.3 * parameter.grad
    losses = next(updates)
    found = sum(loss().item() for loss in losses)
    (one_pass,) = [loss.args[0] for loss in losses]
    groups = [[r.tokens for r in one_pass.rollouts[i : i + 6]] for i in range(0, 24, 6)]
    with torch.no_grad():
        now = model.answer_logprobs(one_pass.batch, groups).tolist()
    at, expected, clipped, tokens = 0, 0.0, 0, 0
    for rollout, advantage in zip(one_pass.rollouts, one_pass.advantages.tolist(), strict=True):
        answer = 0.0
        for t in range(at, at + len(rollout.tokens)):
            ratio = math.exp(now[t] - float(one_pass.old[t]))
            d = float(one_pass.reference[t]) - now[t]
            answer += min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage) - 0.3 * (math.exp(d) - d - 1)
            clipped += (advantage > 0 and ratio > 1.1) or (advantage < 0 and ratio < 0.9)
            tokens += 1
        expected -= answer / len(rollout.tokens) / 24
        at += len(rollout.tokens)
    # 24 answers' terms of about 1, each of a few roundings, and their mean.
    bound = 8 * torch.finfo(torch.float32).eps * (1 + abs(expected))
    assert_within(torch.tensor(found), torch.tensor(expected), bound)
    assert clipped > 0
    assert next(updates, None) is None
    assert one.metrics()["clip_share"] == pytest.approx(clipped / (2 * tokens))


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0.3, 0.3], [0.1, 0.2, 0.3, 0.4]])
    found = advantages(rewards, 1e-4).view(3, 4)
    assert found[1].tolist() == [0.0] * 4
    # A few roundings of rewards, means and deviations of at most 1, divided by the smallest deviation.
    exact = torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64) / (0.1875**0.5 + 1e-4)
    assert_within(found[0], exact, 4 * torch.finfo(torch.float32).eps)
    assert_within(found.sum(1), torch.zeros(3), 4 * torch.finfo(torch.float32).eps / 0.11)


def test_passes_add_up_to_the_whole(pair):
    """Prompts one by one, all together, or on two ranks: the same answers and the same gradient."""
    whole = in_orders(lambda: gradients(method(pair, prompts=4), step_of(colours())))
    assert_same_but_rounding(gradients(method(pair, prompts=1), step_of(colours())), whole)
    on_ranks = []
    for half in (colours()[:2], colours()[2:]):
        one = method(pair, prompts=1)
        # Both ranks have two passes and 16 answers.
        one.gather = lambda tensor: 2 * tensor
        on_ranks.append(gradients(one, step_of(half)))
    first, second = on_ranks
    assert_same_but_rounding({name: first[name] + second[name] for name in first}, whole)


def test_a_rank_without_prompts_works_along(pair):
    one = method(pair, kl=0.1)
    others = [1.0, 1.0, 0.0]  # another rank has prompts for two passes
    one.gather = lambda tensor: tensor + others.pop(0)
    prompts = list(one.prompt_groups(step_of([])))
    one.gather, one.prompt_groups = (lambda tensor: tensor), (lambda step: prompts)
    (losses,) = one.updates(step_of([]))
    assert len(losses) == 2
    for loss in losses:
        loss().backward()
    assert all(not p.grad.any() for p in one.model.parameters() if p.grad is not None)
    assert "reward" not in one.metrics(), "this rank and, here, all others had none"


def test_bad_prompts_are_skipped_and_reported(pair, tmp_path):
    good = record(tmp_path / "good.wav", 0.5)
    rewards = {"kind": "exact", "answer": "red"}
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    samples = [
        asks("a?", rewards, audio=Audio(str(tmp_path / "none.wav")), name="absent"),
        asks("b?", rewards, audio=Audio(good), name="good"),
        asks("c?", rewards, audio=Audio(str(tmp_path / "broken.wav")), name="broken"),
        asks("d?", name="unrewarded"),
        asks("e?", {"kind": "judge", "rubric": "kind"}, name="unjudged"),
        asks("why? " * 600, rewards, name="long"),
    ]
    step = step_of(samples)
    one = method(pair)
    assert gradients(one, step)
    one.collect()
    assert one.metrics()["length"] > 0
    bad = dict(step.micro[0].bad)
    assert list(bad) == ["absent", "broken", "unrewarded", "unjudged", "long"]
    assert "none.wav" in bad["absent"]
    assert bad["unjudged"] == "no rewards without a judge"
    assert "no room for an answer" in bad["long"]
    (losses,) = method(pair).updates(step_of(samples[:1]))
    assert losses == []


def test_a_malformed_reward_stops_the_run(pair):
    with pytest.raises(ValueError, match="x17: reward kind 'exactly' is none of"):
        next(method(pair).updates(step_of([asks("sky?", {"kind": "exactly"}, name="x17")])))


def test_audio_is_encoded_once_where_the_encoder_is_frozen(pair):
    model, _ = pair
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    calls = []
    hook = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    heard = asks("sky?", {"kind": "exact", "answer": "blue"}, audio=Audio(noise(0.5), 16_000))
    one = method(pair, kl=0.1)
    reference = one.reference
    assert reference.encoder.conv1.weight is model.encoder.conv1.weight
    gradients(one, step_of([heard]))
    hook.remove()
    assert len(calls) == 1


def test_the_reference_copies_what_trains_and_stays(pair):
    model, _ = pair
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    reference = frozen_reference(model)
    own = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert (own[name] is parameter) == name.startswith("encoder"), name
        assert torch.equal(own[name], parameter)
        assert not own[name].requires_grad
    before = copy.deepcopy(reference.state_dict())
    run(method(pair, reference, kl=0.1), 2)
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert not torch.equal(model.lm_head.weight, reference.lm_head.weight)
    assert frozen_reference(model, torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == torch.float32


def test_the_judge_is_fair_to_a_group(pair, monkeypatch):
    """Where the judge fails for one answer, nobody in the group is graded."""
    graded = []

    class Stub:
        def grades(self, cases):
            graded.extend(cases)
            return [None if case.question == "sky?" and i == 0 else 0.5 for i, case in enumerate(cases)]

    monkeypatch.setattr(grpo, "Judge", lambda endpoint: Stub())
    one = method(pair, judge={"url": "http://localhost:1/v1", "model": "m"}, group=2)
    judged = [asks(q, {"kind": "judge", "rubric": "kind"}, {"kind": "constraint", "name": "lower"}) for q in QUESTIONS]
    gradients(one, step_of(judged))
    one.collect()
    found = one.metrics()
    assert [case.question for case in graded] == [q for q in QUESTIONS for _ in range(2)]
    assert {case.rubric for case in graded} == {"kind"}
    assert found["judge_failed"] == 1
    assert found["rewards"]["judge"] == 0.5
    assert one.tally.sums["count judge"] == 6
    assert one.tally.sums["count constraint"] == 8


@pytest.mark.parametrize(
    "settings",
    [{"group": 1}, {"clip": 0}, {"kl": -1}, {"updates": 0}, {"temperature": 0}, {"top_p": 0}, {"max_new_tokens": 0}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="expected"):
        GRPOSettings(**settings)


def test_a_divergence_needs_a_reference(pair):
    model, processor = pair
    with pytest.raises(ValueError, match="no reference"):
        GRPO(model, processor, GRPOSettings())
    with pytest.raises(ValueError, match="judge: url"):
        GRPO(model, processor, GRPOSettings(kl=0.0, judge={"url": "x", "model": "m"}))
