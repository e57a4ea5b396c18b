"""What is said, with the time of each word: the whole recording at once, as context helps, then cut into segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.checks import number
from afn_model.curate.replies import NUMBER, object_of
from afn_model.curate.requests import AnnotationResponse
from afn_model.curate.stage import Context, Failed, Kept, Outcome, Resources, Row
from afn_model.curate.stages.asking import AskingStage, audio_of, made, seconds_of, will_pass

_STRING = {"type": "string"}
_WORDS = {"type": ["array", "null"], "items": object_of({"word": _STRING, "start": NUMBER, "end": NUMBER})}
SCHEMA = object_of({"text": _STRING, "language": _STRING, "words": _WORDS}, optional=("language", "words"))
_SLACK = 0.5  # seconds that a word may end after what was heard


@dataclass(frozen=True)
class Transcripts(AskingStage):
    """Writes ``transcript``: {"text", "language", "words": [{"word", "start", "end"}], "model", "prompt",
    "annotations"}, and ``transcripts``: [{"segment", "text", "words", "annotations"}] of segments in which
    something is said. A word is in the segment that its middle is in. Where nobody speaks or sings, nobody is asked.

    Args:
        longest: seconds that are transcribed at once; a longer recording is cut in its longest pause near there.
    """

    name: ClassVar[str] = "transcribe"
    reads: ClassVar[tuple[str, ...]] = ("file", "source_id", "seconds", "spans", "segments")
    writes: ClassVar[tuple[str, ...]] = ("transcript", "transcripts")
    resources: ClassVar[Resources] = Resources(batch=1, seconds=8, calls=4)

    annotator: str = "transcriber"
    prompt: str = "transcript"
    language: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    longest: float = 1800.0

    def __post_init__(self):
        super().__post_init__()
        number(self.longest, "longest", above=1.0)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        cuts = [
            pieces(row["seconds"], row["spans"], self.longest)
            if seconds_of(row["spans"], ("speech", "singing"), 0.0, row["seconds"]) > 0
            else []
            for row in rows
        ]
        asked = [
            [self.request(row["source_id"], [audio_of(row, *cut)], schema=SCHEMA) for cut in some]
            for row, some in zip(rows, cuts, strict=True)
        ]
        return [
            will_pass(responses) or self._outcome(row, some, responses)
            for row, some, responses in zip(rows, cuts, self.answered(context, asked), strict=True)
        ]

    def _outcome(
        self, row: Row, cuts: Sequence[tuple[float, float]], responses: Sequence[AnnotationResponse]
    ) -> Outcome:
        if not cuts:
            fields = {"transcript": {"text": "", "language": "", "words": []}, "transcripts": []}
            return Kept(fields, {"recordings without speech": 1})
        if wrong := [one.error for one in responses if one.error]:
            return Failed(f"{len(wrong)} of {len(responses)} parts have no transcript: {wrong[0]}")
        words: list[dict[str, Any]] = []
        texts, languages, outside, untimed = [], dict[str, float](), 0, 0
        for (start, end), one in zip(cuts, responses, strict=True):
            texts.append(" ".join(one.data["text"].split()))
            code = one.data.get("language") or ""
            languages[code] = languages.get(code, 0.0) + end - start
            listed = one.data.get("words") or []
            untimed += bool(texts[-1]) and not listed
            timed = [word for word in (_placed(word, start, end) for word in listed) if word is not None]
            outside += len(listed) - len(timed)
            words += timed
        words.sort(key=lambda one: (one["start"], one["end"]))
        told = made(responses[0], self.depends()["prompt"])
        del told["annotation"]
        transcript = {"text": " ".join(filter(None, texts)), "language": max(languages, key=lambda one: languages[one])}
        transcript |= {"words": words, **told, "annotations": [one.id for one in responses]}
        tally = {"words": len(words), "words outside of the recording": outside, "parts without word times": untimed}
        parts = [(*times, one.id) for times, one in zip(cuts, responses, strict=True)]
        fields = {"transcript": transcript, "transcripts": cut(words, row["segments"], parts)}
        return Kept(fields, {name: count for name, count in tally.items() if count})


def pieces(seconds: float, spans: Sequence[Mapping[str, Any]], longest: float) -> list[tuple[float, float]]:
    """A recording in parts of at most so many seconds, cut in the middle of the longest silence of the last quarter of
    each, or at its end where it has none."""
    found, start = list[tuple[float, float]](), 0.0
    while seconds - start > longest:
        latest = min(start + longest, seconds - 1.0)  # so that something is left for the last part
        earliest = start + 0.75 * (latest - start)
        silences = [
            (max(one["start"], earliest), min(one["end"], latest))
            for one in spans
            if one["kind"] == "silence" and one["end"] > earliest and one["start"] < latest
        ]
        first, last = max(silences, key=lambda one: (one[1] - one[0], -one[0]), default=(latest, latest))
        end = round((first + last) / 2, 3)
        found.append((start, end))
        start = end
    return [*found, (start, seconds)]


def cut(
    words: Sequence[Mapping[str, Any]],
    segments: Sequence[Mapping[str, Any]],
    parts: Sequence[tuple[float, float, str]],
) -> list[dict[str, Any]]:
    """Words by segment, [{"segment", "text", "words", "annotations"}]; a word is where its middle is, the end left out.

    Args:
        words, segments: with "start" and "end".
        parts: (start, end, id) of the annotations.
    """
    found = []
    for one in segments:
        inside = [word for word in words if one["start"] <= (word["start"] + word["end"]) / 2 < one["end"]]
        if inside:
            text = " ".join(word["word"] for word in inside)
            used = [name for start, end, name in parts if start < one["end"] and end > one["start"]]
            found.append({"segment": one["id"], "text": text, "words": inside, "annotations": used})
    return found


def _placed(word: Mapping[str, Any], start: float, end: float) -> dict[str, Any] | None:
    """A word in seconds of the recording; None where it is outside of the part, or ends before it begins."""
    text, first, last = word["word"].strip(), start + word["start"], start + word["end"]
    if not text or first < start or last < first or first >= end or last > end + _SLACK:
        return None
    return {"word": text, "start": round(first, 3), "end": round(min(last, end), 3)}
