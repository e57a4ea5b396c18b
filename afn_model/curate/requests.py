"""What annotators are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from afn_model.curate import identity


def parts_of(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The parts of a message."""
    content = message["content"]
    return [{"text": content}] if isinstance(content, str) else content


@dataclass(frozen=True)
class AnnotationRequest:
    """What is asked about a part of a recording.

    Args:
        subject: id of what it is about: a segment, a recording.
        stage, version: that asks.
        prompt, prompt_hash: name and hash of the prompt.
        messages: [{"role", "content"}]; content is text or parts: {"text": ...}, {"audio": {"path" in the folder of the
            run, "start", "end" in seconds}}, {"image": {"path", "id"}}.
        settings: of generation, such as temperature and max_tokens.
        schema: JSON schema of the reply; text if None.
        language: code of the language that the reply is in; any if "".
    """

    subject: str
    stage: str
    version: int
    prompt: str
    prompt_hash: str
    messages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    language: str = ""

    def having(self, settings: Mapping[str, Any]) -> AnnotationRequest:
        return replace(self, settings={**self.settings, **settings}) if settings else self

    def result_id(self, model: Mapping[str, str]) -> str:
        """Of the reply: of what it is about, of who asks whom, and of all that is asked."""
        asked = [{"role": one["role"], "content": [_named(part) for part in parts_of(one)]} for one in self.messages]
        told = [self.prompt_hash, asked, dict(self.settings), self.schema, self.language]
        return identity.of("annotation", self.subject, self.stage, self.version, dict(model), told)


def _named(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part without its path; a file counts by its "id", or by its name, which is the hash of what is in it."""
    found = dict(part)
    for kind in part.keys() - {"text"}:
        rest = {name: value for name, value in part[kind].items() if name != "path"}
        found[kind] = {"id": Path(part[kind]["path"]).stem} | rest
    return found


@dataclass(frozen=True)
class AnnotationResponse:
    """What was answered.

    Args:
        id: by which it is kept; a record of the annotation.
        text: of the last reply.
        data: what it says: as the schema has it, or the text; None where there is an error.
        model: as the endpoint reports it.
        tokens_in, tokens_out, seconds: of all replies.
        error: what went wrong; "" where nothing did.
        retryable: whether another run may go better.
        attempts: calls, also those of earlier runs.
    """

    id: str
    text: str
    data: Any
    model: str
    tokens_in: int
    tokens_out: int
    seconds: float
    error: str = ""
    retryable: bool = False
    attempts: int = 0
