"""The scheduler: steps, gaps and recomputed tokens counted exactly, and any order of what can happen to it."""

import heapq
import math
import random
import sys

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from afn_model.config import ModelConfig
from afn_model.infer import schedule, sequence
from afn_model.infer.costs import Costs
from afn_model.infer.pages import PAGE, PagePool
from afn_model.infer.schedule import Scheduler, boundary
from afn_model.infer.tokens import PromptTokens
from tests.model.infer.schedule_machine import ScheduleMachine
from tests.model.infer.scheduling import StubEngine, audio_prompt

HEAD, QUESTION = list(range(40)), list(range(100, 120))


def text(tokens: int, seed: int = 0) -> PromptTokens:
    rng = random.Random(seed)
    return PromptTokens([rng.randrange(1000) for _ in range(tokens)])


def test_continuous_batching_takes_as_many_steps_as_the_lengths_allow():
    """8 slots, exponential lengths: a slot is filled again in the step after it became free."""
    rng = random.Random(5)
    lengths = [1 + int(rng.expovariate(1 / 100)) for _ in range(512)]
    stub = StubEngine(600, slots=8, watched=False)
    answers = [stub.add(text(5, n), limit)[0] for n, limit in enumerate(lengths)]
    stub.run()
    slots = [0] * 8
    for length in lengths:
        heapq.heappush(slots, heapq.heappop(slots) + length)
    static = sum(max(lengths[at : at + 8]) for at in range(0, len(lengths), 8))
    assert len(stub.steps) == max(slots)
    assert static >= 2.5 * len(stub.steps)
    assert all(len(one.said) == limit for one, limit in zip(answers, lengths, strict=True))


@pytest.mark.parametrize("canonical", [False, True])
def test_half_an_hour_arrives_while_16_answers_grow(canonical):
    costs = Costs.of(ModelConfig(), budget=0.04)
    chunk = 256 if canonical else 8192
    stub = StubEngine(2000, slots=32, costs=costs, chunk=chunk, canonical=canonical, watched=False)
    for seed in range(16):
        stub.add(text(500 + seed, seed), 900)
    while len(stub.scheduler.decoding) < 16:
        stub.step()
    began = len(stub.steps)
    (late,) = stub.add(audio_prompt(HEAD, 60, QUESTION), 2)
    while not late.sequence.tokens:
        stub.step()
    during = stub.steps[began:]
    assert all(step.rows >= 16 for step in during), "an answer waited"
    assert max(step.seconds for step in during) <= 2 * costs.budget
    # Used, not only kept: most of every step is the prompt's.
    whole = costs.chunk(0, 45_059) + 60 * costs.window
    assert whole > 25 * costs.budget
    assert sum(step.seconds for step in during) <= (1.6 if canonical else 1.35) * whole
    assert stub.encoded == 60


@pytest.mark.parametrize("canonical", [False, True])
def test_a_recording_that_grows_is_computed_once(canonical):
    grid = 256 if canonical else PAGE
    stub = StubEngine(800, slots=2, chunk=256 if canonical else 8192, canonical=canonical, watched=False)
    known = 0
    for minutes in range(10, 31):
        prompt = audio_prompt(HEAD, 2 * minutes, QUESTION)
        (answer,) = stub.add(prompt, 3)
        stub.run()
        heard = len(HEAD) + 750 * 2 * minutes
        again = stub.computed[answer.sequence] - (heard - known if known else 0)
        assert stub.encoded == 2 * minutes
        if known:
            assert 0 <= again <= grid + len(QUESTION) - 1
            assert again <= 750 + len(QUESTION)
        known = heard
    stub.check_empty()


def test_equal_prompts_that_arrive_together_are_computed_once():
    stub = StubEngine(100, chunk=128)
    tail = [list(range(200, 260)), list(range(300, 340)), list(range(400, 500))]
    answers = [stub.add(audio_prompt(HEAD, 3, after, tokens=128), 4)[0] for after in (*tail, tail[0])]
    stub.run()
    assert [one.said for one in answers] == [one.expected() for one in answers]
    assert stub.encoded == 3
    shared = (len(HEAD) + 3 * 128) // PAGE * PAGE
    lengths = [len(one.sequence.prompt.ids) - 1 for one in answers]
    assert stub.computed[answers[1].sequence] == lengths[1]  # the shortest goes first
    for one, length in zip(answers[:3:2], lengths[:3:2], strict=True):
        assert stub.computed[one.sequence] == length - shared
    assert stub.computed[answers[3].sequence] == lengths[3] - lengths[3] // PAGE * PAGE
    stub.check_empty()


