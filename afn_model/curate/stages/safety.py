"""Requests about unsafe recordings that are declined, and harmless ones that are answered: when to abstain, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from afn_model.checks import number, share, shown, whole
from afn_model.curate import identity
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.refusals import (
    BENIGN,
    CATEGORIES,
    PAIR,
    SPANS,
    UnsafeSpan,
    benign_wrong,
    pair_wrong,
    passages,
    unsafe_spans,
    words_between,
)
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, lost, will_pass
from afn_model.curate.timeline import Timeline, timeline_of

# What stands in the place of captions where the detector reads a request and its answer.
TALK = "A user asks an assistant."
LEAST = 2.0  # seconds of a clip, which ``margin`` 0 would leave a single word


@dataclass
class _Case:
    """Something that is asked for about a row: a pair about an unsafe span, or a harmless request."""

    heard: Timeline
    start: float
    end: float
    said: str
    request: AnnotationRequest
    sources: list[str]
    span: UnsafeSpan | None = None
    response: AnnotationResponse | None = None
    measured: AnnotationResponse | None = None

    @property
    def texts(self) -> list[str]:
        return [*self.heard.texts, *[self.said] * bool(self.said)]

    @property
    def told(self) -> Mapping[str, str]:
        return {name: " ".join(text.split()) for name, text in self.response.data.items()} if self.response else {}


@dataclass(frozen=True)
class Safety(AskingStage):
    """Writes ``safety``: products with a reward for declining exactly when that is due. The annotator is asked what is
    unsafe in a recording; for each span of that, for a request to decline and a harmless twin (tasks refusal and
    benign_twin), of which either both stand, by ``refusals.pair_wrong``, or none; and about some recordings in
    which nothing is unsafe, for a harmless request that sounds harmful (task benign).

    The harmless requests with their answers are given to the detector too: "benign twins flagged" of "benign twins"
    in the tally, and the same of look-alikes, is how often it takes harmless ones for harmful. Those that it flags
    stay, with ``truth.flagged``.

    Args:
        pair_prompt, benign_prompt: of the pairs and of what sounds harmful.
        pair_tokens: of these replies at most.
        most: spans of a recording that pairs are made of, the first ones.
        margin: seconds that are heard before and after a span.
        benign: share of the recordings without anything unsafe that have a harmless request.
    """

    name: ClassVar[str] = "safety"
    reads: ClassVar[tuple[str, ...]] = ("source_id", "seconds", "segments", "merged", "transcript")
    writes: ClassVar[tuple[str, ...]] = ("safety",)
    # Of 4 recordings in an hour each is read once, 13,000 tokens, and a tenth once more: 10,800 of them are captions
    # that ``merge`` has sent in the same words, so that an endpoint keeps them. 2.4 pairs are asked for, 2 measured.
    resources: ClassVar[Resources] = Resources(batch=4, seconds=1, calls=9.2, tokens_in=61_000, tokens_out=1_000)

    annotator: str = "writer"
    prompt: str = "unsafe"
    max_tokens: int | None = 800
    pair_prompt: str = "refusal"
    benign_prompt: str = "benign"
    pair_tokens: int = 500
    most: int = 4
    margin: float = 5.0
    benign: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        for name in (self.pair_prompt, self.benign_prompt):
            prompt_file(name)
        if self.language != "en":
            raise ValueError(f"whether an answer declines is told of English alone, not of {shown(self.language)}")
        whole(self.most, "most", 1, 1000)
        whole(self.pair_tokens, "pair_tokens", 1)
        number(self.margin, "margin", above=-1e-9)
        share(self.benign, "benign")

    def depends(self) -> Mapping[str, Any]:
        names = (self.prompt, self.pair_prompt, self.benign_prompt)
        return {"prompts": [prompt_file(name).hash for name in names], "categories": CATEGORIES}

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        tallies = [Counter[str]() for _ in rows]
        asked = [self._detection(row) for row in rows]
        found = self.answered(context, asked)
        failed = [will_pass(some) for some in found]
        for some, tally in zip(found, tallies, strict=True):
            tally.update(lost(some, "detections"))
        cases = [
            [] if wrong or not some or some[0].error else self._cases(row, some[0], tally)
            for row, some, wrong, tally in zip(rows, found, failed, tallies, strict=True)
        ]
        replies = self.answered(context, [[one.request for one in some] for some in cases])
        for some, responses in zip(cases, replies, strict=True):
            for one, response in zip(some, responses, strict=True):
                one.response = response
        failed = [wrong or will_pass(some) for wrong, some in zip(failed, replies, strict=True)]
        standing = [
            [] if wrong else [one for one in some if _stands(one, tally)]
            for some, wrong, tally in zip(cases, failed, tallies, strict=True)
        ]
        measured = self.answered(context, [[self._measure(one) for one in some] for some in standing])
        for some, responses in zip(standing, measured, strict=True):
            for one, response in zip(some, responses, strict=True):
                one.measured = response
        failed = [wrong or will_pass(some) for wrong, some in zip(failed, measured, strict=True)]
        return [
            wrong or _outcome(row, some, tally)
            for row, some, wrong, tally in zip(rows, standing, failed, tallies, strict=True)
        ]

    def _detection(self, row: Row) -> list[AnnotationRequest]:
        """What is asked of a row: nothing where nothing is heard."""
        heard, said = timeline_of(row), passages(row["transcript"], row["seconds"])
        asked = self._detect(row["source_id"], heard.said() or "nothing", said.said() or "nothing")
        return [asked] if heard.moments or said.moments else []

    def _detect(self, subject: str, captions: str, said: str) -> AnnotationRequest:
        categories = "\n".join(f"{name}: {what}" for name, what in CATEGORIES.items())
        asked = self.request(subject, schema=SPANS, annotations=captions, transcript=said, categories=categories)
        return replace(asked, language="")  # quotes are in the language that is spoken

    def _cases(self, row: Row, response: AnnotationResponse, tally: Counter[str]) -> list[_Case]:
        heard, transcript = timeline_of(row), row["transcript"]
        spans = unsafe_spans(response.data, heard, transcript, tally)
        tally.update(f"unsafe: {one.category}" for one in spans)
        sources = [response.id, *transcript.get("annotations", ()), *heard.annotations]
        if not spans:
            tally["recordings without anything unsafe"] += 1
            if not heard.moments or identity.fraction("benign", row["source_id"]) >= self.benign:
                return []
            asked = self.request(
                row["source_id"],
                prompt=self.benign_prompt,
                schema=BENIGN,
                tokens=self.pair_tokens,
                annotations=heard.said(),
                transcript=passages(transcript, row["seconds"]).said() or "nothing",
            )
            spoken = " ".join(transcript.get("text", "").split())
            return [_Case(heard, 0.0, row["seconds"], spoken, asked, sources)]
        if len(spans) > self.most:
            tally["unsafe spans beyond the most of a recording"] = len(spans) - self.most
        return [self._pair(row, heard, one, sources) for one in spans[: self.most]]

    def _pair(self, row: Row, heard: Timeline, span: UnsafeSpan, sources: list[str]) -> _Case:
        margin = max(self.margin, (LEAST - (span.end - span.start)) / 2)
        start, end = round(max(0.0, span.start - margin), 3), round(min(row["seconds"], span.end + margin), 3)
        part, said = heard.part(start, end), words_between(row["transcript"], start, end)
        asked = self.request(
            identity.of("unsafe", row["source_id"], span.start, span.end, span.category),
            prompt=self.pair_prompt,
            schema=PAIR,
            tokens=self.pair_tokens,
            annotations=part.said() or "nothing",
            transcript=said or "nothing",
            unsafe=f"{span.category}: {span.quote}",
        )
        return _Case(part, start, end, said, asked, sources, span)

    def _measure(self, case: _Case) -> AnnotationRequest:
        """The detector is given a harmless request and its answer, as a talk."""
        request = case.told["twin" if case.span else "request"]
        talk = f"0.0 to 10.0 s: {request}\n10.0 to 20.0 s: {case.told['reply']}"
        return self._detect(case.request.subject, f"0.0 to 20.0 s: {TALK}", talk)


def _stands(case: _Case, tally: Counter[str]) -> bool:
    """Whether what was written stands; what does not is counted."""
    what = "pairs" if case.span else "look-alikes"
    if case.response is None or case.response.error:
        tally.update(lost([case.response] if case.response else [], what))
        return False
    if case.span:
        wrong = pair_wrong(case.told, case.span, case.texts, case.end - case.start)
    else:
        wrong = benign_wrong(case.told, case.texts, case.end)
    if wrong:
        tally[f"{what} lost: {wrong}"] += 1
    return not wrong


def _outcome(row: Row, cases: Sequence[_Case], tally: Counter[str]) -> Outcome:
    found: list[dict[str, Any]] = []
    for one in cases:
        what = "benign twins" if one.span else "look-alikes"
        tally[what] += 1
        flagged = bool(one.measured and not one.measured.error and one.measured.data["spans"])
        tally[f"{what} flagged"] += flagged
        if one.measured and one.measured.error:
            tally[f"{what} not measured: {one.measured.error.partition(':')[0]}"] += 1
        about = {"pair": one.request.subject, "category": one.span.category} if one.span else {}
        told = one.told
        if one.span:
            found.append(_product(one, "refusal", told["request"], told["answer"], True, about))
        request, more = told["twin" if one.span else "request"], {"flagged": True} if flagged else {}
        found.append(
            _product(one, "benign_twin" if one.span else "benign", request, told["reply"], False, about | more)
        )
    tally.update(f"records: {one['task']}" for one in found)
    return Kept({"safety": found}, +tally)


def _product(case: _Case, task: str, request: str, answer: str, due: bool, about: Mapping[str, Any]) -> dict[str, Any]:
    response = case.response
    return {
        "axis": "safety",
        "task": task,
        "audios": [{"start": case.start, "end": case.end}] if case.span else [{}],
        "messages": [{"role": "user", "content": request}, {"role": "assistant", "content": answer}],
        "rewards": [{"kind": "refusal", "due": due}],
        "truth": {"metric": "refusal", "answer": answer, "due": due, **about},
        "annotator": response.model if response else "",
        "prompt": case.request.prompt_hash,
        "annotations": [*[response.id if response else ""], *case.sources],
    }
