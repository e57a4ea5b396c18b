"""How much there is to be heard in each segment: a writer counts the events of its caption and scores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.checks import whole
from afn_model.curate import identity
from afn_model.curate.replies import NUMBER, array_of, object_of
from afn_model.curate.requests import AnnotationResponse
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, made, seconds_of, will_pass

MIX = ("speech", "music", "sound")
MOST = 10  # score
_COUNTS = {name: {"type": "integer"} for name in ("part", "events", "overlapping")}
_PART = {**_COUNTS, "mix": array_of({"type": "string", "enum": list(MIX)}), "score": NUMBER}
SCHEMA = object_of({"parts": array_of(object_of(_PART), minItems=1)})


@dataclass(frozen=True)
class Informative(AskingStage):
    """Writes ``scores``: [{"segment", "score" from 0 to 10, "events", "overlapping", "mix" of speech, music and sound,
    and how it was made}], in the order of the captions.

    A segment whose score is missing, given twice or impossible has none, and is counted.

    Args:
        together: segments of one request, at most.
    """

    name: ClassVar[str] = "informative"
    reads: ClassVar[tuple[str, ...]] = ("merged", "segments", "spans", "source_id", "seconds")
    writes: ClassVar[tuple[str, ...]] = ("scores",)
    # 360 segments, ten at a time: 250 tokens of caption and instruction, and 22 of reply, for each.
    resources: ClassVar[Resources] = Resources(batch=4, seconds=1, calls=36, tokens_in=90_000, tokens_out=8_000)

    annotator: str = "writer"
    prompt: str = "informative"
    max_tokens: int | None = 800
    together: int = 10

    def __post_init__(self):
        super().__post_init__()
        whole(self.together, "together", 1, 100)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        groups = [self._groups(row) for row in rows]
        asked = [
            [
                self.request(_subject(row, some), schema=SCHEMA, annotations="\n".join(told for _, told in some))
                for some in listed
            ]
            for row, listed in zip(rows, groups, strict=True)
        ]
        found: list[Outcome] = []
        for listed, requests, responses in zip(groups, asked, self.answered(context, asked), strict=True):
            tally, scores = Counter[str](), list[dict[str, Any]]()
            for some, request, response in zip(listed, requests, responses, strict=True):
                how = made(response, request.prompt_hash)
                scores += [one | how for one in read_scores([name for name, _ in some], response, tally)]
            failed = will_pass(responses)
            found.append(failed or Kept({"scores": scores}, {"scores": len(scores), **tally}))
        return found

    def _groups(self, row: Row) -> list[list[tuple[str, str]]]:
        """(id, line) of the segments that are asked about together."""
        places = {one["id"]: one for one in row["segments"]}
        listed = [one for one in row["merged"] if one["segment"] in places]
        groups = [listed[at : at + self.together] for at in range(0, len(listed), self.together)]
        return [
            [
                (one["segment"], f"{number}. {_measured(row['spans'], places[one['segment']])}: {one['text']}")
                for number, one in enumerate(some, 1)
            ]
            for some in groups
        ]


def read_scores(segments: Sequence[str], response: AnnotationResponse, tally: Counter[str]) -> list[dict[str, Any]]:
    """The scores of a reply that stand: {"segment", "score", "events", "overlapping", "mix"}.

    Args:
        segments: ids of the parts, which the reply names by their number from 1.
        response: of the annotator.
        tally: counts the scores that are lost, and why.
    """
    if response.error:
        tally[f"scores lost: {response.error.partition(':')[0]}"] += len(segments)
        return []
    given: dict[int, list[Mapping[str, Any]]] = {number: [] for number in range(1, len(segments) + 1)}
    for one in response.data["parts"]:
        if one["part"] in given:
            given[one["part"]].append(one)
        else:
            tally["scores lost: of a part that is not there"] += 1
    found = []
    for segment, entries in zip(segments, given.values(), strict=True):
        if wrong := _wrong(entries):
            tally[f"scores lost: {wrong}"] += 1
            continue
        told = {name: entries[0][name] for name in ("score", "events", "overlapping")}
        found.append({"segment": segment, **told, "mix": [one for one in MIX if one in entries[0]["mix"]]})
    return found


def _wrong(entries: Sequence[Mapping[str, Any]]) -> str:
    if len(entries) != 1:
        return "given twice" if entries else "missing"
    one = entries[0]
    if not 0 <= one["score"] <= MOST:
        return "out of range"
    return "" if 0 <= one["overlapping"] <= one["events"] else "more overlapping events than events"


def _measured(spans: Sequence[Mapping[str, Any]], place: Mapping[str, Any]) -> str:
    start, end = place["start"], place["end"]
    speech, music = (seconds_of(spans, kinds, start, end) for kinds in (("speech",), ("music", "singing")))
    return f"{start:.1f} to {end:.1f} s, speech {speech:.1f} s, music {music:.1f} s"


def _subject(row: Row, some: Sequence[tuple[str, str]]) -> str:
    return identity.of("segments", row["source_id"], [name for name, _ in some])
