"""How people speak in each segment with speech: how high, with which feeling, how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from afn_model.curate.stage import Context, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, about_segments, audio_of, seconds_of


@dataclass(frozen=True)
class Voices(AskingStage):
    """Writes ``voices``: [{"segment", "text", "model", "prompt", "annotation"}], of segments with speech.

    Args:
        least: seconds of speech in a segment that is asked about.
    """

    name: ClassVar[str] = "voices"
    reads: ClassVar[tuple[str, ...]] = ("file", "segments", "spans")
    writes: ClassVar[tuple[str, ...]] = ("voices",)
    # Seven of ten segments have speech.
    resources: ClassVar[Resources] = Resources(batch=4, seconds=5, calls=252, tokens_in=88_000, tokens_out=12_600)

    annotator: str = "captioner"
    prompt: str = "voices"
    max_tokens: int | None = 120
    least: float = 1.0

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        asked = [
            {
                one["id"]: self.request(one["id"], [audio_of(row, one["start"], one["end"])])
                for one in row["segments"]
                if seconds_of(row["spans"], ("speech",), one["start"], one["end"]) >= self.least
            }
            for row in rows
        ]
        return about_segments(self, rows, context, asked, "voices", "voices")
