"""What stages have in common that have a writer make questions of captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from afn_model.checks import whole
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.questions import Check, Question, as_record, read_questions, schema, sift, words_named
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Kept, Outcome, Row
from afn_model.curate.stages.asking import AskingStage, lineage_of, lost, made, will_pass
from afn_model.curate.texts import place_of, units_of
from afn_model.curate.timeline import Timeline
from afn_model.scoring.text import normalise

BLIND = "blind"
WARM = 0.7  # temperature of the tries without hearing, which are to differ
_LETTER = re.compile(r"\W*([A-Za-z])\W*")


@dataclass(frozen=True)
class QuestionPart:
    """What a writer makes questions of, in one request.

    Args:
        subject: id of what they are about: a recording, a clip, a group.
        heard: captions that it reads.
        prompt: of the request; it takes ``annotations``, the captions, and ``data``.
        kinds: of questions.
        axis: of the records.
        audios: places that are heard, as ``Export`` reads them.
        data: more of the prompt.
        options: wrong options of each; None leaves it open.
        further: checks by kind of question.
        relations: in time, one of which each question names; none if there are none.
    """

    subject: str
    heard: Timeline
    prompt: str
    kinds: tuple[str, ...]
    axis: str
    audios: tuple[Mapping[str, Any], ...] = ({},)
    data: Mapping[str, Any] = field(default_factory=dict)
    options: int | None = None
    further: Mapping[str, Sequence[Check]] = field(default_factory=dict)
    relations: tuple[str, ...] = ()


Standing = tuple[QuestionPart, Question, Mapping[str, str]]  # and how it was made


@dataclass(frozen=True)
class QuestionStage(AskingStage):
    """A stage that writes products, its first field: questions that pass the checks of ``questions.sift``.

    A question that is also answered without hearing anything, in most of ``tries``, is kept and marked as weak: the
    export counts it less.

    Args:
        blind: annotator that is asked without the recording; nobody if "".
        tries: times that it is asked.
    """

    annotator: str = "writer"
    max_tokens: int | None = 2000
    blind: str = ""
    tries: int = 3

    def __post_init__(self):
        whole(self.tries, "tries", 1, 99)
        for name in (*self.prompts(), *[BLIND] * bool(self.blind)):
            prompt_file(name)

    def prompts(self) -> tuple[str, ...]:
        """All that it asks with."""
        return (self.prompt,)

    def depends(self) -> Mapping[str, Any]:
        return {"prompts": [prompt_file(name).hash for name in (*self.prompts(), *[BLIND] * bool(self.blind))]}

    def parts(self, row: Row, context: Context) -> list[QuestionPart]:
        """What is asked about a row."""
        raise NotImplementedError

    def together(self, one: QuestionPart, other: QuestionPart) -> bool:
        """Whether no question about one part of a row may be like one about another."""
        return True

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        parts = [self.parts(row, context) for row in rows]
        asked = [[self._request(one) for one in some] for some in parts]
        replies = self.answered(context, asked)
        tallies = [Counter[str]() for _ in rows]
        failed = [will_pass(some) for some in replies]
        kept = [
            [] if wrong else self._kept(some, requests, responses, tally)
            for some, requests, responses, wrong, tally in zip(parts, asked, replies, failed, tallies, strict=True)
        ]
        tried = self._tried(kept, context)
        found: list[Outcome] = []
        for listed, wrong, tries, tally in zip(kept, failed, tried, tallies, strict=True):
            wrong = wrong or will_pass([one for each in tries for one in each])
            found.append(wrong or Kept({self.writes[0]: self._products(listed, tries, tally)}, tally))
        return found

    def _request(self, part: QuestionPart) -> AnnotationRequest:
        clips = len(part.heard.seconds) > 1
        form = schema(part.kinds, options=part.options, clips=clips, relations=part.relations)
        return self.request(part.subject, prompt=part.prompt, schema=form, annotations=part.heard.said(), **part.data)

    def _kept(
        self,
        parts: Sequence[QuestionPart],
        requests: Sequence[AnnotationRequest],
        responses: Sequence[AnnotationResponse],
        tally: Counter[str],
    ) -> list[Standing]:
        """The questions about a row that stand, with how they were made."""
        found: list[Standing] = []
        for part, request, response in zip(parts, requests, responses, strict=True):
            tally.update(lost([response], "replies"))
            if response.error:
                continue
            before = [one for other, one, _ in found if self.together(part, other)]
            stand = sift(read_questions(response.data), part.heard, tally, part.further, before)
            found += [(part, one, made(response, request.prompt_hash)) for one in stand]
        return found

    def _tried(self, kept: Sequence[Sequence[Standing]], context: Context) -> list[list[list[AnnotationResponse]]]:
        """For each question of each row what is answered without hearing anything."""
        if not self.blind:
            return [[[] for _ in some] for some in kept]
        asked = [
            [ask for part, one, _ in some for ask in blind_requests(self, part.subject, one, self.tries)]
            for some in kept
        ]
        found = self.answered(context, asked, self.blind)
        return [[some[at : at + self.tries] for at in range(0, len(some), self.tries)] for some in found]

    def _products(
        self,
        listed: Sequence[Standing],
        tries: Sequence[Sequence[AnnotationResponse]],
        tally: Counter[str],
    ) -> list[dict[str, Any]]:
        found = []
        for (part, one, how), guesses in zip(listed, tries, strict=True):
            product = as_record(one, part.subject, axis=part.axis, audios=part.audios)
            product |= lineage_of(how, part.heard.annotations)
            tally.update(lost(guesses, "replies without hearing"))
            order = product["truth"]["options"]
            if guessed(one, guesses, order):
                product["weak"] = True
                tally["questions answered without hearing"] += 1
            tally[f"questions: {one.kind}"] += 1
            found.append(product)
        return found


def put(one: Question, subject: str) -> str:
    """A question with its options, as the record has it."""
    return as_record(one, subject, axis="")["messages"][0]["content"]


def blind_requests(stage: AskingStage, subject: str, one: Question, tries: int) -> list[AnnotationRequest]:
    """Requests to answer a question without hearing anything, which differ in their seeds."""
    ask = partial(stage.request, subject, prompt=BLIND, tokens=100, question=put(one, subject))
    return [ask(settings={"seed": number, "temperature": WARM}) for number in range(tries)]


def guessed(one: Question, guesses: Sequence[AnnotationResponse], order: Sequence[str] = ()) -> bool:
    """Whether most of the replies to ``blind_requests`` are right."""
    return 2 * sum(not guess.error and says_answer(guess.data, one, order) for guess in guesses) > len(guesses)


def says_answer(reply: Any, one: Question, order: Sequence[str] = ()) -> bool:
    """Whether a reply without hearing is the answer, and names no other option.

    Args:
        reply: the text; anything else says nothing.
        one: the question.
        order: of its options, for replies that are a letter.
    """
    if not isinstance(reply, str):
        return False
    exact = [option for option in one.options if normalise(option) == normalise(reply)]
    letter = _LETTER.fullmatch(reply.strip())
    place = ord(letter[1].upper()) - ord("A") if letter else len(order)
    if exact or place < len(order):
        return one.answer == (exact[0] if exact else order[place])
    said = units_of(reply)
    named = [words for words in map(words_named, one.options) if place_of(words, said)]
    left = [words for words in named if not any(words != other and place_of(words, other) for other in named)]
    return left == [words_named(one.answer)]
