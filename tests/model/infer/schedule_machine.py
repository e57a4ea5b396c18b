"""Everything that can happen to a scheduler, in any order, with pages of 4 tokens; a memory checks whatever is read."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from afn_model.infer.costs import Costs
from tests.model.infer.scheduling import StubEngine, audio_prompt


class ScheduleMachine(RuleBasedStateMachine):
    """Operations are counted over all runs."""

    operations = 0

    @initialize(
        canonical=st.booleans(),
        ahead=st.booleans(),
        saves=st.booleans(),
        pages=st.integers(5, 16),
        slots=st.integers(1, 4),
        budget=st.sampled_from([float("inf"), 6.0, 20.0]),
    )
    def begin(self, canonical, ahead, saves, pages, slots, budget):
        costs = Costs(step=1.0, token=0.5, window=3.0, row=0.5, page=2.0, budget=budget)
        self.options = {"canonical": canonical, "ahead": ahead, "slots": slots, "costs": costs, "chunk": 8}
        self.pages, self.saved = pages, {} if saves else None
        self.start()

    def start(self):
        self.now = 0.0
        self.stub = StubEngine(self.pages, saved=self.saved, clock=lambda: self.now, **self.options)
        self.asked = []

    @rule(
        head=st.integers(0, 2),
        windows=st.integers(0, 3),
        tail=st.integers(1, 9),
        kind=st.integers(0, 1),
        limit=st.integers(0, 14),
        samples=st.integers(1, 3),
        priority=st.integers(0, 1),
        vocabulary=st.sampled_from([2, 5]),
        draft=st.sampled_from([None, None, None, 0, 3]),
    )
    def add(self, head, windows, tail, kind, limit, samples, priority, vocabulary, draft):
        prompt = audio_prompt([7] * 4 * head, windows, [kind] * tail, tokens=6)

        def drafted(answer):
            said = answer.expected()
            return [token if not draft or place % draft else token + 1 for place, token in enumerate(said)]

        given = {"samples": samples if limit else 1, "priority": priority, "vocabulary": vocabulary, "stop": 1}
        fits = -(-(len(prompt.ids) + limit) // 4) <= self.pages
        try:
            self.asked += self.stub.add(prompt, limit, draft=None if draft is None else drafted, **given)
            assert fits
        except ValueError:
            assert not fits
        ScheduleMachine.operations += 1

    @rule(count=st.integers(1, 6))
    def step(self, count):
        for _ in range(count):
            self.stub.step()
            self.stub.check()
            self.now += 0.1
        ScheduleMachine.operations += count

    @precondition(lambda self: self.stub.answers)
    @rule(data=st.data())
    def abort(self, data):
        answers = list(self.stub.answers.values())
        answer = answers[data.draw(st.integers(0, len(answers) - 1))]
        self.stub.end(answer)
        self.asked.remove(answer)
        ScheduleMachine.operations += 1

    @rule(count=st.integers(1, 16))
    def evict(self, count):
        """Pages are needed for something else for a moment."""
        count = min(count, self.stub.pool.room)
        taken = self.stub.pool.allocate(count)
        self.stub.memory[taken] = -1
        self.stub.pool.release(taken)
        ScheduleMachine.operations += 1

    @rule()
    def restart(self):
        """All at once is gone but what was saved."""
        self.start()
        ScheduleMachine.operations += 1

    @invariant()
    def holds(self):
        if hasattr(self, "stub"):
            self.stub.check()

    def teardown(self):
        if hasattr(self, "stub"):
            self.stub.run(5000)
            self.stub.check_empty()
            for answer in self.asked:
                assert answer.said == answer.expected()
