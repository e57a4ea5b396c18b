"""The scheduler without a model: a memory in which each place knows what must have been computed for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from afn_model.infer import schedule
from afn_model.infer.pages import PagePool
from afn_model.infer.schedule import Scheduler
from afn_model.infer.sequence import EngineStep, PromptChunk, Sequence
from afn_model.infer.tokens import PromptTokens, WindowSpan

MASK = 2**62 - 1
BY_ROW = 7  # mixed into what a row computes, where that must not be mistaken for what a chunk computes


def mixed(before: int, token: int) -> int:
    """What is computed for a token depends on all tokens before it."""
    return ((before ^ token) * 6364136223846793005 + 1442695040888963407 >> 3) & MASK


def audio_prompt(before: list[int], windows: int, after: list[int], tokens: int = 750, name: str = "w") -> PromptTokens:
    """A prompt about a recording of so many windows; recordings of one name share their first windows."""
    spans, at = [], len(before)
    for index in range(windows):
        spans.append(WindowSpan(at, at + tokens, f"{name}{index}".encode().ljust(32), index))
        at += tokens
    return PromptTokens([*before, *[9] * (at - len(before)), *after], tuple(spans))


@dataclass
class StepNote:
    """A step's part in what the memory has noted of it."""

    tokens: int
    rows: int
    seconds: float


@dataclass
class Drawing:
    """An answer as its owner sees it: when it stops, and what it must be."""

    sequence: Sequence
    salt: int
    vocabulary: int
    stop: int | None = None
    draft: list[int] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)  # numbers of the steps that it grew in

    def draw(self, known: int) -> int:
        return mixed(known, self.salt) % self.vocabulary

    def expected(self) -> list[int]:
        """The whole answer, drawn one token after another."""
        history = 0
        for token in embedded(self.sequence.prompt):
            history = mixed(history, token)
        found: list[int] = []
        while len(found) < self.sequence.limit and (not found or found[-1] != self.stop):
            found.append(self.draw(history))
            history = mixed(history, found[-1])
        return found


def embedded(prompt: PromptTokens) -> list[int]:
    """What is read for each token: of a window's, its samples, its number and the place in it."""
    found = list(prompt.ids)
    for span in prompt.windows:
        heard = int.from_bytes(span.digest[:8], "little") ^ span.index << 32
        found[span.start : span.stop] = [heard + 977 * at & MASK for at in range(span.stop - span.start)]
    return found


