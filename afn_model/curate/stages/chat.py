"""Conversations of several turns about one clip or several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.checks import number, whole
from afn_model.curate import identity
from afn_model.curate.clip_groups import clips_there, group, group_id, heard_in, numbers_in, partners, places, sounds
from afn_model.curate.questions import (
    GENERAL,
    Question,
    evidence_inside,
    evidence_of,
    like_one_of,
    read_question,
    span_schema,
    well_put,
)
from afn_model.curate.replies import TEXT, array_of, object_of
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, lineage_of, lost, made, will_pass
from afn_model.curate.texts import words_of
from afn_model.curate.timeline import Timeline

AUDIO, EXTRACTION, KNOWLEDGE = "audio", "extraction", "knowledge"
LEAST_AUDIO = 2  # turns of a chat that need hearing
Clips = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ChatStage(AskingStage):
    """Writes ``chats``: a conversation about one to four clips of a pool, the recording's own among them, for a share
    of the recordings, chosen by hash.

    An answer that needs audio or extraction is in the captions where its evidence is. The first turn that does not
    stand ends a chat, since later ones may build on it; a chat stays if it still has ``least`` turns, two of which need
    audio. Each clip is heard in the first turn that needs it, or all in the first.

    Args:
        share: of the recordings.
        clips: of a chat, at most.
        least, turns: of a chat; a turn is a question with its answer.
    """

    name: ClassVar[str] = "chat"
    reads: ClassVar[tuple[str, ...]] = ("source_id", "pool")
    writes: ClassVar[tuple[str, ...]] = ("chats",)
    resources: ClassVar[Resources] = Resources(batch=16, seconds=0.02, calls=0.6, tokens_in=1_000, tokens_out=400)

    annotator: str = "writer"
    prompt: str = "chat"
    max_tokens: int | None = 2000
    share: float = 0.15
    clips: int = 4
    least: int = 3
    turns: int = 10

    def __post_init__(self):
        super().__post_init__()
        if number(self.share, "share", above=0) > 1:
            raise ValueError(f"share is above 0 and up to 1, got {self.share}")
        whole(self.clips, "clips", 1, 4)
        whole(self.turns, "turns", whole(self.least, "least", LEAST_AUDIO, 10), 10)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        groups = [self._groups(row, context.seed) for row in rows]
        asked = [[self._request(clips) for clips in some] for some in groups]
        found: list[Outcome] = []
        for some, requests, responses in zip(groups, asked, self.answered(context, asked), strict=True):
            if failed := will_pass(responses):
                found.append(failed)
                continue
            tally, chats = lost(responses, "chats"), []
            for clips, request, response in zip(some, requests, responses, strict=True):
                if not response.error and (turns := self._standing(response, heard_in(clips), tally)):
                    how = made(response, request.prompt_hash)
                    chats.append(_product(turns, clips) | lineage_of(how, heard_in(clips).annotations))
                    tally += Counter({"chats": 1, "turns": len(turns)})
            found.append(Kept({"chats": chats}, tally))
        return found

    def _groups(self, row: Row, seed: int) -> list[Clips]:
        """The clips of a row's chat; none where it has none."""
        drawn = ("chat", seed, row["source_id"])
        if row["pool"] is None or identity.fraction(*drawn) >= self.share:
            return []
        return [group(row["pool"]["own"], partners(row["pool"])[: identity.number(*drawn) % self.clips])]

    def _request(self, clips: Clips) -> AnnotationRequest:
        needs = {"type": "string", "enum": [AUDIO, EXTRACTION, KNOWLEDGE]}
        evidence = array_of(span_schema(clips=len(clips) > 1))
        turn = object_of({"question": TEXT, "answer": TEXT, "needs": needs, "evidence": evidence})
        form, told = object_of({"turns": array_of(turn, maxItems=self.turns)}), heard_in(clips).said()
        return self.request(
            group_id(clips), schema=form, annotations=told, least=str(self.least), count=str(self.turns)
        )

    def _standing(self, response: AnnotationResponse, heard: Timeline, tally: Counter[str]) -> list[Question]:
        """The turns of a reply up to the first that does not stand; none if they are no chat."""
        found: list[Question] = []
        for place, turn in enumerate(response.data["turns"]):
            one = read_question({**turn, "wrong": ()}, turn["needs"])
            if wrong := wrong_turn(one, heard, found):
                tally[f"turns lost: {wrong}"] += 1
                if more := len(response.data["turns"]) - place - 1:
                    tally["turns lost: after one that is lost"] += more
                break
            found.append(one)
        if len(found) < self.least:
            tally["chats lost: too few turns"] += 1
            return []
        if sum(one.kind == AUDIO for one in found) < LEAST_AUDIO:
            tally["chats lost: too few turns that need audio"] += 1
            return []
        return found


def wrong_turn(one: Question, heard: Timeline, before: Sequence[Question]) -> str:
    """What is wrong with a turn, in few words that are counted; "" where nothing is."""
    checks = GENERAL if one.kind != KNOWLEDGE else (well_put, *[evidence_inside] * bool(one.evidence))
    wrong = next(filter(None, (check(one, heard) for check in (*checks, clips_there))), "")
    return wrong or like_one_of(one.question, before)


def _product(turns: Sequence[Question], clips: Clips) -> dict[str, Any]:
    messages = []
    for one, new in zip(turns, _arrivals(turns, clips), strict=True):
        heard = f"{sounds(new) if len(clips) > 1 else '<sound>'}\n" if new else ""
        messages += [{"role": "user", "content": f"{heard}{one.question}"}]
        messages += [{"role": "assistant", "content": one.answer}]
    truth = [{"needs": one.kind, "answer": one.answer, "evidence": evidence_of(one)} for one in turns]
    told = {"axis": "multi_turn", "task": "chat", "audios": [dict(one) for one in places(clips)]}
    return told | {"messages": messages, "truth": {"turns": truth}}


def _arrivals(turns: Sequence[Question], clips: Clips) -> list[list[int]]:
    """The clips that are first heard in each turn. Those that no turn needs are in the first one, and where a turn
    speaks of clips without naming any, all are there."""
    everything, found = set(range(1, len(clips) + 1)), []
    by_turn = [
        {clip for clip, _, _ in one.evidence} | numbers_in(one.question) | numbers_in(one.answer) for one in turns
    ]
    late = int(group_id(clips)[:8], 16) % 2
    by_turn[0] |= everything - set().union(*by_turn) if late else everything
    left = set(everything)
    for one, needed in zip(turns, by_turn, strict=True):
        vague = {"clips", "recordings", "sounds"} & set(words_of(one.question)) and not numbers_in(one.question)
        new = left if vague else needed & left
        found.append(sorted(new))
        left = left - new
    return found
