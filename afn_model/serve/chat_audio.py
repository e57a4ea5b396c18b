"""The recordings of a conversation: read where they are, decoded at the same time, equal ones once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from afn_model.audio.recording import Audio, load
from afn_model.checks import shown
from afn_model.prompt.conversation import Turn, read_conversation
from afn_model.serve.chat_request import AudioUrl, ContentPart, Message
from afn_model.serve.data_urls import decode_base64, decode_data_url
from afn_model.serve.errors import ApiError
from afn_model.serve.recording import Recording
from afn_model.serve.server import Server, aside

MOST = 256  # recordings of a request
AT_ONCE = 2  # of them that are decoded at the same time, or as many as there are decoders
SHORT = 1 << 16  # characters that are decoded without a thread
UPLOAD = "afn://sha256/"
T = TypeVar("T")
Place = tuple[int, int]  # message, and part of it
Key = tuple[str, "float | None", "float | None"]  # what is known of a file, and which seconds of it


@dataclass(frozen=True)
class HeardChat:
    """A conversation with its recordings.

    Args:
        turns: of it.
        recordings: each once, in order of appearance.
    """

    turns: list[Turn]
    recordings: list[Recording]

    @property
    def mentioned(self) -> list[Recording]:
        """The recording of every audio of the turns, in order."""
        known = {one.audio: one for one in self.recordings}
        return [known[audio] for turn in self.turns for audio in turn.audios]


async def hear(messages: Sequence[Message], server: Server, owner: str) -> HeardChat:
    """Reads a conversation.

    Args:
        messages: of the request.
        server: that decodes.
        owner: of the uploads that it may be about.

    Raises:
        ApiError: what is wrong with a part, and which.
    """
    parts = {
        (index, place): part
        for index, message in enumerate(messages)
        for place, part in enumerate(message.content)
        if part.type != "text"
    }
    if len(parts) > MOST:
        where = param(*list(parts)[MOST])
        raise ApiError(400, f"{where}: a request may be about {MOST} recordings", param=where)
    size = sum(len(part.text or "") for message in messages for part in message.content)
    await aside(partial(_check, messages), size)
    found = await _recordings(parts, server, owner)
    recordings = list(dict.fromkeys(found[place] for place in parts))
    audios = {one: one.audio for one in recordings}
    turns = await aside(partial(_turns, messages, {place: audios[one] for place, one in found.items()}), size)
    return HeardChat(turns, recordings)


def _check(messages: Sequence[Message]) -> None:
    """ApiError where a text holds what only the prompt itself may."""
    for index, message in enumerate(messages):
        for place, part in enumerate(message.content):
            try:
                read_conversation([{"role": "user", "content": part.text or ""}])
            except ValueError as error:
                where = param(index, place)
                raise ApiError(400, f"{where}: {error}", param=where) from None


def _turns(messages: Sequence[Message], audios: dict[Place, Audio]) -> list[Turn]:
    contents = [
        [
            {"type": "text", "text": part.text}
            if part.type == "text"
            else {"type": "audio", "audio": audios[at, place]}
            for place, part in enumerate(message.content)
        ]
        for at, message in enumerate(messages)
    ]
    roles = ["system" if message.role == "developer" else message.role for message in messages]
    try:
        return read_conversation(
            [{"role": role, "content": parts} for role, parts in zip(roles, contents, strict=True)]
        )
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None


def param(message: int, part: int) -> str:
    """What errors call a part."""
    return f"messages[{message}].content[{part}]"


async def _recordings(parts: dict[Place, ContentPart], server: Server, owner: str) -> dict[Place, Recording]:
    """The recording of each part; the same one where parts are equal."""
    contents = await together([_content(part, server, owner, param(*place)) for place, part in parts.items()])
    keys: list[Key] = []
    for content, part in zip(contents, parts.values(), strict=True):
        known = content.id if isinstance(content, Recording) else await asyncio.to_thread(_digest, content)
        keys.append((known, part.start, part.end))
    first: dict[Key, int] = {}
    for at, key in enumerate(keys):
        first.setdefault(key, at)
    places = list(parts)
    room = asyncio.Semaphore(max(AT_ONCE, server.settings.decoders))

    async def decoded(key: Key, at: int) -> Recording:
        async with room:
            return await _decoded(contents[at], key[1], key[2], server, param(*places[at]))

    work = [decoded(key, at) for key, at in first.items()]
    found = dict(zip(first, await together(work), strict=True))
    return {place: found[key] for place, key in zip(places, keys, strict=True)}


async def together(work: Sequence[Awaitable[T]]) -> list[T]:
    """What several things come to, done at the same time; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def _content(part: ContentPart, server: Server, owner: str, where: str) -> bytes | Recording:
    """The bytes of the file that a part is about, or an upload."""
    if part.input_audio is not None:
        return await _bytes(decode_base64, part.input_audio.data, server, where)
    url = part.audio_url.url if part.audio_url is not None else ""
    kind = url[:16].lower()
    if kind.startswith("data:"):
        return await _bytes(decode_data_url, url, server, where)
    if kind.startswith(UPLOAD):
        found = server.uploads.get(owner, url[len(UPLOAD) :])
        if found is None:
            what = f"{where}: there is no recording {shown(url)}; upload it again"
            raise ApiError(404, what, param=where, code="recording_not_found")
        return found
    if kind.startswith(("http://", "https://")):
        if not server.settings.hosts:
            what = f"{where}: this server fetches nothing by address; send the recording, or upload it"
            raise ApiError(400, what, param=where)
        from afn_model.serve.fetch import fetch

        return await fetch(url, server.settings, where)
    what = f"{where}: an address must begin with data:, {UPLOAD} or https://, got {shown(url[:80])}"
    raise ApiError(400, what, param=where)


async def heard_at(url: str, server: Server, owner: str, where: str) -> Recording:
    """The recording that an address leads to.

    Args:
        url: as of ``AudioUrl``.
        server, owner: as of ``hear``.
        where: what errors call it.

    Raises:
        ApiError: what is wrong with it.
    """
    part = ContentPart(type="audio_url", audio_url=AudioUrl(url=url))
    return await _decoded(await _content(part, server, owner, where), None, None, server, where)


async def _bytes(decode: Callable[[str, int, str], bytes], text: str, server: Server, where: str) -> bytes:
    """The bytes of a recording that stands in the request."""
    most = server.settings.max_body_bytes
    found = decode(text, most, where) if len(text) <= SHORT else await asyncio.to_thread(decode, text, most, where)
    if not found:
        raise ApiError(400, f"{where}: the recording is empty", param=where)
    return found


async def _decoded(
    content: bytes | Recording, start: float | None, end: float | None, server: Server, where: str
) -> Recording:
    if not isinstance(content, Recording):
        return await server.intake.decode(content, start=start, end=end, param=where)
    if start is not None or end is not None:
        options: dict[str, Any] = {
            "strict": True,
            "max_seconds": server.settings.max_seconds,
            "dtype": content.pcm.dtype,
        }
        try:
            pcm = await asyncio.to_thread(partial(load, Audio(content.pcm, start=start, end=end), **options))
        except ValueError as error:
            raise ApiError(400, f"{where}: {error}", param=where) from None
        return Recording(Recording.part_id(content.id, start, end), pcm)
    if content.seconds > server.settings.max_seconds:
        what = f"{where}: {content.seconds:.0f} s are longer than {server.settings.max_seconds:g} s; start and end "
        raise ApiError(413, what + "of the part say which of them are asked about", param=where, code="too_long")
    return content