class StubEngine:
    """Makes the scheduler's steps as the engine does, on a memory instead of a model.

    Whatever is read is compared with what must have been written there; a token depends on all tokens before it.

    Args:
        pages, slots, options: of pool and scheduler.
        ahead: a step begins before the tokens of the one before it are known.
        saved: pages outside of the device by key; evicted ones go there. None keeps none.
        watched: whether the memory is kept and compared; where not, tokens mean nothing.
    """

    def __init__(
        self,
        pages: int,
        *,
        slots: int = 8,
        ahead: bool = False,
        saved: dict[bytes, tuple[bytes, np.ndarray]] | None = None,
        watched: bool = True,
        **options,
    ):
        self.page, self.ahead, self.saved, self.watched = schedule.PAGE, ahead, saved, watched
        self.pool = PagePool(pages, None if saved is None else self.save)
        if saved is not None:
            options |= {"restore": self.load, "saved": saved.__contains__}
        self.features: set[bytes] = set()
        self.scheduler = Scheduler(self.pool, slots=slots, encoded=self.features.__contains__, **options)
        self.memory = np.full((pages, self.page), -1, dtype=np.int64)
        self.history: dict[Sequence, np.ndarray] = {}
        self.slots: dict[int, int] = {}  # the token last drawn in each
        self.answers: dict[Sequence, Drawing] = {}
        self.pending: list[tuple[Sequence, int]] | None = None
        self.steps: list[StepNote] = []
        self.computed: Counter[Sequence] = Counter()  # prompt tokens
        self.encoded = self.restored = 0

    # -- what the engine does

    def add(
        self,
        prompt: PromptTokens,
        limit: int = 4,
        *,
        samples: int = 1,
        priority: int = 0,
        stop: int | None = None,
        vocabulary: int = 997,
        draft: Callable[[Drawing], list[int]] | None = None,
    ) -> list[Drawing]:
        leader, found = None, []
        for sample in range(samples):
            sequence = Sequence(prompt, limit, priority=priority, leader=leader)
            self.scheduler.add(sequence)
            answer = Drawing(sequence, 31 * sample + 5, vocabulary, stop)
            if draft is not None:
                answer.draft = draft(answer)
            if limit:
                leader = leader or sequence
                self.answers[sequence] = answer
                found.append(answer)
        return found

    def step(self) -> EngineStep:
        step = self.scheduler.plan()
        launched = None
        if step:
            launched = self.launch(step)
            self.scheduler.launched(step)
        before, self.pending = self.pending, None
        if launched is not None and self.ahead and not any(one.draft for one in self.answers.values()):
            self.pending, launched = launched, None
        for results in (before, launched):
            self.take(results or [])
        for chunk in step.verified:
            if chunk.sequence in self.answers:
                self.scheduler.verified(chunk.sequence)
        for answer in self.answers.values():
            if answer.draft:
                at = len(answer.sequence.tokens)
                answer.sequence.draft = answer.draft[at : at + 7]
        return step

    def run(self, most: int = 100_000) -> StubEngine:
        for _ in range(most):
            if not self.scheduler.running() and self.pending is None:
                return self
            self.step()
        raise AssertionError(f"{self.scheduler.running()} sequences wait for ever")

    def take(self, results: list[tuple[Sequence, int]]) -> None:
        for sequence, token in results:
            answer = self.answers.get(sequence)
            if answer is None:
                continue
            self.scheduler.drawn(sequence, token)
            answer.gaps.append(len(self.steps))
            if token == answer.stop or len(sequence.tokens) == sequence.limit:
                self.end(answer)

    def end(self, answer: Drawing) -> None:
        answer.said = list(answer.sequence.tokens)
        del self.answers[answer.sequence]
        self.scheduler.finish(answer.sequence)

    def save(self, page: int, key: bytes, content: bytes) -> None:
        assert self.saved is not None
        self.saved[key] = content, self.memory[page].copy()

    def load(self, pages: list[tuple[bytes, bytes]]) -> list[np.ndarray]:
        assert self.saved is not None
        found = []
        for key, content in pages:
            if key not in self.saved or self.saved[key][0] != content:
                break
            found.append(self.saved[key][1])
        return found

    # -- what the runner does

    def launch(self, step: EngineStep) -> list[tuple[Sequence, int]]:
        costs = self.scheduler.costs
        seconds = costs.step + costs.window * len(step.windows) + costs.row * len(step.rows)
        seconds += sum(costs.chunk(chunk.start, chunk.stop) for chunk in step.chunks)
        seconds += costs.key * sum(step.places) + costs.page * len(step.restored)
        self.steps.append(StepNote(sum(chunk.stop - chunk.start for chunk in step.chunks), len(step.rows), seconds))
        for page, payload in step.restored:
            self.restored += 1
            self.memory[page] = payload
        for source, target in step.copies:
            self.memory[target] = self.memory[source]
        assert not self.features & set(step.windows), "a window is encoded twice"
        assert len(set(step.windows)) == len(step.windows), "a window is encoded twice in one step"
        self.features |= set(step.windows)
        self.encoded += len(step.windows)
        for group in (step.chunks, step.verified):
            for chunk in group:
                self.read(chunk.sequence, chunk.start)
            for chunk in group:
                self.write(chunk.sequence, chunk.start, chunk.sequence.known(chunk.start, chunk.stop), chunk.start)
        for chunk in step.chunks:
            self.computed[chunk.sequence] += chunk.stop - chunk.start
            self.check_chunk(chunk)
        results = [drawn for chunk in step.verified for drawn in self.drawn_after(chunk)]
        assert len({id(one) for one in step.rows}) == len(step.rows), "two rows of one sequence"
        assert len({one.slot for one in step.rows}) == len(step.rows), "two rows of one slot"
        for sequence, place in zip(step.rows, step.places, strict=True):
            self.read(sequence, place)
        for sequence, place, draws in zip(step.rows, step.places, step.draws, strict=True):
            assert sequence.slot >= 0, "a row without a slot"
            token = sequence.token(place)
            self.write(sequence, place, [self.slots[sequence.slot] if token < 0 else token], None)
            if draws and sequence in self.answers:
                token = self.answers[sequence].draw(int(self.past(sequence)[place]))
                self.slots[sequence.slot] = token
                results.append((sequence, token))
        return results

    def check_chunk(self, chunk: PromptChunk) -> None:
        sequence, scheduler = chunk.sequence, self.scheduler
        for span in sequence.prompt.windows:
            if span.start < chunk.stop and span.stop > chunk.start:
                assert span.digest in self.features, "a window is read before it is encoded"
        if scheduler.canonical:
            prompt, stop = len(sequence.prompt.ids), chunk.start + scheduler.chunk
            assert not chunk.start % scheduler.chunk, "a chunk begins off the grid"
            assert chunk.stop == min(stop, prompt - 1) or (not sequence.limit and chunk.stop == stop)

    def drawn_after(self, chunk: PromptChunk) -> list[tuple[Sequence, int]]:
        sequence, found = chunk.sequence, []
        if sequence not in self.answers:
            return found
        for index in range(chunk.stop - chunk.start):
            token = self.answers[sequence].draw(int(self.past(sequence)[chunk.start + index]))
            found.append((sequence, token))
            if index == len(sequence.draft) or token != sequence.draft[index]:
                break
        return found

    def past(self, sequence: Sequence) -> np.ndarray:
        """What must have been computed of a sequence, as far as it is known; longer than that."""
        if sequence not in self.history:
            found = np.zeros(len(sequence.prompt.ids) + sequence.limit + 8, dtype=np.int64)
            history = 0
            for place, token in enumerate(embedded(sequence.prompt) if self.watched else ()):
                history = found[place] = mixed(history, token)
            self.history[sequence] = found
        return self.history[sequence]

    def stored(self, sequence: Sequence, start: int, stop: int) -> np.ndarray:
        """What must stand in the pages, with what has computed it where bits depend on that."""
        found = self.past(sequence)[start:stop].copy()
        if self.scheduler.canonical:
            grid, places = self.scheduler.chunk, np.arange(start, stop)
            by_chunk = places < len(sequence.prompt.ids) - bool(sequence.limit)
            found ^= np.where(by_chunk, 64 + places // grid, BY_ROW)
        return found

    def places(self, sequence: Sequence, start: int, stop: int) -> np.ndarray:
        table = np.array(sequence.pages, dtype=np.int64)
        places = np.arange(start, stop)
        return table[places // self.page] * self.page + places % self.page

    def read(self, sequence: Sequence, stop: int) -> None:
        if self.watched and stop:
            found = self.memory.reshape(-1)[self.places(sequence, 0, stop)]
            wrong = np.flatnonzero(found != self.stored(sequence, 0, stop))
            assert not len(wrong), f"place {wrong[0]} of {stop} holds something else"

    def write(self, sequence: Sequence, start: int, tokens: list[int], chunk: int | None) -> None:
        if not self.watched:
            return
        found = self.past(sequence)
        for place, token in enumerate(tokens, start):
            if place >= len(sequence.prompt.ids):
                found[place] = mixed(int(found[place - 1]), token)
        at = self.places(sequence, start, start + len(tokens))
        for page in {int(place) // self.page for place in at}:
            assert self.pool._references[page] == 1, "written to while others hold it"
            assert self.pool._published[page] is None, "written to while others can find it"
        values = found[start : start + len(tokens)].copy()
        if self.scheduler.canonical:
            values ^= BY_ROW if chunk is None else 64 + chunk // self.scheduler.chunk
        self.memory.reshape(-1)[at] = values

    # -- what must hold between steps

    def check(self) -> None:
        scheduler = self.scheduler
        everyone = [*scheduler.waiting, *scheduler.prefilling, *scheduler.decoding]
        assert len(set(everyone)) == len(everyone), "a sequence is in two places"
        self.pool.check([one.pages for one in everyone])
        assert self.pool.free + self.pool.cached + self.pool.used == self.pool.pages
        busy = [one.slot for one in everyone if one.slot >= 0]
        assert sorted([*busy, *scheduler.slots]) == list(range(len(busy) + len(scheduler.slots))), "a slot is lost"
        assert set(scheduler.making.values()) <= {*scheduler.prefilling, *scheduler.decoding}, "made by nobody"

    def check_empty(self) -> None:
        self.check()
        assert not self.pool.used
        assert not self.scheduler.making
        assert not self.answers
