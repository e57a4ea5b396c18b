"""Who speaks when, over the whole recording; speakers are numbered in the order in which they are first heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.curate.replies import NUMBER, array_of, object_of
from afn_model.curate.requests import AnnotationResponse
from afn_model.curate.stage import Context, Failed, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, audio_of, made, seconds_of, will_pass

_TURN = object_of({"speaker": {"type": ["string", "integer"]}, "start": NUMBER, "end": NUMBER})
SCHEMA = object_of({"turns": array_of(_TURN)})


@dataclass(frozen=True)
class Diarise(AskingStage):
    """Writes ``speakers``: [{"speaker": "1", "start", "end"}], in order, and ``diarisation``: {"speakers": how many,
    "model", "prompt", "annotation"}. A recording without speech has no speakers, and nobody is asked.

    Args:
        gap: seconds of silence that a turn may have in it.
        shortest: seconds of a turn; shorter ones are left out.
    """

    name: ClassVar[str] = "diarise"
    reads: ClassVar[tuple[str, ...]] = ("file", "source_id", "seconds", "spans")
    writes: ClassVar[tuple[str, ...]] = ("speakers", "diarisation")
    resources: ClassVar[Resources] = Resources(batch=1, seconds=20, calls=4)

    annotator: str = "diariser"
    prompt: str = "diarise"
    language: str = ""
    max_tokens: int | None = None
    gap: float = 0.25
    shortest: float = 0.1

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        speaking = [seconds_of(row["spans"], ("speech",), 0.0, row["seconds"]) > 0 for row in rows]
        asked = [
            [self.request(row["source_id"], [audio_of(row)], schema=SCHEMA)] if speaks else []
            for row, speaks in zip(rows, speaking, strict=True)
        ]
        found: list[Outcome] = []
        for row, responses in zip(rows, self.answered(context, asked), strict=True):
            if not responses:
                fields = {"speakers": [], "diarisation": {"speakers": 0}}
                found.append(Kept(fields, {"recordings without speech": 1}))
            else:
                found.append(will_pass(responses) or self._outcome(row, responses[0]))
        return found

    def _outcome(self, row: Row, response: AnnotationResponse) -> Outcome:
        if response.error:
            return Failed(f"no speakers: {response.error}")
        turns, outside = self._turns(response.data["turns"], row["seconds"])
        count = len({one["speaker"] for one in turns})
        told = {"speakers": count, **made(response, self.depends()["prompt"])}
        tally = {"turns": len(turns)} | ({"turns outside of the recording": outside} if outside else {})
        return Kept({"speakers": turns, "diarisation": told}, tally)

    def _turns(self, given: Sequence[Mapping[str, Any]], seconds: float) -> tuple[list[dict[str, Any]], int]:
        """(turns inside of the recording, each speaker's joined where they touch; how many others there were)."""
        turns: list[dict[str, Any]] = []
        for one in sorted(given, key=lambda one: (one["start"], one["end"], str(one["speaker"]))):
            start, end = max(0.0, float(one["start"])), min(float(seconds), float(one["end"]))
            if end - start >= self.shortest:
                turns.append({"speaker": str(one["speaker"]), "start": round(start, 3), "end": round(end, 3)})
        numbers = {name: str(place) for place, name in enumerate(dict.fromkeys(one["speaker"] for one in turns), 1)}
        found: list[dict[str, Any]] = []
        last: dict[str, dict[str, Any]] = {}
        for one in turns:
            one["speaker"] = numbers[one["speaker"]]
            earlier = last.get(one["speaker"])
            if earlier is not None and one["start"] - earlier["end"] <= self.gap:
                earlier["end"] = max(earlier["end"], one["end"])
            else:
                found.append(one)
                last[one["speaker"]] = one
        return found, len(given) - len(turns)
