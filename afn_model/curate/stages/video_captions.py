"""What is to be seen in each segment, where there are pictures; merging uses it to name what is heard, no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.checks import named
from afn_model.curate import identity
from afn_model.curate.requests import AnnotationRequest
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, about_segments


@dataclass(frozen=True)
class VideoCaptions(AskingStage):
    """Writes ``seen``: [{"segment", "text", "model", "prompt", "annotation"}] of segments that have pictures.

    This package takes no pictures out of videos: ``frames`` does, or the stage is left out of the plan.

    Args:
        frames: "module:function", (row, start, end, folder of the run) -> paths of pictures inside of that folder.
    """

    name: ClassVar[str] = "video-captions"
    reads: ClassVar[tuple[str, ...]] = ("file", "segments")
    writes: ClassVar[tuple[str, ...]] = ("seen",)
    resources: ClassVar[Resources] = Resources(batch=4, seconds=5, calls=360, tokens_in=740_000, tokens_out=18_000)

    annotator: str = "watcher"
    prompt: str = "seen"
    max_tokens: int | None = 120
    frames: str = ""

    def __post_init__(self):
        super().__post_init__()
        self._frames()

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        asked = [self._requests(row, context) for row in rows]
        found = about_segments(self, rows, context, asked, "seen", "video captions")
        return [
            Kept(one.fields, {"segments without pictures": missing, **one.tally})
            if isinstance(one, Kept) and (missing := len(row["segments"]) - len(requests))
            else one
            for row, requests, one in zip(rows, asked, found, strict=True)
        ]

    def _requests(self, row: Row, context: Context) -> dict[str, AnnotationRequest]:
        frames, found = self._frames(), {}
        for one in row["segments"]:
            paths = frames(row, one["start"], one["end"], context.out)
            parts = [
                {"image": {"path": str(path), "id": identity.digest((context.out / path).read_bytes())}}
                for path in paths
            ]
            if parts:
                found[one["id"]] = self.request(one["id"], parts)
        return found

    def _frames(self) -> Any:
        return named(self.frames, "frames")
