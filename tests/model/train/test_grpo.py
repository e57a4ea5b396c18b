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
from afn_model.hashing import key
from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor
from afn_model.train import grading
from afn_model.train.activation_checkpoint import checkpoint_blocks
from afn_model.train.grpo import GRPO, GRPOSettings, advantages, frozen_reference, number_of, overlong_penalty
from tests import tiny
from tests.budget import assert_same_but_rounding, assert_within
from tests.model.train.lending import lent_in_order
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


def differ(kept: dict) -> bool:
    return len({answer["reward"] for answer in kept["answers"]}) > 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_high": 0.4, "loss": "token", "importance_cap": None},
        {"scale": "none", "importance_cap": 1.05, "overlong": 2, "mask_truncated": True, "drop_equal": True},
    ],
    ids=["grpo", "dapo", "others"],
)
def test_the_loss_is_the_formula(pair, options):
    """Against loops over answers and tokens, at a policy that has moved away from the old one and the reference."""
    model, _ = pair
    one = method(pair, kl=0.3, updates=2, clip=0.1, group=6, max_new_tokens=3, temperature=1.6, **options)
    updates = one.updates(step_of(colours()))
    (first,) = next(updates)
    first().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.3 * parameter.grad
    (loss,) = next(updates)
    one_pass = loss.args[0]
    # As if sampler and trainer disagreed: by ratios from 1 / 1.3 to 1.3.
    generator = torch.Generator().manual_seed(0)
    one_pass.said = one_pass.old + math.log(1.3) * (2 * torch.rand(len(one_pass.old), generator=generator) - 1)
    found = loss().item()
    groups = one_pass.packed.answers
    with torch.no_grad():
        now = one_pass.packed.logprobs(model, 1.6).tolist()

    high, cap = options.get("clip_high", 0.1), one.settings.importance_cap or math.inf
    weights, terms, clipped, at = [], [], 0, 0
    trained = [kept for kept in one.answers if "drop_equal" not in options or differ(kept)]
    for group, kept in zip(groups, trained, strict=True):
        totals = []
        for answer, shown in zip(group, kept["answers"], strict=True):
            late = options.get("overlong", 0) and max(0, len(answer) - (3 - options["overlong"])) / options["overlong"]
            totals.append(shown["rewards"]["exact"] - late)
            assert shown["reward"] == pytest.approx(totals[-1])
        mean = sum(totals) / 6
        spread = (sum((total - mean) ** 2 for total in totals) / 6) ** 0.5 + 1e-4
        for answer, total in zip(group, totals, strict=True):
            advantage = 0.0 if len(set(totals)) == 1 else (total - mean) / (1.0 if "scale" in options else spread)
            counts = not ("mask_truncated" in options and answer[-1] not in model.config.stop_token_ids)
            terms.append(0.0)
            weights.append(counts * (1 if one.settings.loss == "answer" else len(answer)))
            for t in range(at, at + len(answer)):
                ratio = math.exp(now[t] - float(one_pass.old[t]))
                sampled = 1.0 if cap == math.inf else min(math.exp(float(one_pass.old[t] - one_pass.said[t])), cap)
                d = float(one_pass.reference[t]) - now[t]
                clip = min(max(ratio, 0.9), 1 + high)
                term = sampled * min(ratio * advantage, clip * advantage) - 0.3 * (math.exp(d) - d - 1)
                terms[-1] += counts * term / (len(answer) if one.settings.loss == "answer" else 1)
                clipped += counts and ((advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 0.9))
            at += len(answer)
    expected = -sum(terms) / sum(weights)
    # 24 answers' terms of about 1, each of a few roundings, and their mean.
    bound = 8 * torch.finfo(torch.float32).eps * (1 + abs(expected))
    assert_within(torch.tensor(found), torch.tensor(expected), bound)
    assert clipped > 0
    if "mask_truncated" in options:
        assert 0 < sum(weights) < len(weights), "some answers are cut off, and they do not count"
    assert next(updates, None) is None
    if not options:
        assert one.metrics()["clip_share"] == pytest.approx(clipped / (2 * at))


def test_groups_that_agree_are_left_out(pair):
    """What is left trains as it would alone."""
    same = [asks(q, {"kind": "constraint", "name": "words", "max": 9}) for q in QUESTIONS]
    one = method(pair, drop_equal=True, prompts=8)
    assert gradients(one, step_of([*colours(), *same]))
    one.collect()
    left = [kept["id"] for kept in one.answers if differ(kept)]
    assert 0 < len(left) < 5
    assert one.metrics()["counted"] == len(left) / 8
    assert one.metrics()["reward"] > 0.5, "they are part of what is logged"
    whole = in_orders(lambda: gradients(method(pair, drop_equal=True), step_of(colours())))
    assert_same_but_rounding(gradients(method(pair, drop_equal=True), step_of([*colours(), *same])), whole)
    (losses,) = method(pair, drop_equal=True).updates(step_of(same))
    assert losses == []


def drawn(pair, *draws: list[Sample], wanted: int, **options) -> tuple[dict, GlobalBatch, list[list[list[int]]]]:
    """What a step logs that may draw so many global batches, the batch, and the answers that it trains on."""
    first, *others = (step_of(samples, number) for number, samples in enumerate(draws))
    first.following = iter(others)
    one = method(pair, group=16, dynamic_sampling=len(draws) - 1)
    one.wanted = wanted
    for name, value in options.items():
        setattr(one, name, value)
    losses = next(one.updates(first))
    one.collect()
    return one.metrics(), first, [answers for loss in losses for answers in loss.args[0].packed.answers]


