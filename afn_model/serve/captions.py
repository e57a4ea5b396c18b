"""Recordings as text: each is described by the model, and a text model goes on with the descriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import Audio, Turn, read_conversation
from afn_model.prompt.questions import DETAILED_CAPTION, described
from afn_model.scoring.text import answer_in
from afn_model.serve.caption_cache import Caption
from afn_model.serve.chat_audio import together
from afn_model.serve.errors import ApiError
from afn_model.serve.recording import Recording
from afn_model.serve.server import Server

TOGETHER = 8  # recordings of a request that are described at the same time


@dataclass(frozen=True)
class CaptionRequest:
    """How recordings are described: the answer to which question."""

    prompt: str = DETAILED_CAPTION


def read_caption_request(value: Any, param: str = "afn_caption") -> CaptionRequest | None:
    """What the field of a chat completion asks for: true, or an object with a ``prompt``; None for false and null.

    Raises:
        ApiError: 400, something else.
    """
    if value is None or value is False:
        return None
    if value is True:
        return CaptionRequest()
    if not isinstance(value, dict) or set(value) - {"prompt"}:
        raise ApiError(400, f"{param}: true or an object with a prompt is expected, got {value!r:.80}", param=param)
    prompt = value.get("prompt", DETAILED_CAPTION)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ApiError(400, f"{param}.prompt: a question is expected, got {prompt!r:.80}", param=f"{param}.prompt")
    return CaptionRequest(prompt)


async def with_captions(
    server: Server, turns: Sequence[Turn], recordings: Sequence[Recording], asked: CaptionRequest, owner: str = ""
) -> tuple[list[Turn], list[dict[str, Any]]]:
    """A conversation with captions in the place of its recordings.

    Args:
        server: whose model describes them, several at the same time; captions that it has are not asked for again.
            The request that they are for has been admitted.
        turns: of the conversation.
        recordings: of its audios, in order.
        asked: which question is asked about each.
        owner: the client whose captions they are.

    Returns:
        (turns of text alone, what to tell the client of each recording: ``afn.captions``).

    Raises:
        ApiError: as of ``Server.ask``; 400, a prompt that holds a token of the prompt's own.
    """
    audios = [audio for turn in turns for audio in turn.audios]
    assert len(audios) == len(recordings), f"{len(recordings)} recordings for {len(audios)} audios"
    different = {recording.id: recording for recording in recordings}
    known = {id: server.captions.get(owner, id, asked.prompt) for id in different}
    missing = [id for id, caption in known.items() if caption is None]
    room = asyncio.Semaphore(TOGETHER)

    async def described_by_model(id: str) -> Caption:
        async with room:
            made = await _caption(server, different[id], asked.prompt)
        server.captions.add(owner, id, asked.prompt, made)
        return made

    found = known | dict(zip(missing, await together([described_by_model(id) for id in missing]), strict=True))
    rows, texts = list[dict[str, Any]](), list[str]()
    for number, recording in enumerate(recordings, 1):
        caption = found[recording.id]
        assert caption is not None
        texts.append(described(caption.text, number, recording.seconds) + "\n")
        rows.append(
            {
                "id": recording.id,
                "seconds": recording.seconds,
                "caption": caption.text,
                "finish_reason": caption.finish,
                "cached": recording.id not in missing,
                "usage": {
                    "prompt_tokens": caption.prompt_tokens,
                    "audio_tokens": caption.audio_tokens,
                    "completion_tokens": caption.answer_tokens,
                },
            }
        )
    rest = iter(texts)
    said = [
        Turn(turn.role, tuple(next(rest) if isinstance(part, Audio) else part for part in turn.parts)) for turn in turns
    ]
    return said, rows


async def _caption(server: Server, recording: Recording, prompt: str) -> Caption:
    parts = [{"type": "audio", "audio": recording.audio}, {"type": "text", "text": prompt}]
    try:
        turns = read_conversation([{"role": "user", "content": parts}])
    except ValueError as error:
        raise ApiError(400, f"afn_caption.prompt: {error}", param="afn_caption.prompt") from None
    params = SamplingParams(max_new_tokens=server.settings.max_new_tokens)
    async with server.ask(turns, params, endpoint="captions", admitted=True) as stream:
        (answer,) = await stream.ended()
        text, tokens = answer_in(answer.text), len(answer.without_stop(server.processor.stop_ids))
        return Caption(text, str(answer.reason), stream.prompt_tokens, stream.audio_tokens, tokens)
