"""Sifts chains of thought: what nobody need be asked about first, then what costs the least, what is listened to last.

    1 steps with times        read from the reply
    2 times                   inside of the recording, at captions that tell the like
    3 evidence apart          in two places, so many seconds from each other
    7 length                  words, and sequences of words that come again
    8 no captions             a listener has none to speak of
    6 blind                   three short requests: answered without hearing anything
    5 answer from the chain   a request with the chain
    5 answer from the captions   a request with all captions, whose beginning the writer's request had
    4 heard                   a request for each step, with its part of the recording; wrong ones are written anew

The numbers are those of the design, the order is that of the cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from afn_model.checks import number, share, whole
from afn_model.curate.chains import (
    SLACK,
    Chain,
    as_thought,
    entered,
    evidence_apart,
    length_fits,
    lost_by,
    not_read,
    read_chain,
    repeats,
    tagged,
    times_stand,
    unchecked,
)
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.questions import like_one_of
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Failed, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, audio_of, lineage_of, will_pass
from afn_model.curate.stages.asking_questions import BLIND, blind_requests, guessed, put, says_answer
from afn_model.curate.texts import words_of
from afn_model.curate.timeline import Timeline, timeline_of

PARSE, TIMES, APART, LENGTH, READ = "1 steps with times", "2 times", "3 evidence apart", "7 length", "8 no captions"
BLINDLY, FROM_CHAIN, FROM_CAPTIONS, HEARD = (
    "6 blind",
    "5 answer from the chain",
    "5 answer from the captions",
    "4 heard",
)
ORDER = (PARSE, TIMES, APART, LENGTH, READ, BLINDLY, FROM_CHAIN, FROM_CAPTIONS, HEARD)
STEP_HEARD, FROM_CHAIN_PROMPT, FROM_CAPTIONS_PROMPT = "step_heard", "answer_from_chain", "answer_from_captions"


@dataclass
class _Standing:
    """A chain that still stands, and what it was made with."""

    chain: Chain
    how: Mapping[str, Any]
    used: list[str] = field(default_factory=list)  # ids of annotations that changed it
    wrong: list[int] = field(default_factory=list)  # numbers of steps that are not heard


@dataclass
class _Sifting:
    """A row on its way through the filters."""

    row: Row
    heard: Timeline
    tally: Counter[str] = field(default_factory=Counter)
    standing: list[_Standing] = field(default_factory=list)
    failed: Failed | None = None

    def keep(self, name: str, problems: Sequence[str]) -> None:
        """Takes out those that have a problem."""
        self.tally.update(lost_by(name, why) for why in problems if why)
        self.standing = [one for one, why in zip(self.standing, problems, strict=True) if not why]

    def enter(self, name: str, checked: bool = True) -> None:
        self.tally[entered(name)] += len(self.standing)
        if not checked:
            self.tally[unchecked(name)] += len(self.standing)


Asked = Callable[[_Sifting, _Standing], list[AnnotationRequest]]
Judged = Callable[[_Standing, Sequence[AnnotationResponse]], str]


@dataclass(frozen=True)
class ThinkFilters(AskingStage):
    """Writes ``thoughts``: products of chains that pass every filter. Each counts what it gets and what it takes out,
    and why; ``chains.yields(tally, ORDER)`` makes a table of that.

    An annotator that is "" is not asked: its filter lets all pass and counts them as not checked. A chain whose filter
    has no reply of use does not pass.

    Args:
        annotator: that writes steps anew; if "", a chain with a step that is not heard is out.
        prompt: of that.
        listener: that hears the part of the recording of each step, and a second more on both sides.
        solver: that answers from the chain alone, and from the captions alone.
        blind: that answers without either.
        tries: of ``blind``; a chain is out if most of them are right.
        wrong_share: of the steps with times that are not heard, above which a chain is out; fewer are written anew and
            heard once more.
        apart: seconds between two of the places with evidence.
        least, most: words of a chain.
        repeated: share of sequences of four words that come again, from which a chain is out.
    """

    name: ClassVar[str] = "think-filters"
    reads: ClassVar[tuple[str, ...]] = ("chains", "merged", "segments", "file", "source_id", "seconds")
    writes: ClassVar[tuple[str, ...]] = ("thoughts",)
    # For 50,000 hours 1.3 million calls and 1.4 billion tokens read.
    resources: ClassVar[Resources] = Resources(batch=8, seconds=0.2, calls=26, tokens_in=28_000, tokens_out=200)

    annotator: str = "writer"
    prompt: str = "step_rewrite"
    max_tokens: int | None = 400
    listener: str = "listener"
    solver: str = "writer"
    blind: str = "blind"
    tries: int = 3
    wrong_share: float = 0.3
    apart: float = 30.0
    least: int = 150
    most: int = 900
    repeated: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        whole(self.tries, "tries", 1, 99)
        whole(self.most, "most", whole(self.least, "least", 0, 100_000), 100_000)
        share(self.wrong_share, "wrong_share")
        share(self.repeated, "repeated")
        number(self.apart, "apart")

    def depends(self) -> Mapping[str, Any]:
        names = [self.prompt, STEP_HEARD, FROM_CHAIN_PROMPT, FROM_CAPTIONS_PROMPT, BLIND]
        return {"prompts": [prompt_file(name).hash for name in names]}

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        listed = [self._begun(row) for row in rows]
        self._judge(BLINDLY, listed, context, self.blind, self._unheard, self._unguessed)
        self._judge(FROM_CHAIN, listed, context, self.solver, self._from_chain, _agrees)
        self._judge(FROM_CAPTIONS, listed, context, self.solver, self._from_captions, _agrees)
        self._listen(listed, context)
        return [one.failed or self._kept(one) for one in listed]

    # What nobody is asked about.

    def _begun(self, row: Row) -> _Sifting:
        """The chains of a row that pass the filters which ask nobody."""
        sifting = _Sifting(row, timeline_of(row))
        sifting.tally[entered(PARSE)] += len(row["chains"])
        for told in row["chains"]:
            chain, why = read_chain(told)
            if chain:
                why = like_one_of(chain.question.question, [one.chain.question for one in sifting.standing])
            if chain and not why:
                sifting.standing.append(_Standing(chain, told))
            else:
                sifting.tally[lost_by(PARSE, why)] += 1
        for name, check in self._checks(sifting.heard):
            sifting.enter(name)
            sifting.keep(name, [check(one.chain) for one in sifting.standing])
        return sifting

    def _checks(self, heard: Timeline) -> Iterator[tuple[str, Callable[[Chain], str]]]:
        yield TIMES, lambda chain: times_stand(chain, heard)
        yield APART, lambda chain: evidence_apart(chain, self.apart)
        yield LENGTH, lambda chain: length_fits(chain, self.least, self.most) or repeats(chain, self.repeated)
        yield READ, not_read

    # What is asked.

    def _ask(
        self, listed: Sequence[_Sifting], context: Context, annotator: str, asked: Asked
    ) -> list[list[list[AnnotationResponse]]]:
        """For each chain of each row the responses; a row that lacks one which another run may have has failed, and is
        not asked about any more."""
        requests = [[asked(row, one) for one in row.standing] for row in listed]
        flat = [[request for some in chains for request in some] for chains in requests]
        found = []
        for row, chains, responses in zip(listed, requests, self.answered(context, flat, annotator), strict=True):
            if failed := will_pass(responses):
                row.failed, row.standing, chains = failed, [], []
            left = iter(responses)
            found.append([[next(left) for _ in some] for some in chains])
        return found

    def _judge(
        self, name: str, listed: Sequence[_Sifting], context: Context, annotator: str, asked: Asked, judged: Judged
    ) -> None:
        """A filter that asks about each chain."""
        for row in listed:
            row.enter(name, bool(annotator))
        if not annotator:
            return
        for row, chains in zip(listed, self._ask(listed, context, annotator, asked), strict=True):
            row.keep(name, [judged(one, some) for one, some in zip(row.standing, chains, strict=True)])

    def _unheard(self, row: _Sifting, one: _Standing) -> list[AnnotationRequest]:
        return blind_requests(self, row.row["source_id"], one.chain.question, self.tries)

    def _unguessed(self, one: _Standing, tries: Sequence[AnnotationResponse]) -> str:
        return "answered without hearing" if guessed(one.chain.question, tries) else ""

    def _from_chain(self, row: _Sifting, one: _Standing) -> list[AnnotationRequest]:
        ask = partial(self.request, row.row["source_id"], prompt=FROM_CHAIN_PROMPT, tokens=100)
        return [ask(chain=one.chain.text, question=_question(row, one))]

    def _from_captions(self, row: _Sifting, one: _Standing) -> list[AnnotationRequest]:
        ask = partial(self.request, row.row["source_id"], prompt=FROM_CAPTIONS_PROMPT, tokens=100)
        return [ask(annotations=row.heard.said(), question=_question(row, one))]

    # What is listened to.

    def _listen(self, listed: Sequence[_Sifting], context: Context) -> None:
        """Steps are heard; where a few are wrong they are written anew, and the chain is looked at once more."""
        for row in listed:
            row.enter(HEARD, bool(self.listener))
        if not self.listener:
            return
        for row, chains in zip(listed, self._ask(listed, context, self.listener, self._steps), strict=True):
            for one, replies in zip(row.standing, chains, strict=True):
                timed = [number for number, step in enumerate(one.chain.steps) if step.span]
                one.wrong = [number for number, reply in zip(timed, replies, strict=True) if not _yes(reply)]
                row.tally["steps heard"] += len(timed) - len(one.wrong)
                row.tally["steps not heard"] += len(one.wrong)
            row.keep(HEARD, [self._too_wrong(one) for one in row.standing])
        self._write_anew(listed, context)
        if self.solver:
            self._again(listed, context, self.solver, self._from_chain, _agrees)
        self._again(listed, context, self.listener, self._steps, _all_heard)

    def _steps(self, row: _Sifting, one: _Standing) -> list[AnnotationRequest]:
        """A request for each step with times; of a chain that was heard before, for those that were wrong."""
        found = []
        for place, step in enumerate(one.chain.steps):
            if step.start is not None and step.end is not None and (not one.wrong or place in one.wrong):
                start, end = max(0.0, step.start - SLACK), min(row.row["seconds"], step.end + SLACK)
                heard = audio_of(row.row, round(start, 3), round(end, 3))
                found.append(self.request(row.row["source_id"], [heard], prompt=STEP_HEARD, tokens=20, step=step.text))
        return found

    def _too_wrong(self, one: _Standing) -> str:
        if len(one.wrong) > self.wrong_share * len(one.chain.timed):
            return "many steps are not heard"
        return "" if self.annotator or not one.wrong else "a step is not heard, and nobody writes it anew"

    def _write_anew(self, listed: Sequence[_Sifting], context: Context) -> None:
        """Puts steps of another text in the place of those that are not heard; what asks nobody checks the chain."""
        if not self.annotator:
            return
        for row, chains in zip(listed, self._ask(listed, context, self.annotator, self._rewrites), strict=True):
            problems = []
            for one, replies in zip(row.standing, chains, strict=True):
                steps = list(one.chain.steps)
                for place, reply in zip(one.wrong, replies, strict=True):
                    if not reply.error:
                        steps[place] = replace(steps[place], text=" ".join(reply.data.split()), event="")
                        one.used.append(reply.id)
                one.chain = replace(one.chain, steps=tuple(steps))
                row.tally["steps written anew"] += len(replies)
                checks = (tagged, *(check for _, check in self._checks(row.heard))) if replies else ()
                error = any(reply.error for reply in replies)
                problem = next(filter(None, (check(one.chain) for check in checks)), "")
                problems.append("no step written anew" if error else _anew(problem))
            row.keep(HEARD, problems)

    def _rewrites(self, row: _Sifting, one: _Standing) -> list[AnnotationRequest]:
        found = []
        for step in (one.chain.steps[place] for place in one.wrong):
            start, end = step.span or (0.0, 0.0)
            near = [each for each in row.heard.moments if each.overlaps((1, start, end))]
            found.append(
                self.request(
                    row.row["source_id"],
                    annotations=replace(row.heard, moments=tuple(near)).said(),
                    question=_question(row, one),
                    start=f"{start:.1f}",
                    end=f"{end:.1f}",
                    step=step.text,
                )
            )
        return found

    def _again(
        self, listed: Sequence[_Sifting], context: Context, annotator: str, asked: Asked, judged: Judged
    ) -> None:
        """A filter once more, for chains with steps that were written anew."""
        replies = self._ask(listed, context, annotator, lambda row, one: asked(row, one) if one.wrong else [])
        for row, chains in zip(listed, replies, strict=True):
            pairs = zip(row.standing, chains, strict=True)
            row.keep(HEARD, [_anew(judged(one, some)) if one.wrong else "" for one, some in pairs])

    def _kept(self, sifting: _Sifting) -> Kept:
        products = []
        for one in sifting.standing:
            product = as_thought(one.chain, sifting.row["source_id"])
            product |= lineage_of(one.how, (*one.used, *sifting.heard.annotations))
            timed = any(reward["kind"] == "timestamps" for reward in product["rewards"])
            sifting.tally["thoughts" if timed else "thoughts without a reward for times"] += 1
            products.append(product)
        return Kept({"thoughts": products}, +sifting.tally)


def _question(row: _Sifting, one: _Standing) -> str:
    return put(one.chain.question, row.row["source_id"])


def _agrees(one: _Standing, replies: Sequence[AnnotationResponse]) -> str:
    """What is wrong with an answer that should be the chain's: it is given, and no other option."""
    reply = replies[0]
    if reply.error:
        return "no answer"
    return "" if says_answer(reply.data, one.chain.question) else "another answer"


def _yes(reply: AnnotationResponse) -> bool:
    return not reply.error and words_of(reply.data)[:1] == ["yes"]


def _all_heard(one: _Standing, replies: Sequence[AnnotationResponse]) -> str:
    return "" if all(map(_yes, replies)) else "not heard"


def _anew(problem: str) -> str:
    return f"written anew: {problem}" if problem else ""