def test_samples_share_a_prompts_pages_and_copy_one():
    stub, prompt = StubEngine(60), text(5 * PAGE + 10)
    answers = stub.add(prompt, 20, samples=6)
    copies = most = 0
    while stub.scheduler.running():
        copies += len(stub.step().copies)
        most = max(most, stub.pool.used)
        stub.check()
    assert sum(stub.computed.values()) == len(prompt.ids) - 1
    assert copies == 5
    assert most == 5 + 6
    assert [one.said for one in answers] == [one.expected() for one in answers]
    assert len({tuple(one.said) for one in answers}) == 6


@pytest.mark.parametrize("how", ["stop", "abort"])
def test_samples_that_wait_inherit_the_prompt_of_one_that_ends(how):
    stub, prompt = StubEngine(12, slots=1), text(9 * PAGE + 10)
    answers = stub.add(prompt, 6, samples=3)
    if how == "abort":
        while not answers[0].sequence.tokens:
            stub.step()
        stub.end(answers[0])
        answers = answers[1:]
    stub.run()
    assert sum(stub.computed.values()) == len(prompt.ids) - 1
    assert [one.said for one in answers] == [one.expected() for one in answers]
    stub.check_empty()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("canonical", [False, True])
def test_every_answer_ends_where_there_is_little_room(ahead, canonical):
    options = {"chunk": PAGE} if canonical else {}
    stub = StubEngine(9, slots=6, ahead=ahead, canonical=canonical, **options)
    answers = [one for seed in range(8) for one in stub.add(text(90 + 9 * seed, seed), 150, samples=1 + seed % 3)]
    while stub.scheduler.running() or stub.pending:
        stub.step()
        stub.check()
    assert stub.scheduler.preempted > 3
    assert [one.said for one in answers] == [one.expected() for one in answers]
    stub.check_empty()


def test_what_was_saved_is_not_computed_again():
    stub = StubEngine(12, slots=4, saved={})
    first = [stub.add(text(5 * PAGE, seed), 30)[0] for seed in range(4)]
    stub.run()
    before = sum(stub.computed.values())
    again = [stub.add(text(5 * PAGE, seed), 30)[0] for seed in range(4)]
    stub.run()
    assert [one.said for one in again] == [one.said for one in first] == [one.expected() for one in again]
    assert sum(stub.computed.values()) - before <= 4 * (PAGE - 1)
    assert stub.restored > 8
    stub.check_empty()


def test_a_higher_priority_goes_first_and_the_others_follow():
    stub = StubEngine(100, slots=1)
    low = [stub.add(text(70, seed), 3)[0] for seed in range(4)]
    stub.step()
    (high,) = stub.add(text(70, 9), 3, priority=1)
    stub.run()
    ends = [one.gaps[-1] for one in low]
    assert ends[0] < high.gaps[-1] < ends[1] < ends[2] < ends[3]