def mixed() -> list[Sample]:
    """Half of the colours are right: that all of 16 answers are, or none, has a probability of 3e-5."""
    return [asks(question, {"kind": "exact", "answer": list(WORDS[:4])}) for question in QUESTIONS]


def test_prompts_are_drawn_until_enough_groups_differ(pair):
    same = [asks(q, {"kind": "constraint", "name": "words", "max": 9}) for q in QUESTIONS]
    logged, step, answers = drawn(pair, same, [*mixed(), *same], mixed(), mixed(), wanted=7)
    assert [logged[name] for name in ("draws", "groups_drawn", "groups_equal", "groups_kept")] == [3, 16, 8, 7]
    assert (step.position.step, len(step.read), len(answers)) == (2, 3, 7)
    assert logged["counted"] == 7 / 16
    # No more draws than it may make: it trains on what it has. And none where the first has enough.
    assert drawn(pair, same, mixed(), wanted=7)[0]["groups_kept"] == 4
    assert drawn(pair, mixed(), mixed(), wanted=4)[0]["draws"] == 1


def test_ranks_choose_the_same_of_a_draw_that_has_too_many(pair):
    whole = drawn(pair, [], [], mixed(), wanted=3)[2]
    everyone = [key(key(1, 0, 2), number_of(sample)) for sample in mixed()]  # seed 1, the third batch
    halves = []
    for half in (mixed()[:2], mixed()[2:]):
        halves += drawn(pair, [], [], half, wanted=3, collect_objects=lambda own: [everyone])[2]
    assert len(halves) == len(whole) == 3
    assert all(answers in whole for answers in halves)


def test_the_reference_is_asked_first_and_leaves_no_graph(pair):
    """Before the policy's first activation, for all passes; and it is given back before the policy is asked."""
    model, _ = pair
    lent, order = lent_in_order(model)
    one = method(pair, lent, kl=0.1, pass_tokens=1)
    one.sampled, sample = (lambda *given: (sample(*given), order.clear())[0]), one.sampled
    gradients(one, step_of(colours()))
    assert order == ["lent", *[("reference", False)] * 4, "back", *[("policy", True)] * 4]


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0.3, 0.3], [0.1, 0.2, 0.3, 0.4]])
    found = advantages(rewards, 1e-4).view(3, 4)
    assert found[1].tolist() == [0.0] * 4
    # A few roundings of rewards, means and deviations of at most 1, divided by the smallest deviation.
    exact = torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64) / (0.1875**0.5 + 1e-4)
    assert_within(found[0], exact, 4 * torch.finfo(torch.float32).eps)
    assert_within(found.sum(1), torch.zeros(3), 4 * torch.finfo(torch.float32).eps / 0.11)


def test_the_penalty_of_long_answers():
    lengths = torch.tensor([1, 60, 61, 80, 100])
    assert overlong_penalty(lengths, 100, 40).tolist() == [0.0, 0.0, torch.tensor(-1 / 40).item(), -0.5, -1.0]
    assert not overlong_penalty(lengths, 100, 0).any()


def test_passes_add_up_to_the_whole(pair):
    """Prompts one by one, all together, or on two ranks: the same answers and the same gradient."""
    whole = in_orders(lambda: gradients(method(pair, prompts=4), step_of(colours())))
    one_by_one = method(pair, prompts=1, pass_tokens=1)
    assert_same_but_rounding(gradients(one_by_one, step_of(colours())), whole)
    assert len(next(one_by_one.updates(step_of(colours())))) == 4
    on_ranks = []
    for half in (colours()[:2], colours()[2:]):
        one = method(pair, prompts=1, pass_tokens=1)
        # Both ranks have two passes and 16 answers.
        one.gather = lambda tensor: 2 * tensor
        on_ranks.append(gradients(one, step_of(half)))
    first, second = on_ranks
    assert_same_but_rounding({name: first[name] + second[name] for name in first}, whole)


def test_a_rank_without_prompts_works_along(pair):
    one = method(pair, kl=0.1)
    others = [1.0, 1.0, 0.0]  # another rank has prompts for two passes
    one.gather = lambda tensor: tensor + (others.pop(0) if others else 0.0)
    (losses,) = one.updates(step_of([]))
    assert len(losses) == 2
    for loss in losses:
        loss().backward()
    assert all(not p.grad.any() for p in one.model.parameters() if p.grad is not None)
    assert "reward" not in one.metrics(), "this rank and, here, all others had none"


def test_a_prompt_is_held_to_the_stages_context(pair):
    one, processor = method(pair), pair[1]
    length = len(processor.prepare([Turn("user", ("sky?",))], add_generation_prompt=True).ids)
    for context, bad in ((length + 1, []), (length, [("sky?", f"{length} tokens leave no room for an answer in ")])):
        one.context = context
        step = step_of(colours()[:1])
        (losses,) = one.updates(step)
        assert len(losses) == 1 - len(bad)
        assert [(name, reason.partition("a context")[0]) for name, reason in step.micro[0].bad] == bad


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
    with one.reference() as reference:
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

    monkeypatch.setattr(grading, "Judge", lambda endpoint: Stub())
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
    [
        *({"group": 1}, {"clip": 0}, {"kl": -1}, {"updates": 0}, {"temperature": 0}, {"top_p": 0}),
        *({"max_new_tokens": 0}, {"pass_tokens": 0}, {"scale": "range"}, {"loss": "words"}, {"importance_cap": 0}),
        *(
            {"clip_high": -1},
            {"overlong": 1024},
            {"reward_timeout": 900},
            {"dynamic_sampling": -1},
            {"functions": "a.b:c"},
        ),
        *({"kl": math.inf}, {"temperature": math.inf}),
    ],
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
