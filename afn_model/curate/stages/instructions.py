"""Questions that ask for a form of the answer too, such as capital letters: answers that keep it, and rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from afn_model.checks import share
from afn_model.curate import constraint_texts, identity
from afn_model.curate.constraint_texts import QUESTIONS, Demand, code_of, content, demands, words_to_use
from afn_model.curate.questions import misfit
from afn_model.curate.refusals import stands
from afn_model.curate.replies import other_language
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, lineage_of, lost, made, will_pass
from afn_model.curate.texts import words_of
from afn_model.curate.timeline import Timeline, timeline_of
from afn_model.scoring.constraints import obeys


@dataclass(frozen=True)
class _Following:
    """A question with its demands about a clip."""

    heard: Timeline
    audio: Mapping[str, Any]
    question: str
    demands: Sequence[Demand]
    language: str
    request: AnnotationRequest


@dataclass(frozen=True)
class Instructions(AskingStage):
    """Writes ``instructions``: products of task instruction_<constraint>, or instruction_<one>_<other> with two, in the
    order of the alphabet. An answer that breaks a constraint, or that is not in the captions, is counted and left out.

    Answers are in the language of the captions: what the first of them says of itself, else the stage's. What its
    writing lacks is not asked for: capital letters, or a number of words.

    Args:
        clips: field with the clips that are asked about; the whole recording if "".
        share: of the clips.
        pairs: share of the questions with two constraints.
    """

    name: ClassVar[str] = "instructions"
    writes: ClassVar[tuple[str, ...]] = ("instructions",)
    # Of 40 clips in an hour, three captions each.
    resources: ClassVar[Resources] = Resources(batch=4, seconds=0.5, calls=4.8, tokens_in=2_500, tokens_out=290)

    annotator: str = "writer"
    prompt: str = "follow"
    max_tokens: int | None = 300
    clips: str = "mined"
    share: float = 0.12
    pairs: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        share(self.share, "share")
        share(self.pairs, "pairs")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("source_id", "seconds", "segments", "merged", *[self.clips] * bool(self.clips))

    def depends(self) -> Mapping[str, Any]:
        forms = {name: [*one.phrasings] for name, one in constraint_texts.FORMS.items()}
        texts = [constraint_texts.STARTS, constraint_texts.ENDS, constraint_texts.KEYS, QUESTIONS]
        return {**super().depends(), "forms": forms, "texts": texts}

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        asked = [self._asked(row) for row in rows]
        replies = self.answered(context, [[one.request for one in some] for some in asked])
        return [
            will_pass(responses) or _outcome(row, some, responses)
            for row, some, responses in zip(rows, asked, replies, strict=True)
        ]

    def _asked(self, row: Row) -> list[_Following]:
        heard, listed = timeline_of(row), list(row[self.clips]) if self.clips else []
        language = code_of(next((one["language"] for one in row["merged"] if one.get("language")), self.language))
        found = []
        for clip in listed or [{"id": row["source_id"]}]:
            part = heard.part(clip["start"], clip["end"]) if "start" in clip else heard
            if part.moments and identity.fraction("instruction", clip["id"]) < self.share:
                audio = {name: clip[name] for name in ("start", "end") if name in clip}
                found.append(self._following(clip["id"], part, audio, language))
        return found

    def _following(self, subject: str, part: Timeline, audio: Mapping[str, Any], language: str) -> _Following:
        chosen = demands(subject, part.texts, language, self.pairs)
        question, form = identity.pick(QUESTIONS, "question", subject), " ".join(one.text for one in chosen)
        asked = self.request(subject, annotations=part.said(), question=question, constraint=form)
        # The language of capitals and JSON is told below, from what is left without them.
        return _Following(part, audio, question, chosen, language, replace(asked, language=""))


def _outcome(row: Row, asked: Sequence[_Following], responses: Sequence[AnnotationResponse]) -> Outcome:
    tally = lost(responses, "answers")
    found = []
    for one, response in zip(asked, responses, strict=True):
        if response.error:
            continue
        if wrong := _wrong(one, response.data):
            tally[f"answers lost: {wrong}"] += 1
            continue
        found.append(_product(one, response))
        tally[f"records: {found[-1]['task']}"] += 1
    return Kept({"instructions": found}, tally)


def _wrong(one: _Following, answer: str) -> str:
    """What is wrong with an answer, in few words that are counted; "" where nothing is."""
    if wrong := misfit((answer,)):
        return wrong
    specs = [demand.spec for demand in one.demands]
    if broken := [spec["name"] for spec in specs if not obeys(answer, spec)]:
        return f"broken: {broken[0]}"
    left = content(answer, specs)
    if one.language and other_language(left.lower(), one.language):
        return "another language"
    return "" if stands(left, one.heard.texts, one.heard.seconds[0]) else "not in the captions"


def _product(one: _Following, response: AnnotationResponse) -> dict[str, Any]:
    specs, answer = [dict(demand.spec) for demand in one.demands], response.data
    told = " ".join([one.question, *(demand.text for demand in one.demands)])
    said = words_of(answer)
    # A word that the answer has of the captions, by which ``scoring.metrics`` tells that it says something.
    label = next((word for word in words_to_use(one.heard.texts) if word in said), "")
    truth = {"metric": "constraint", "constraint": specs[0], "label": label} if label else {"metric": "f1"}
    return {
        "axis": "safety",
        "task": "_".join(["instruction", *sorted(spec["name"] for spec in specs)]),
        "audios": [dict(one.audio)],
        "messages": [{"role": "user", "content": told}, {"role": "assistant", "content": answer}],
        "rewards": [{"kind": "constraint", **spec} for spec in specs],
        "truth": {**truth, "answer": answer, "question": one.question, "constraints": specs},
        **lineage_of(made(response, one.request.prompt_hash), one.heard.annotations),
    }
