"""What is to be heard in each segment, as a model tells it that listens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from afn_model.curate.stage import Context, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, about_segments, audio_of


@dataclass(frozen=True)
class SegmentCaptions(AskingStage):
    """Writes ``captions``: [{"segment", "text", "model", "prompt", "annotation"}]. A segment whose reply is of no use
    has none, and is counted."""

    name: ClassVar[str] = "caption"
    reads: ClassVar[tuple[str, ...]] = ("file", "segments")
    writes: ClassVar[tuple[str, ...]] = ("captions",)
    # 25 tokens a second of sound, and the prompt, for 360 segments.
    resources: ClassVar[Resources] = Resources(batch=4, seconds=5, calls=360, tokens_in=126_000, tokens_out=25_000)

    annotator: str = "captioner"
    prompt: str = "caption"
    max_tokens: int | None = 200

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        asked = [
            {one["id"]: self.request(one["id"], [audio_of(row, one["start"], one["end"])]) for one in row["segments"]}
            for row in rows
        ]
        return about_segments(self, rows, context, asked, "captions", "captions")
