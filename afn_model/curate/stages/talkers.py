"""Questions about who says what, who interrupts whom and what one speaker says, from words and turns with times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.checks import number, whole
from afn_model.curate import identity
from afn_model.curate.conversation import Conversation, conversation_of
from afn_model.curate.questions import marked, misfit
from afn_model.curate.replies import TEXT, object_of
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, lineage_of, lost, made, will_pass
from afn_model.curate.stages.transcripts import pieces
from afn_model.curate.talker_questions import TalkQuestion, kept_meaning, questions_about

SCHEMA = object_of({"question": {**TEXT, "maxLength": 600}})
Placed = tuple[TalkQuestion, str, Mapping[str, Any]]  # with the id and the place of what is heard


@dataclass(frozen=True)
class Talkers(AskingStage):
    """Writes ``talkers``: products of axis talkers, in English whatever is spoken, whose answers follow from
    ``transcript`` and ``speakers``. Nobody is asked for them; an annotator may be named to say the questions in other
    words. Words of its that change what is asked are left out and counted, and the template stays.

    A recording longer than ``longest`` is cut in its longest pauses; speakers are numbered in each part anew, as the
    part alone is heard.

    Args:
        annotator: that says questions in other words; nobody if "".
        longest: seconds of a part.
        most: questions about utterances, and about interruptions, of a part.
        least_words, most_words: of an utterance that is asked about.
    """

    name: ClassVar[str] = "talkers"
    reads: ClassVar[tuple[str, ...]] = ("transcript", "speakers", "diarisation", "source_id", "seconds")
    writes: ClassVar[tuple[str, ...]] = ("talkers",)

    annotator: str = ""
    prompt: str = "paraphrase"
    temperature: float | None = 0.7
    max_tokens: int | None = 200
    longest: float = 600.0
    most: int = 3
    least_words: int = 3
    most_words: int = 12

    def __post_init__(self):
        super().__post_init__()
        number(self.longest, "longest", above=1.0)
        whole(self.most, "most", 1, 100)
        whole(self.least_words, "least_words", 1, 100)
        whole(self.most_words, "most_words", self.least_words, 100)

    @property
    def resources(self) -> Resources:  # pyright: ignore[reportIncompatibleVariableOverride]
        questions = 9 * 3600 / self.longest if self.annotator else 0.0  # of three speakers, three of each kind
        return Resources(batch=4, seconds=1.0, calls=questions, tokens_in=110 * questions, tokens_out=30 * questions)

    def depends(self) -> Mapping[str, Any]:
        return super().depends() if self.annotator else {}

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        tallies = [Counter[str]() for _ in rows]
        placed = [self._questions(row, tally) for row, tally in zip(rows, tallies, strict=True)]
        asked: list[list[AnnotationRequest]] = [[] for _ in rows]
        answered: list[list[AnnotationResponse]] = [[] for _ in rows]
        if self.annotator:
            asked = [[self.request(part, schema=SCHEMA, question=one.ask) for one, part, _ in some] for some in placed]
            answered = self.answered(context, asked)
        found: list[Outcome] = []
        for row, some, replies, tally in zip(rows, placed, answered, tallies, strict=True):
            products = self._products(row, some, replies, tally)
            found.append(will_pass(replies) or Kept({"talkers": products}, +tally))
        return found

    def _questions(self, row: Row, tally: Counter[str]) -> list[Placed]:
        talk = conversation_of(row["transcript"]["words"], row["speakers"], row["seconds"])
        found: list[Placed] = []
        for start, end in pieces(talk.seconds, pauses(talk), self.longest):
            alone = (start, end) == (0.0, talk.seconds)
            part = row["source_id"] if alone else identity.segment_id(row["source_id"], start, end)
            place = {} if alone else {"start": start, "end": end}
            heard = talk.part(start, end)
            words = (self.least_words, self.most_words)
            asked = questions_about(heard, part, tally, most=self.most, words=words)
            stand = [one for one in asked if not marked((one.ask, one.made.answer))]
            tally["questions lost: marks of prompts"] += len(asked) - len(stand)
            found += [(one, part, place) for one in stand]
        return found

    def _products(
        self, row: Row, placed: Sequence[Placed], replies: Sequence[AnnotationResponse], tally: Counter[str]
    ) -> list[dict[str, Any]]:
        used = [*row["transcript"].get("annotations", ()), *filter(None, [row["diarisation"].get("annotation")])]
        found = []
        for at, (one, part, place) in enumerate(placed):
            ask = self._other_words(one, replies[at], tally) if replies else one.ask
            how: dict[str, Any] = {"annotations": used}
            if ask != one.ask:
                how = lineage_of(made(replies[at], self.depends()["prompt"]), used)
            found.append(one.product(part, ask, place) | how)
            tally[f"questions: {one.made.kind}"] += 1
        return found

    def _other_words(self, one: TalkQuestion, reply: AnnotationResponse, tally: Counter[str]) -> str:
        """The question in the annotator's words; in those of the template if it cannot be used."""
        if reply.error:
            tally.update(lost([reply], "other words"))
            return one.ask
        other = " ".join(reply.data["question"].split())
        if misfit((other,)) or not kept_meaning(one.ask, other):
            tally["other words lost: they change the question"] += 1
            return one.ask
        return other


def pauses(talk: Conversation) -> list[dict[str, Any]]:
    """Where nobody speaks and no word is, as spans of silence by start."""
    found, at = list[dict[str, Any]](), 0.0
    for one in sorted((*talk.turns, *talk.words), key=lambda one: one.start):
        if one.start > at:
            found.append({"kind": "silence", "start": at, "end": one.start})
        at = max(at, one.end)
    return [*found, {"kind": "silence", "start": at, "end": talk.seconds}] if at < talk.seconds else found
