"""Transcripts that are sent as they grow: ``transcript.text.delta``, ``transcript.text.segment``,
``transcript.text.done``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

from afn_model.serve.engine_thread import Delta
from afn_model.serve.hearing import Hearing
from afn_model.serve.transcript_formats import (
    Spoken,
    Transcript,
    logprobs_of,
    speaker_rows,
    to_diarized_json,
    to_json,
    to_verbose_json,
)

# What may begin a time, and what is not settled before more has come.
_TIME = re.compile(r"[\[(]\s*(?=\d|\Z)|<(?=\||\Z)|\d{1,3}(?=:|\Z)")


async def streamed(hearing: Hearing) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a transcript.

    Its text comes as the model says it, piece after piece; in diarized_json what each speaker says in a piece when all
    of that has been heard. The last event has what the format's object has beside the text.
    """
    asked, processor, pieces = hearing.asked, hearing.server.processor, list[Spoken]()
    parts, pending, segments, begun = list[StreamedText](), Delta(0), 0, False
    async with hearing:
        async for found in hearing.news():
            if len(parts) == len(pieces):
                parts.append(StreamedText(moved=hearing.spans[len(pieces)][0] > 0))
            if isinstance(found, Delta):
                pending.join(found)
                text = parts[-1].feed(found.text)
            else:
                text = parts[-1].close(await asyncio.to_thread(lambda one=found: one.shown))
                pieces.append(found)
            if text:
                between = "\n" if begun and parts[-1].sent == text else ""
                event: dict[str, Any] = {"type": "transcript.text.delta", "delta": between + text}
                if asked.logprobs:
                    event["logprobs"] = logprobs_of(processor, pending.tokens, pending.logprobs)
                pending, begun = Delta(0), True
                yield event
            if isinstance(found, Spoken) and asked.form == "diarized_json":
                for row in await asyncio.to_thread(speaker_rows, hearing.transcript(pieces), found):
                    yield row | {"id": f"seg_{segments}"}
                    segments += 1
    yield await asyncio.to_thread(done, hearing, hearing.transcript(pieces))


def done(hearing: Hearing, said: Transcript) -> dict[str, Any]:
    """The last event."""
    asked, row = hearing.asked, {"type": "transcript.text.done"}
    if asked.form == "verbose_json":
        found = to_verbose_json(said)
        return row | found | {"text": said.text, "usage": found["afn"]["usage"]}
    if asked.form == "diarized_json":
        return row | to_diarized_json(said) | {"text": said.text}
    return row | to_json(said, logprobs=asked.logprobs)


class StreamedText:
    """The text of the answer about a piece, as much of it as will stay as it is.

    Args:
        moved: whether times in it are moved, when all of it is known.
    """

    def __init__(self, *, moved: bool):
        self.moved, self.text, self.sent = moved, "", ""

    def feed(self, more: str) -> str:
        """Takes what the model says next; what may be sent now."""
        self.text += more
        ready = self.text.lstrip()
        if ready.startswith("<"):  # thinking, or an answer between tags
            return ""
        if self.moved and (time := _TIME.search(ready, len(self.sent))):
            ready = ready[: time.start()]
        return self._send(ready.rstrip())

    def close(self, shown: str) -> str:
        """What is left of the whole text; all of it on a line of its own where it is not what was sent."""
        return self._send(shown if shown.startswith(self.sent) else f"{self.sent}\n{shown}")

    def _send(self, ready: str) -> str:
        more, self.sent = ready[len(self.sent) :], ready if len(ready) > len(self.sent) else self.sent
        return more
