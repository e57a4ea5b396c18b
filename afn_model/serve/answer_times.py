"""The times that an answer states: checked, and heard again where the client wants that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from afn_model.infer.listen_again import ASKED, log_odds, questions
from afn_model.infer.stated_times import stated_times
from afn_model.infer.time_checks import CheckedTime, check_times
from afn_model.prompt.conversation import Turn
from afn_model.serve.recording import Recording
from afn_model.serve.server import Server

MOST = 64  # times of an answer that are heard again; each is a request of a few seconds of audio
TOGETHER = 8  # of them at the same time


def checked_times(text: str, recordings: Sequence[Recording], thinking: bool) -> list[CheckedTime]:
    """The times that an answer states, each checked against its recordings.

    Args:
        text: of the answer, with its tags.
        recordings: of the conversation, in order.
        thinking: the text begins inside of ``<think>``.
    """
    times = stated_times(text, recordings[0].seconds if len(recordings) == 1 else None, thinking=thinking)
    return check_times(times, text, [one.loudness for one in recordings]) if times else []


async def times_of(
    server: Server, text: str, recordings: Sequence[Recording], thinking: bool, *, verify: bool = False
) -> list[dict[str, Any]]:
    """``afn.timestamps`` of an answer.

    Args:
        server: that listens again.
        text, recordings, thinking: as of ``checked_times``.
        verify: whether each time is heard again: ``log_odds``, above 0 where the model says yes; None where there is
            nothing to hear, or no answer. The first 64 times are.

    Raises:
        ApiError: as of ``Server.ask``.
    """
    checked = await asyncio.to_thread(checked_times, text, recordings, thinking)
    rows = [one.to_json() for one in checked]
    for one in checked:
        server.metrics.timestamp(one.status)
    if not verify:
        return rows
    turns: list[list[Turn] | None] = [None] * len(rows)
    for number, recording in enumerate(recordings):
        of = [at for at, one in enumerate(checked[:MOST]) if one.recording == number]
        asked = await asyncio.to_thread(questions, [checked[at].time for at in of], text, recording.pcm)
        for at, about in zip(of, asked, strict=True):
            turns[at] = about
    room = asyncio.Semaphore(TOGETHER)

    async def confirmed(about: list[Turn] | None) -> float | None:
        if about is None:
            return None
        async with room, server.ask(about, ASKED, endpoint="verify", admitted=True) as stream:
            (answer,) = await stream.ended()
        return log_odds(answer.top[0], server.processor) if answer.top else None

    found = await asyncio.gather(*map(confirmed, turns))
    return [row | {"log_odds": odds} for row, odds in zip(rows, found, strict=True)]
