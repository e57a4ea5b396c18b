"""What stages have in common that ask an annotator about parts of recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.stage import Context, Failed, Kept, NotReady, Outcome, Row, Stage


@dataclass(frozen=True)
class AskingStage(Stage):
    """A stage with an annotator.

    Args:
        annotator: its name in the plan.
        prompt: one of this package's, or a text file.
        language: code of the language of replies; any if "".
        temperature: of replies; None leaves it to the endpoint.
        max_tokens: of a reply.
    """

    annotator: str = ""
    prompt: str = ""
    language: str = "en"
    temperature: float | None = 0.0
    max_tokens: int | None = 400

    def __post_init__(self):
        prompt_file(self.prompt)

    def depends(self) -> Mapping[str, Any]:
        return {"prompt": prompt_file(self.prompt).hash}

    def request(
        self,
        subject: str,
        parts: Sequence[Mapping[str, Any]] = (),
        *,
        prompt: str | None = None,
        schema: Mapping[str, Any] | None = None,
        tokens: int | None = None,
        settings: Mapping[str, Any] | None = None,
        **data: str,
    ) -> AnnotationRequest:
        """A request: recordings or pictures first, then the prompt with its data.

        Args:
            subject: id of what is asked about.
            parts: recordings and pictures.
            prompt: another one than the stage's.
            schema: of a reply in JSON.
            tokens: of the reply at most, other than the stage's.
            settings: more of generation, such as a seed.
            data: of the prompt.
        """
        asked = prompt_file(prompt or self.prompt)
        content = [*parts, {"text": asked.fill(**data)}]
        told = {"temperature": self.temperature, "max_tokens": tokens or self.max_tokens}
        told = {name: value for name, value in told.items() if value is not None} | dict(settings or {})
        messages = ({"role": "user", "content": content if parts else content[0]["text"]},)
        return AnnotationRequest(
            subject, self.name, self.version, asked.name, asked.hash, messages, told, schema, self.language
        )

    def answered(
        self, context: Context, asked: Sequence[Sequence[AnnotationRequest]], annotator: str | None = None
    ) -> list[list[AnnotationResponse]]:
        """The responses to the requests of each row, all asked together.

        Args:
            context: of the run.
            asked: requests of each row.
            annotator: another one than the stage's.

        Raises:
            NotReady: the plan has no such annotator.
        """
        name = self.annotator if annotator is None else annotator
        try:
            ask = context.annotators[name]
        except KeyError:
            raise NotReady(f"stage {self.name} asks {name!r}, which the plan's annotators lack") from None
        found = iter(ask([one for some in asked for one in some]))
        return [[next(found) for _ in some] for some in asked]


def made(response: AnnotationResponse, prompt_hash: str) -> dict[str, str]:
    """How an annotation came to be, as rows hold it; its tokens and seconds are in the cache under its id."""
    return {"model": response.model, "prompt": prompt_hash, "annotation": response.id}


def will_pass(responses: Sequence[AnnotationResponse]) -> Failed | None:
    """The failure of a row that lacks a reply which another run may have; the others are kept for it."""
    left = [one for one in responses if one.error and one.retryable]
    return Failed(f"{len(left)} of {len(responses)} replies are missing: {left[0].error}", True) if left else None


def useless(responses: Sequence[AnnotationResponse], what: str, tally: Mapping[str, int]) -> Failed | None:
    """The failure of a row of which no reply is of any use."""
    none = responses and all(one.error for one in responses)
    return Failed(f"no {what}: {counted(tally)}") if none else None


def counted(tally: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(tally.items()))


def lineage_of(how: Mapping[str, str], used: Iterable[str] = ()) -> dict[str, Any]:
    """What a product says of how it was made.

    Args:
        how: as ``made`` tells it.
        used: ids of annotations that it comes from too.
    """
    return {"annotator": how["model"], "prompt": how["prompt"], "annotations": [how["annotation"], *used]}


def lost(responses: Sequence[AnnotationResponse], what: str) -> Counter[str]:
    """A tally of replies that are of no use: "captions lost: refused"."""
    return Counter(f"{what} lost: {one.error.partition(':')[0]}" for one in responses if one.error)


def about_segments(
    stage: AskingStage,
    rows: Sequence[Row],
    context: Context,
    asked: Sequence[Mapping[str, AnnotationRequest]],
    field: str,
    plural: str,
) -> list[Outcome]:
    """The outcomes of a stage that writes a text for each segment: ``field`` = [{"segment", "text", and how it was
    made}].

    Args:
        stage, rows, context: of the run.
        asked: for each row {segment id: request}.
        field: that is written.
        plural: what the texts are called in tallies.
    """
    found: list[Outcome] = []
    for row, requests, responses in zip(
        rows, asked, stage.answered(context, [list(one.values()) for one in asked]), strict=True
    ):
        written = [
            {"segment": segment, "text": " ".join(one.data.split()), **made(one, requests[segment].prompt_hash)}
            for segment, one in zip(requests, responses, strict=True)
            if not one.error
        ]
        tally = lost(responses, plural)
        failed = will_pass(responses) or useless(responses, f"{plural} of {row['id']}", tally)
        found.append(failed or Kept({field: written}, {plural: len(written), **tally}))
    return found


def seconds_of(spans: Sequence[Mapping[str, Any]], kinds: Sequence[str], start: float, end: float) -> float:
    """Seconds of some kinds of spans between two moments."""
    parts = (min(one["end"], end) - max(one["start"], start) for one in spans if one["kind"] in kinds)
    return sum(part for part in parts if part > 0)


def audio_of(row: Row, start: float | None = None, end: float | None = None) -> dict[str, Any]:
    """The part of a request that is a recording, or some of it."""
    return {"audio": {"path": row["file"], "start": start, "end": end}}
