"""One caption for each segment from all of its annotations, and one of the whole recording from those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from afn_model.checks import shown
from afn_model.curate.grounding import grounded
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.replies import TEXT, array_of, object_of
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Failed, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, counted, lost, made, will_pass
from afn_model.curate.timeline import timeline

LINES = {"captions": "sound", "transcripts": "speech", "voices": "voice", "speakers": "speakers", "seen": "seen"}
SCHEMA = object_of({"caption": TEXT, "events": array_of(TEXT)})


@dataclass
class _Merging:
    """A segment, or the whole, on its way to a caption."""

    subject: str
    lines: list[tuple[str, str]]  # (kind, text)
    sources: list[str]  # ids of annotations
    told: dict[str, Any] = field(default_factory=dict)  # of the row's entry
    request: AnnotationRequest | None = None
    response: AnnotationResponse | None = None

    def heard(self) -> list[str]:
        """What annotators say by ear, with the kind of each, as one who speaks is heard where anything is said."""
        return [f"{kind}: {text}" for kind, text in self.lines if kind != "seen"]


@dataclass(frozen=True)
class Merge(AskingStage):
    """Writes ``merged``: [{"segment", "text", "events", "annotations", and how it was made}], and ``caption``: the same
    of the whole recording, None where no segment has a caption.

    A segment that has nothing but a caption keeps that, and a recording of one segment its caption: nobody is asked.
    Sentences that tell of times outside of the recording, of what is only seen or of what no annotation has are
    taken out and counted.

    Args:
        annotations: fields with what annotators said, some of ``LINES``.
        whole_prompt: of the caption of the whole recording.
        whole_tokens: of that caption, at most.
    """

    name: ClassVar[str] = "merge"
    writes: ClassVar[tuple[str, ...]] = ("merged", "caption")
    resources: ClassVar[Resources] = Resources(batch=4, seconds=2, calls=364, tokens_in=202_000, tokens_out=50_000)

    annotator: str = "writer"
    prompt: str = "merge"
    max_tokens: int | None = 400
    annotations: tuple[str, ...] = ("captions", "transcripts", "voices", "speakers")
    whole_prompt: str = "merge_whole"
    whole_tokens: int = 2000

    def __post_init__(self):
        super().__post_init__()
        prompt_file(self.whole_prompt)
        if wrong := [one for one in self.annotations if one not in LINES]:
            raise ValueError(f"annotations are some of {', '.join(LINES)}, got {shown(wrong[0])}")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (
            "source_id",
            "seconds",
            "segments",
            *self.annotations,
            *["diarisation"] * ("speakers" in self.annotations),
        )

    def depends(self) -> Mapping[str, Any]:
        return {"prompts": [prompt_file(name).hash for name in (self.prompt, self.whole_prompt)]}

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        parts = [self._parts(row) for row in rows]
        self._ask(context, parts)
        failed = [will_pass([one.response for one in some if one.response]) for some in parts]
        tallies = [Counter[str]() for _ in rows]
        merged = [
            [] if wrong else self._captions(some, row["seconds"], tally, "segments")
            for row, some, wrong, tally in zip(rows, parts, failed, tallies, strict=True)
        ]
        wholes = [
            [] if wrong or not some else [self._whole(row, some)]
            for row, some, wrong in zip(rows, merged, failed, strict=True)
        ]
        self._ask(context, wholes)
        found: list[Outcome] = []
        for row, some, whole, wrong, tally in zip(rows, merged, wholes, failed, tallies, strict=True):
            wrong = wrong or will_pass([one.response for one in whole if one.response])
            captions = [] if wrong else self._captions(whole, row["seconds"], tally, "recordings")
            if wrong:
                found.append(wrong)
            elif whole and not captions:
                found.append(Failed(f"no caption of the whole: {counted(tally)}"))
            else:
                caption = captions[0] if captions else None
                found.append(Kept({"merged": some, "caption": caption}, tally))
        return found

    def _ask(self, context: Context, parts: Sequence[Sequence[_Merging]]) -> None:
        """Asks about those of the parts that have more than one thing to merge."""
        asked = [[one for one in some if one.request is not None] for some in parts]
        requests = [[one.request for one in some if one.request is not None] for some in asked]
        for some, responses in zip(asked, self.answered(context, requests), strict=True):
            for one, response in zip(some, responses, strict=True):
                one.response = response

    def _parts(self, row: Row) -> list[_Merging]:
        by_segment: dict[str, dict[str, Mapping[str, Any]]] = {one["id"]: {} for one in row["segments"]}
        for name in self.annotations:
            if name != "speakers":
                for one in row[name]:
                    by_segment[one["segment"]][name] = one
        found = []
        for one in row["segments"]:
            own = by_segment[one["id"]]
            lines = [(LINES[name], own[name]["text"]) for name in self.annotations if name in own]
            if "speakers" in self.annotations and (turns := _turns(row["speakers"], one["start"], one["end"])):
                lines.append((LINES["speakers"], turns))
            sources = [name for entry in own.values() for name in _ids(entry)]
            sources += _ids(row["diarisation"]) if lines and lines[-1][0] == LINES["speakers"] else []
            part = _Merging(one["id"], lines, sources, {"segment": one["id"]})
            if not part.heard():
                continue
            if [kind for kind, _ in lines] != ["sound"]:
                told = "\n".join(f"{kind}: {text}" for kind, text in lines)
                part.request = self.request(one["id"], schema=SCHEMA, annotations=told)
            found.append(part)
        return found

    def _whole(self, row: Row, merged: Sequence[Mapping[str, Any]]) -> _Merging:
        sources = [name for one in merged for name in _ids(one)]
        part = _Merging(row["source_id"], [("sound", one["text"]) for one in merged], sources)
        if len(merged) > 1:
            told = timeline(merged, row["segments"], row["seconds"]).said()
            asked = self.request(
                row["source_id"], prompt=self.whole_prompt, schema=SCHEMA, annotations=told, tokens=self.whole_tokens
            )
            part.request = asked
        else:
            part.told = {"events": merged[0]["events"]}
        return part

    def _captions(
        self, parts: Sequence[_Merging], seconds: float, tally: Counter[str], what: str
    ) -> list[dict[str, Any]]:
        """What is written of each part that has a caption which stands."""
        found = []
        for one in parts:
            caption, events, how = one.lines[0][1], one.told.get("events", []), {}
            if one.response is not None:
                if one.response.error:
                    tally.update(lost([one.response], f"captions of {what}"))
                    continue
                caption, events = one.response.data["caption"], one.response.data["events"]
                how = made(one.response, one.request.prompt_hash if one.request else "")
            seen = [text for kind, text in one.lines if kind == "seen"]
            stands = grounded(caption, events, one.heard(), seen, seconds=seconds)
            tally.update({f"{what}: {name}": count for name, count in stands.tally.items()})
            if not stands.text:
                tally[f"captions of {what} lost: nothing stands"] += 1
                continue
            tally[f"captions of {what}"] += 1
            how |= {"annotations": one.sources}
            found.append({**one.told, "text": " ".join(stands.text.split()), "events": list(stands.events), **how})
        return found


def _turns(speakers: Sequence[Mapping[str, Any]], start: float, end: float) -> str:
    """Who speaks between two moments, in seconds from the first."""
    inside = [one for one in speakers if one["start"] < end and one["end"] > start]
    return "; ".join(
        f"speaker {one['speaker']} {max(one['start'], start) - start:.1f} to {min(one['end'], end) - start:.1f} s"
        for one in inside
    )


def _ids(entry: Mapping[str, Any]) -> list[str]:
    """The annotation that an entry is, or else those that it was made from."""
    return [entry["annotation"]] if "annotation" in entry else list(entry.get("annotations", ()))
