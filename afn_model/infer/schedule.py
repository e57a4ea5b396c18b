"""What each step of the engine computes: continuous batching, chunked prefill, encoder windows, preemption. No torch.

A sequence's prompt is computed in chunks, all but its last token; that one and every token after it is a *row*: one
token of one sequence, after which the next token is drawn. Rows go first, and prompts share what is left of a step's
budget, which is in predicted seconds.

Prompts go in the order of what is left of them to compute, divided by 1 + waited / ``ageing``: the question about a
recording that is known passes one that is new. The eldest goes first in every fourth step, so that none is passed for
ever. A prompt gets its pages when those before it leave it a part of a step: what cannot be computed yet takes no room
from what can.

Source: Brinch Hansen, 1971 ("Short-term scheduling in multiprogramming systems"), for the highest response ratio next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from afn_model.infer.costs import Costs
from afn_model.infer.pages import PAGE, OutOfPages, PagePool
from afn_model.infer.sequence import EngineStep, PromptChunk, Sequence
from afn_model.infer.tokens import WindowSpan


class Scheduler:
    """Decides what each step computes.

    Args:
        pool: the pages.
        slots: sequences that run at the same time, at most.
        costs: predictions, and the budget of a step.
        chunk: tokens of a prompt in one step, at most; a multiple of a page.
        most_windows: encoded in one step while sequences decode.
        canonical: prompts are cut at multiples of ``chunk`` only, and what was drawn is computed by rows only, so that
            what is computed together never depends on what else there is to do.
        encoded: whether the features of a window are known.
        restore: what is saved outside of the device of a run of pages, given by keys and contents, up to the first that
            is not.
        saved: whether a page is, by its key.
        ageing: seconds of waiting after which a prompt counts half as long as it is.
        share: in every so many steps the eldest prompt goes first.
        patience: seconds after which no other of its priority takes the pages that a prompt waits for.
        clock: seconds.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        slots: int,
        costs: Costs | None = None,
        chunk: int = 2048,
        most_windows: int = 4,
        canonical: bool = False,
        encoded: Callable[[bytes], bool] = lambda _: True,
        restore: Callable[[list[tuple[bytes, bytes]]], list[Any]] = lambda _: [],
        saved: Callable[[bytes], bool] = lambda _: False,
        ageing: float = 0.25,
        share: int = 4,
        patience: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        if chunk < PAGE or chunk % PAGE:
            raise ValueError(f"chunk {chunk}: a multiple of a page of {PAGE} tokens is expected")
        if slots < 1:
            raise ValueError(f"{slots} slots: at least one is expected")
        self.pool, self.costs, self.chunk, self.most_windows = pool, costs or Costs(), chunk, most_windows
        self.canonical, self.encoded, self.restore, self.saved = canonical, encoded, restore, saved
        self.ageing, self.share, self.patience, self.clock = ageing, share, patience, clock
        self.waiting: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self.ahead: list[Sequence] = []  # those without a limit whose pages are done
        self.brought: list[Sequence] = []  # those that pages have come back for in this step
        self.slots = list(range(slots))[::-1]
        self.making: dict[bytes, Sequence] = {}  # keys of pages that are being computed, so that no other computes them
        self.added = self.preempted = self.planned = 0

    # -- what comes and goes

    def add(self, sequence: Sequence) -> None:
        """A sequence waits to be computed.

        Raises:
            ValueError: it has no tokens, or more than there will ever be pages for.
        """
        if not sequence.prompt.ids:
            raise ValueError("a prompt without tokens")
        most = -(-(len(sequence.prompt.ids) + sequence.limit) // PAGE)
        if most > self.pool.pages:
            raise ValueError(
                f"a prompt of {len(sequence.prompt.ids)} tokens with an answer of up to {sequence.limit} needs {most} "
                f"pages of {PAGE}, and there are {self.pool.pages}"
            )
        sequence.number, sequence.arrived = self.added, self.clock()
        self.added += 1
        sequence.name((len(sequence.prompt.ids) - 1) // PAGE, self.canonical)
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """A sequence ends, at whatever stage it is; its pages may be found by others."""
        for there in (self.waiting, self.prefilling, self.decoding, self.ahead):
            if sequence in there:
                there.remove(sequence)
        self._bequeath(sequence)
        self._leave(sequence)

    def running(self) -> int:
        """Sequences that have not ended."""
        return len(self.waiting) + len(self.prefilling) + len(self.decoding)

    # -- a step

    def plan(self) -> EngineStep:
        """The next step. Rows that draw expect a token each, in ``drawn``; false where there is nothing to do."""
        step, preempted = EngineStep(), self.preempted
        self._rows(step)
        budget = self.costs.budget - self._spent() if step.rows and (self.waiting or self.prefilling) else math.inf
        if not self.prefilling and not (self.waiting and self.slots):
            return step
        self.planned += 1
        now, eldest = self.clock(), min((*self.prefilling, *self.waiting), key=lambda one: (-one.priority, one.arrived))
        if self.preempted == preempted:  # else one waits whose token may still be on its way
            self._admit(step, now, eldest)
        first, tokens = None if self.planned % self.share else eldest, self.chunk
        for sequence in sorted(self.prefilling, key=lambda one: (one is not first, self._rank(one, now))):
            budget -= self._prefill(sequence, step, budget, tokens)
            if step.chunks and step.chunks[-1].sequence is sequence:
                tokens -= step.chunks[-1].stop - step.chunks[-1].start
        return step

    def launched(self, step: EngineStep) -> None:
        """A step is being computed: its full pages may be found by others from now on."""
        for sequence in [*(chunk.sequence for chunk in step.chunks), *self.brought]:
            self._publish(sequence)
        self.brought = []
        for sequence in [one for one in step.rows if not one.computed % PAGE]:
            self._publish(sequence)
        for sequence in self.ahead:
            self._leave(sequence)
        self.ahead = []

    def drawn(self, sequence: Sequence, token: int) -> None:
        """The token that a row of a sequence led to."""
        sequence.tokens.append(token)
        sequence.length += 1
        if len(sequence.tokens) > sequence.drawing:  # it was preempted meanwhile
            sequence.drawing = len(sequence.tokens)

    def verified(self, sequence: Sequence) -> None:
        """A draft was verified: what was drawn is known, and keys and values behind it are not those of the answer."""
        sequence.draft, sequence.computed = [], sequence.length - 1
        sequence.drawing = len(sequence.tokens)
        self._publish(sequence)

    # -- rows

    def _rows(self, step: EngineStep) -> None:
        """A row of every sequence that decodes. Several hundred of them: no call for each."""
        for sequence in [one for one in self.decoding if not one.computed % PAGE]:
            if sequence.slot >= 0 and len(sequence.pages) * PAGE == sequence.computed:
                self._grow(sequence)
        step.rows = [
            one for one in self.decoding if one.drawing < one.limit and not (one.draft and self._verify(one, step))
        ]
        step.places = [one.computed for one in step.rows]
        step.draws = [one.computed + 1 >= one.length for one in step.rows]  # or what follows is known already
        for sequence, draws in zip(step.rows, step.draws, strict=True):
            sequence.computed += 1
            sequence.drawing += draws

    def _verify(self, sequence: Sequence, step: EngineStep) -> bool:
        """Whether a sequence goes on with its draft."""
        start = sequence.computed
        if self.canonical or start + 1 < sequence.length:
            return False
        # The last token of an answer is drawn, and only pages that are free for it hold a draft.
        most = min(len(sequence.draft), sequence.limit - len(sequence.tokens) - 1)
        pages = (start + most) // PAGE + 1 - len(sequence.pages)
        if most < 1 or pages > self.pool.room:
            return False
        sequence.pages += self.pool.allocate(max(0, pages))
        del sequence.draft[most:]
        step.verified.append(PromptChunk(sequence, start, start + 1 + most))
        sequence.computed = start + 1 + most
        return True

    def _begin_rows(self, sequence: Sequence, step: EngineStep) -> None:
        """The first row of a sequence whose chunks are done."""
        self.decoding.append(sequence)
        for span in self._windows(sequence, sequence.computed, sequence.computed + 1):
            if span.digest not in step.windows and not self.encoded(span.digest):
                step.windows.append(span.digest)  # the prompt ends with audio
        draws = sequence.computed + 1 >= sequence.length
        step.rows.append(sequence)
        step.places.append(sequence.computed)
        step.draws.append(draws)
        sequence.computed += 1
        sequence.drawing += draws

    def _grow(self, sequence: Sequence) -> None:
        """A page more for a sequence; others wait where there is none."""
        while not self.pool.room:
            if self._take_back():
                continue
            victim = max(self.prefilling + self.decoding, key=lambda one: (-one.priority, one.number))
            self._preempt(victim)
            if victim is sequence:
                return
        sequence.pages += self.pool.allocate(1)

    def _take_back(self) -> bool:
        """The pages that were left to an answer that still waits, the last one that goes first; whether there were."""
        heirs = [one for one in self.waiting if one.pages]
        if heirs:
            heir = min(heirs, key=lambda one: (one.priority, -one.number))
            self.pool.release(heir.pages)
            heir.pages, heir.computed, heir.published, heir.reused = [], 0, 0, 0
        return bool(heirs)

    def _preempt(self, sequence: Sequence) -> None:
        """A sequence waits again. Its full pages stay where they are until somebody needs them."""
        (self.decoding if sequence in self.decoding else self.prefilling).remove(sequence)
        sequence.preemptions += 1
        self.preempted += 1
        self._publish(sequence)
        self._leave(sequence)
        self.waiting.insert(0, sequence)

    def _spent(self) -> float:
        """Predicted seconds of the rows."""
        costs = self.costs
        return costs.step + costs.row * len(self.decoding) + costs.key * sum(one.computed for one in self.decoding)

    # -- prompts

    def _target(self, sequence: Sequence) -> int:
        """How many tokens of a sequence are computed in chunks."""
        if not sequence.limit:
            grid = self.chunk if self.canonical else PAGE
            return len(sequence.prompt.ids) // grid * grid
        return (len(sequence.prompt.ids) if self.canonical else sequence.length) - 1

    def _left(self, sequence: Sequence) -> int:
        """Tokens of a sequence to compute in chunks; before it has pages, as far as is known."""
        known = sequence.computed + PAGE * len(sequence.returning) if sequence.pages else PAGE * sequence.reach
        return max(0, self._target(sequence) - known)

    def _rank(self, sequence: Sequence, now: float) -> tuple[int, float, int]:
        """What is less goes first."""
        waited = max(0.0, now - sequence.arrived)
        return -sequence.priority, self._left(sequence) / (1 + waited / self.ageing), sequence.number

    def _admit(self, step: EngineStep, now: float, eldest: Sequence) -> None:
        """Sequences that wait get slots and pages, as long as there are some."""
        if not self.waiting or not self.slots:
            return
        blocked = None
        before = [(self._rank(one, now), self._left(one)) for one in self.prefilling]
        for sequence in sorted(self.waiting, key=lambda one: self._order(one, now)):
            if not self.slots or (blocked is not None and sequence.priority < blocked.priority):
                break
            rank, late = self._rank(sequence, now), sequence is not eldest and self._left(sequence) > 0
            if late and sum(left for other, left in before if other < rank) >= self.chunk:
                continue  # its turn is later
            if self._is_made_elsewhere(sequence):
                continue
            while not (placed := sequence.pages or self._place(sequence, step)):
                if self.decoding or self.prefilling or not self._take_back():
                    break
            if not placed and (sequence.preemptions or not self._is_new(sequence, now)):
                break  # those behind it must not starve it
            if not placed:
                blocked = blocked or sequence
                continue
            self.waiting.remove(sequence)
            sequence.slot, sequence.began = self.slots.pop(), sequence.began or self.clock()
            if sequence.computed >= self._target(sequence):
                self._begin_rows(sequence, step) if sequence.limit else self._leave(sequence)
            else:
                self.prefilling.append(sequence)
                before.append((self._rank(sequence, now), self._left(sequence)))
                for key in sequence.keys[sequence.computed // PAGE :]:
                    self.making.setdefault(key, sequence)

    def _order(self, sequence: Sequence, now: float) -> tuple[int, int, float, float, int]:
        """Of those that wait: those that had begun and then those that have waited long ask for pages first."""
        if sequence.keys:
            sequence.here = boundary(sequence.keys, sequence.here, self.pool.__contains__)
            sequence.reach = boundary(sequence.keys, max(sequence.here, sequence.reach), self._can_be_had)
        if not self._is_new(sequence, now):
            return -sequence.priority, -sequence.preemptions, 0.0, 0.0, sequence.number
        first, left, number = self._rank(sequence, now)
        return first, -sequence.preemptions, 1.0, left, number

    def _is_new(self, sequence: Sequence, now: float) -> bool:
        return now - sequence.arrived < self.patience

    def _can_be_had(self, key: bytes) -> bool:
        return key in self.pool or self.saved(key)

    def _bequeath(self, sequence: Sequence) -> None:
        """The pages of a prompt go over to the first of the answers to it that wait to begin."""
        heirs = [one for one in self.waiting if one.leader is sequence and not one.preemptions]
        prompt, last = len(sequence.prompt.ids), (len(sequence.prompt.ids) - 1) // PAGE
        if not heirs or not sequence.pages or sequence.computed < prompt - 1 or sequence.published > last:
            return
        heir, *others = heirs
        heir.pages, heir.computed, heir.published = sequence.pages[: last + 1], prompt - 1, last
        heir.reused = heir.computed
        sequence.pages = sequence.pages[last + 1 :]
        for other in others:
            other.leader = heir

    def _is_made_elsewhere(self, sequence: Sequence) -> bool:
        """Whether another sequence is computing what this one would begin with."""
        leader = sequence.leader
        if sequence.pages:
            return False
        if leader is not None and leader.pages and leader.computed < len(leader.prompt.ids) - 1:
            return True
        maker = self.making.get(sequence.keys[sequence.here]) if sequence.here < len(sequence.keys) else None
        if maker is not None:
            maker.priority = max(maker.priority, sequence.priority)
            maker.arrived = min(maker.arrived, sequence.arrived)
        return maker is not None

    def _found(self, sequence: Sequence) -> list[int]:
        """Pages that hold the beginning of a sequence."""
        pages = []
        for index, key in enumerate(sequence.keys):
            page = self.pool.find(key, sequence.contents[index])
            if page is None:
                break
            pages.append(page)
        return pages

    def _usable(self, sequence: Sequence, pages: int) -> int:
        """How many of the pages that hold the beginning of a sequence it can go on from."""
        grid = self.chunk // PAGE if self.canonical and pages * PAGE < len(sequence.prompt.ids) else 1
        return pages // grid * grid

    def _place(self, sequence: Sequence, step: EngineStep) -> bool:
        """Pages for a sequence: those that hold what it begins with, and fresh ones; False where there are too few."""
        leader, prompt = sequence.leader, len(sequence.prompt.ids)
        if leader is not None and (not leader.pages or sequence.tokens or leader.computed < prompt - 1):
            leader = None
        most, busy = self._target(sequence) // PAGE, self.decoding or self.prefilling
        if leader is None and busy and most + len(self.decoding) - sequence.here > self.pool.room:
            return False  # without a look at every page
        found = self._found(sequence) if leader is None else leader.pages[: (prompt - 1) // PAGE]
        self.pool.hold(found)
        # A page for each that decodes, so that what begins now does not end another soon.
        fresh = max(most + bool(sequence.limit) - len(found), bool(sequence.limit))
        if busy and fresh + len(self.decoding) > self.pool.room:
            self.pool.release(found)
            return False
        saved: list[Any] = []
        if leader is None:
            rest = list(zip(sequence.keys, sequence.contents, strict=True))[len(found) :]
            saved = self.restore(rest) if rest else []
            usable = self._usable(sequence, len(found) + len(saved))
            self.pool.release(found[usable:])
            found, saved = found[:usable], saved[: max(0, usable - len(found))]
        known = len(found) + len(saved)
        fresh = max(most, known) + bool(sequence.limit) - len(found)
        try:
            pages = self.pool.allocate(fresh)
        except OutOfPages:
            self.pool.release(found)
            return False
        sequence.pages, sequence.returning = found + pages, saved
        sequence.computed, sequence.published = len(found) * PAGE, len(found)
        sequence.reused = known * PAGE
        if leader is not None:
            if (prompt - 1) % PAGE:
                step.copies.append((leader.pages[len(found)], pages[0]))
            sequence.computed = sequence.reused = prompt - 1
        return True

    def _bring_back(self, sequence: Sequence, step: EngineStep, budget: float) -> float:
        """Pages of a sequence that were saved come back, as many as the budget allows; the predicted seconds."""
        count, each = len(sequence.returning), self.costs.page
        if count * each > budget:
            count = max(int(budget / each), 0 if step.chunks or step.windows or step.restored else 1)
        if not count:
            return 0.0
        first = sequence.computed // PAGE
        step.restored += zip(sequence.pages[first : first + count], sequence.returning[:count], strict=True)
        del sequence.returning[:count]
        sequence.computed += count * PAGE
        self.brought.append(sequence)
        return count * each

    def _prefill(self, sequence: Sequence, step: EngineStep, budget: float, tokens: int) -> float:
        """A chunk of a prompt with the windows it needs, or some of these; the seconds that is predicted to take.

        Where the step has nothing of a prompt yet, at least a window or a page, whatever it takes.
        """
        spent, taken = self._bring_back(sequence, step, budget) if sequence.returning else 0.0, 0
        start, target = sequence.computed, self._target(sequence)
        if sequence.returning:
            return spent
        if start >= target:
            self._prefilled(sequence, step)
            return spent
        least = not (step.chunks or step.windows or step.restored)
        grid = min(target, start // self.chunk * self.chunk + self.chunk)
        stop = grid if self.canonical else min(grid, start + tokens)
        if stop - start > tokens:
            return spent
        most = self.most_windows if step.rows else len(sequence.prompt.windows)
        for span in self._windows(sequence, start, stop):
            if self.encoded(span.digest) or span.digest in step.windows:
                continue
            if taken == most or (spent + self.costs.window > budget and not (least and not taken)):
                stop = span.start
                break
            step.windows.append(span.digest)
            spent, taken = spent + self.costs.window, taken + 1
        least = least and not taken
        if self.canonical:
            fits = stop == grid and (least or spent + self.costs.chunk(start, stop) <= budget)
            stop = stop if fits else start
        else:
            stop = min(stop, start + max(self.costs.most(start, budget - spent), PAGE if least else 0))
            stop = stop if stop == target else stop // PAGE * PAGE
        if stop <= start:
            return spent
        step.chunks.append(PromptChunk(sequence, start, stop))
        sequence.computed = stop
        if stop == target:
            self._prefilled(sequence, step)
        return spent + self.costs.chunk(start, stop)

    def _prefilled(self, sequence: Sequence, step: EngineStep) -> None:
        self.prefilling.remove(sequence)
        self._begin_rows(sequence, step) if sequence.limit else self.ahead.append(sequence)

    @staticmethod
    def _windows(sequence: Sequence, start: int, stop: int) -> Iterable[WindowSpan]:
        return (span for span in sequence.prompt.windows if span.start < stop and span.stop > start)

    # -- pages

    def _publish(self, sequence: Sequence) -> None:
        """The full pages of a sequence can be found from now on."""
        full = min(sequence.computed, sequence.length) // PAGE
        sequence.name(full, self.canonical)
        for page in range(sequence.published, full):
            key = sequence.keys[page]
            self.pool.publish(sequence.pages[page], key, sequence.contents[page])
            if self.making.get(key) is sequence:
                del self.making[key]
        sequence.published = max(sequence.published, full)

    def _leave(self, sequence: Sequence) -> None:
        """Slot and pages go back."""
        for key in sequence.keys:
            if self.making.get(key) is sequence:
                del self.making[key]
        self.pool.release(sequence.pages)
        sequence.pages, sequence.returning = [], []
        if sequence.slot >= 0:
            self.slots.append(sequence.slot)
        sequence.slot, sequence.computed, sequence.published = -1, 0, 0
        sequence.drawing = len(sequence.tokens)


def boundary(keys: list[bytes], near: int, there: Callable[[bytes], bool]) -> int:
    """How many of the first keys are there, looked for up and down from a number near it: what is evicted of a chain is
    its end."""
    while near < len(keys) and there(keys[near]):
        near += 1
    while near and not there(keys[near - 1]):
        near -= 1
    return near