def test_a_long_prompt_gets_its_share_beside_short_ones():
    """A new short prompt at every step, which it fills: they pass the long one in all steps but every fourth."""

    def steps(share: int) -> int | None:
        stub = StubEngine(2000, slots=16, chunk=PAGE, share=share, clock=lambda: 0.0, watched=False)
        (long,) = stub.add(text(3000), 1)
        for step in range(200):
            stub.add(text(PAGE + 1, step + 1), 1)
            stub.step()
            if long.said:
                return step + 1
        return None

    assert steps(10**6) is None
    found, pages = steps(4), -(-2999 // PAGE)
    assert found is not None
    assert 4 * pages - 4 < found <= 4 * pages


@pytest.mark.parametrize(("ageing", "first"), [(0.1, 0), (math.inf, 1)])
def test_a_prompt_that_has_waited_counts_as_shorter(ageing, first):
    now = [0.0]
    stub = StubEngine(100, slots=2, chunk=PAGE, ageing=ageing, clock=lambda: now[0])
    answers = stub.add(text(20 * PAGE), 1)
    stub.step()
    now[0] = 1.0
    answers += stub.add(text(10 * PAGE, 1), 1)
    stub.run()
    assert answers[first].gaps < answers[1 - first].gaps


def test_a_question_about_a_known_recording_passes_new_recordings():
    """Which get pages one after another, as they can be computed: those who wait for the device hold none."""
    costs = Costs.of(ModelConfig(), budget=0.04)
    stub = StubEngine(3000, slots=32, costs=costs, chunk=8192, watched=False)
    (first,) = stub.add(audio_prompt(HEAD, 60, QUESTION), 900)
    while len(first.sequence.tokens) < 2:
        stub.step()
    for number in range(8):
        stub.add(audio_prompt(HEAD, 60, QUESTION, name=f"new {number} "), 2)
    for _ in range(10):
        stub.step()
    (known,) = stub.add(audio_prompt(HEAD, 60, QUESTION[::-1]), 2)
    began = len(stub.steps)
    while not known.sequence.tokens:
        stub.step()
    assert known.gaps[0] <= began + 2
    while len(stub.scheduler.waiting) > 1:
        stub.step()
        assert len(stub.scheduler.prefilling) <= 2
    assert max(step.seconds for step in stub.steps[began:]) <= 2 * costs.budget


def test_a_prompt_that_has_waited_gets_the_pages_that_others_want():
    """Answers that need a page each come for ever; one that needs most pages waits for its ``patience`` and for those
    that run then."""

    def steps(patience: float) -> int | None:
        now = [0.0]
        stub = StubEngine(20, slots=16, patience=patience, clock=lambda: now[0], watched=False)
        for step in range(150):
            stub.add(text(2, step), 20)
            if step == 10:
                (large,) = stub.add(text(15 * PAGE), 1)
            now[0] += 0.1
            stub.step()
            if step > 10 and large.said:
                return step - 10
        return None

    assert steps(math.inf) is None
    found = steps(2.0)
    assert found is not None
    assert 20 <= found <= 20 + 20 + 2


def test_pages_that_come_back_are_in_the_budget():
    """Half an hour comes back from the host while 16 answers grow: 52 ms at once, and nothing is computed again."""
    costs = Costs.of(ModelConfig(), budget=0.04)
    stub = StubEngine(1100, slots=32, costs=costs, chunk=8192, saved={}, watched=False)
    recording = audio_prompt(HEAD, 60, QUESTION)
    for prompt in (recording, text(1090 * PAGE)):
        stub.add(prompt, 1)
        stub.run()
    for seed in range(16):
        stub.add(text(500 + seed, seed), 300)
    while len(stub.scheduler.decoding) < 16:
        stub.step()
    began = len(stub.steps)
    (again,), (equal,) = stub.add(recording, 2), stub.add(recording, 2)
    while not (again.said and equal.said):
        stub.step()
        stub.check()
    pages = len(recording.ids) // PAGE
    assert 600 < stub.restored <= pages, "what comes back is wanted twice, or was never gone"
    assert stub.restored * costs.page > costs.budget
    assert stub.computed[again.sequence] + stub.computed[equal.sequence] < 2 * PAGE
    assert max(step.seconds for step in stub.steps[began:]) <= costs.budget + max(
        costs.page, costs.chunk(45_000, 45_064)
    )
    assert len(stub.steps) - began < 12


def test_what_never_fits_is_said_at_once():
    stub = StubEngine(4)
    with pytest.raises(ValueError, match=r"200 tokens with an answer of up to 57 needs 5 pages of 64, and there are 4"):
        stub.add(text(200), 57)
    with pytest.raises(ValueError, match="a prompt without tokens"):
        stub.add(PromptTokens([]), 1)
    (fits,) = stub.add(text(200), 56)
    stub.run()
    assert fits.said == fits.expected()
    with pytest.raises(ValueError, match="a multiple of a page"):
        Scheduler(PagePool(4), slots=1, chunk=100)


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize("pages", [4, 5])
def test_a_prompt_computed_ahead_is_found(canonical, pages):
    """Also one that takes every page there is."""
    stub = StubEngine(pages, canonical=canonical, chunk=PAGE)
    stub.add(text(4 * PAGE), 0)
    stub.run(20)
    stub.check()
    assert stub.pool.cached == 4
    (answer,) = stub.add(text(4 * PAGE - 20), 3)
    stub.run()
    assert stub.computed[answer.sequence] == 43
    assert answer.said == answer.expected()


def test_pages_that_only_come_back_are_found_too():
    """A prompt computed ahead of which all was saved: a step that copies pages and nothing else."""
    stub, prompt = StubEngine(8, saved={}), text(4 * PAGE + 1)
    for other in (prompt, text(8 * PAGE, 1), prompt):
        stub.add(other, 0)
        stub.run(20)
    assert (stub.restored, sum(stub.computed.values())) == (4, 12 * PAGE)
    (answer,) = stub.add(text(4 * PAGE - 1), 3)
    stub.run()
    assert stub.restored == 4
    assert answer.said == answer.expected()
    stub.check_empty()


def test_an_answer_that_ends_before_its_pages_are_back_keeps_none_of_them():
    costs = Costs(page=1.0, row=1.0, budget=3.0)
    stub = StubEngine(12, saved={}, costs=costs)
    for prompt in (text(6 * PAGE), text(12 * PAGE - 1, 1)):
        stub.add(prompt, 1)
        stub.run()
    stub.add(text(10, 2), 20)
    stub.step()
    (answer,) = stub.add(text(6 * PAGE), 1)
    stub.step()
    assert 0 < len(answer.sequence.returning) < 5
    stub.end(answer)
    assert not answer.sequence.returning
    stub.run()
    stub.check_empty()


def test_a_higher_priority_is_not_passed_where_it_does_not_fit():
    stub = StubEngine(10, slots=4)
    stub.add(text(6 * PAGE), 20)
    stub.step()
    (high,), (equal,), (low,) = (stub.add(text(size, size), 2, priority=p) for size, p in ((500, 1), (20, 1), (10, 0)))
    stub.run()
    assert equal.gaps[0] < high.gaps[0] <= low.gaps[0], "an equal one that fits passes, a lower one does not"


def test_who_computes_what_another_waits_for_is_as_old():
    now = [0.0]
    stub = StubEngine(200, slots=2, chunk=PAGE, clock=lambda: now[0])
    for seed in range(2):
        stub.add(text(10, seed), 3)
    stub.step()
    (waits,) = stub.add(PromptTokens([5] * 3000), 1)
    now[0] = 0.01
    (makes,) = stub.add(PromptTokens([5] * 2000), 1)
    while makes.sequence.slot < 0:
        stub.step()
    assert waits.sequence.slot < 0
    assert makes.sequence.arrived == waits.sequence.arrived == 0.0
    stub.run()
    assert stub.computed[waits.sequence] == 2999 - 1999 // PAGE * PAGE


@pytest.mark.parametrize("there", range(6))
def test_what_is_there_of_a_chain_is_found_from_anywhere(there):
    keys = [b"%d" % number for number in range(5)]
    assert {boundary(keys, near, set(keys[:there]).__contains__) for near in range(6)} == {min(there, 5)}


def test_nobody_waits_for_pages_that_those_who_wait_hold():
    """Samples that inherit a prompt hold its pages while they wait; what goes before them may need these."""
    stub = StubEngine(10, slots=1)
    first, second = stub.add(text(5 * PAGE + 10), 3, samples=2)
    stub.step()
    (urgent,) = stub.add(text(8 * PAGE, 1), 3, priority=1)
    stub.run(200)
    assert [one.said for one in (first, second, urgent)] == [one.expected() for one in (first, second, urgent)]


def test_a_token_on_its_way_is_not_drawn_again():
    """Of two equal requests the second is preempted, and what it needs is in the pages of the first."""
    stub = StubEngine(6, slots=2, ahead=True)
    answers = stub.add(text(20), 200)
    stub.step()
    answers += stub.add(text(20), 200)
    stub.run()
    assert answers[1].sequence.preemptions
    assert [one.said for one in answers] == [one.expected() for one in answers]
    stub.check_empty()


def test_an_answer_that_had_begun_does_not_go_on_from_the_prompts_pages_alone():
    """Of two answers to a prompt one is preempted where its next token begins a page, and the other one ends."""
    stub = StubEngine(4, slots=2, ahead=True)
    first, second = stub.add(text(2 * PAGE - 1), 3, samples=2)
    stub.run()
    assert second.sequence.preemptions
    assert [one.said for one in (first, second)] == [one.expected() for one in (first, second)]
    stub.check_empty()


def test_drafts_change_no_token_and_save_steps():
    counts = {}
    for name, wrong in (("right", 0), ("half wrong", 2), ("all wrong", 1)):
        stub = StubEngine(40)

        def draft(answer, wrong=wrong):
            said = answer.expected()
            return [token if not wrong or place % wrong else token + 1 for place, token in enumerate(said)]

        answers = [stub.add(text(100 + seed, seed), 80, draft=draft)[0] for seed in range(3)]
        stub.run()
        stub.check_empty()
        assert [one.said for one in answers] == [one.expected() for one in answers]
        counts[name] = len(stub.steps)
    assert counts["right"] == 1 + 10  # the first token, then eight at a time, the last of 80 by itself
    assert counts["right"] < counts["half wrong"] < counts["all wrong"] == 80


def test_anything_in_any_order(monkeypatch):
    monkeypatch.setattr(schedule, "PAGE", 4)
    monkeypatch.setattr(sequence, "PAGE", 4)
    quick = settings(max_examples=40, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(ScheduleMachine, settings=quick)


if __name__ == "__main__":  # python -m tests.model.infer.test_schedule 1000: as many runs of up to 100 operations
    schedule.PAGE = sequence.PAGE = 4
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    long = settings(max_examples=runs, stateful_step_count=100, deadline=None, database=None)
    run_state_machine_as_test(ScheduleMachine, settings=long)
    print(f"{ScheduleMachine.operations} operations, nothing lost and nothing wrong")
