"""Questions about long recordings with chains of thought that are grounded in time, as a writer makes them of captions
(Temporal Audio Chain-of-Thought; AF-Next, section 2.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from afn_model.checks import number, whole
from afn_model.curate.chains import chain_schema
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, lost, made, will_pass
from afn_model.curate.timeline import timeline_of


@dataclass(frozen=True)
class Think(AskingStage):
    """Writes ``chains``: [{"question", "answer", "wrong", "steps": [{"text", "event", "start", "end"}], and how it was
    made}], as the writer gave them; ``think-filters`` reads and sifts them.

    Args:
        count: of chains that are asked for, in one request; ``max_tokens`` must do for all of them.
        least: seconds of a recording that is asked about; of a shorter one none are written.
        varied: captions that differ, at least: a recording in which nothing happens is no hard one.
    """

    name: ClassVar[str] = "think"
    reads: ClassVar[tuple[str, ...]] = ("merged", "segments", "source_id", "seconds")
    writes: ClassVar[tuple[str, ...]] = ("chains",)
    # For 50,000 hours 0.13 million calls, 1.6 billion tokens read and 0.1 written.
    resources: ClassVar[Resources] = Resources(batch=8, seconds=0.1, calls=2.6, tokens_in=32_000, tokens_out=2_300)

    annotator: str = "writer"
    prompt: str = "think"
    max_tokens: int | None = 4000
    count: int = 1
    least: float = 120.0
    varied: int = 4

    def __post_init__(self):
        super().__post_init__()
        whole(self.count, "count", 1, 20)
        number(self.least, "least", above=0)
        whole(self.varied, "varied", 1, 1000)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        why = [self._why_not(row) for row in rows]
        asked = [[] if no else [self._request(row)] for row, no in zip(rows, why, strict=True)]
        replies = self.answered(context, asked)
        return [
            Kept({"chains": []}, {no: 1}) if no else self._outcome(row, requests[0], responses[0])
            for row, no, requests, responses in zip(rows, why, asked, replies, strict=True)
        ]

    def _why_not(self, row: Row) -> str:
        """Why nothing is asked about a row; "" where something is."""
        if row["seconds"] < self.least:
            return f"recordings shorter than {self.least:g} s"
        texts = {one["text"] for one in row["merged"]}
        return f"recordings of fewer than {self.varied} different captions" if len(texts) < self.varied else ""

    def _request(self, row: Row) -> AnnotationRequest:
        told = timeline_of(row).said()
        return self.request(row["source_id"], schema=chain_schema(), annotations=told, count=str(self.count))

    def _outcome(self, row: Row, request: AnnotationRequest, response: AnnotationResponse) -> Outcome:
        if failed := will_pass([response]):
            return failed
        if response.error:
            return Kept({"chains": []}, lost([response], "replies"))
        how = made(response, request.prompt_hash)
        names = ("question", "answer", "wrong", "steps")
        given = response.data["chains"]
        chains = [{name: one[name] for name in names if name in one} | how for one in given[: self.count]]
        tally = {"chains": len(chains)}
        if beyond := given[self.count :]:
            tally["chains lost: more than were asked for"] = len(beyond)
        return Kept({"chains": chains}, tally)
