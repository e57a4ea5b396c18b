"""How long a user waits: from the end of what they say to the first text and the first sound of the reply.

``converse`` speaks in real time over a ``RealtimeLine``, a session of a server's /v1/realtime, and notes what
happens, ``TurnEvent``s, from which all numbers are taken. Today's server replies in text alone, so what is measured is
voice to text; it is voice to voice as soon as pieces of audio come.

    python -m afn_model.eval.latency ws://127.0.0.1:8000 --turns 20
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from afn_model.files import write_text

RATE = 24_000  # Hz, both ways, as OpenAI's realtime API has it by default
PIECE = 0.02  # seconds of a piece of the microphone's
SILENCE_MS = 500  # after which the server takes the user's turn as ended
PERCENTILES = (50, 90, 95, 99)

# speech_end: the last sample of the user's speech; speech_start: the first one of an interruption; speech_stopped: the
# server says that the user's turn has ended; text, audio: a piece of the reply; cancelled: the server says that the
# reply was interrupted; done: the reply is complete; late: by so many seconds a piece of the user's was sent too late.
Kind = Literal["speech_end", "speech_start", "speech_stopped", "text", "audio", "cancelled", "done", "late"]


@dataclass(frozen=True)
class TurnEvent:
    """Something that a client sees at ``time`` seconds of its clock.

    Args:
        time: of pieces when they have come, of the user's speech when it is due.
        kind: of ``Kind``.
        payload: text of a piece; seconds of a piece of audio; of "late" seconds; else None.
    """

    time: float
    kind: Kind
    payload: Any = None


def converse(
    line: RealtimeLine,
    pcm: np.ndarray,
    speech_end: float,
    *,
    push_to_talk: bool = False,
    interruption: np.ndarray | None = None,
    after: float = 1.0,
    limit: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> list[TurnEvent]:
    """Says something in real time, then listens until the reply is complete.

    A piece of 20 ms is sent when its last sample is due, as from a microphone, and silence follows the recording.

    Args:
        line: to the server.
        pcm: [n] int16 at ``RATE``.
        speech_end: seconds of ``pcm`` at which speech ends, by the recording's truth: not what a detector finds.
        push_to_talk: the client says that the turn has ended, with the piece in which speech ends; nothing follows it.
        interruption: said in the place of silence as soon as the reply's audio has been played for ``after`` seconds.
        after: seconds.
        limit: seconds to wait for the end of the reply.
        clock: seconds.

    Raises:
        ValueError: an interruption with ``push_to_talk``.
    """
    if push_to_talk and interruption is not None:
        raise ValueError("push to talk sends nothing behind the turn: an interruption needs an open microphone")
    size, start, late = round(PIECE * RATE), clock(), 0.0
    seen = [TurnEvent(start + speech_end, "speech_end")]
    voice, began, sent, committed = pcm, 0, 0, False  # ``began``: the piece at which ``voice`` does
    if push_to_talk:
        voice = pcm[: math.ceil(speech_end / PIECE) * size]
    until = start + len(pcm) / RATE + limit
    while clock() < until and not _over(seen, interruption is not None, clock()):
        due = start + (sent + 1) * PIECE
        found = line.receive(max(0.0, (until if committed else due) - clock()))
        if found is not None:
            seen.append(TurnEvent(clock(), *found))
        if committed or clock() < due:
            continue
        if interruption is not None and played_since(seen, due - PIECE) >= after:
            seen.append(TurnEvent(due - PIECE, "speech_start"))
            voice, interruption, began = interruption, None, sent
        piece = voice[(sent - began) * size : (sent - began + 1) * size]
        late = max(late, clock() - due)
        line.send(np.pad(piece, (0, size - len(piece))))
        sent += 1
        if push_to_talk and sent * size >= len(voice):
            line.commit()
            committed = True
    return sorted([*seen, TurnEvent(clock(), "late", late)], key=lambda one: one.time)


def _over(seen: Sequence[TurnEvent], waits: bool, now: float) -> bool:
    """Whether a turn is: who wants to interrupt, or has, listens to what has come until it has been played."""
    kinds = {one.kind for one in seen}
    if "done" not in kinds or "cancelled" in kinds:
        return "cancelled" in kinds
    end = max((end for _, end in playback(seen)), default=-math.inf)
    return not (waits or "speech_start" in kinds) or now >= end


def playback(seen: Sequence[TurnEvent]) -> Iterator[tuple[float, float]]:
    """When each piece of audio is played, (start, end) in seconds of the clock: at once, or behind the one before."""
    end = -math.inf
    for one in seen:
        if one.kind == "audio":
            start = max(end, one.time)
            end = start + one.payload
            yield start, end


def played_since(seen: Sequence[TurnEvent], now: float) -> float:
    """Seconds for which the reply has been heard up to now; 0 where it is silent now."""
    pieces = [(start, end) for start, end in playback(seen) if start <= now]
    return now - pieces[0][0] if pieces and now < pieces[-1][1] else 0.0


@dataclass(frozen=True)
class TurnLatency:
    """What a user waited for in a turn, seconds.

    Args:
        first_text, first_audio: from the end of the user's speech to the first piece; None where none came. Negative
            where it came before.
        speech_stopped: from there until the server said that the user's turn had ended.
        done: from there to the end of the reply.
        text_gaps, audio_gaps: from a piece to the next one.
        stalls: silences that a listener hears between the first and the last piece of audio.
        barge_in: from the first sample of the user's interruption until nothing of the reply is heard any longer: when
            the server says that it has stopped, and the client throws away what it has not played, or when all that
            came has been played; None without an interruption.
        late: the largest delay with which a piece of the user's voice was sent: what else is measured is no better.
    """

    first_text: float | None
    first_audio: float | None
    speech_stopped: float | None
    done: float | None
    text_gaps: tuple[float, ...]
    audio_gaps: tuple[float, ...]
    stalls: tuple[float, ...]
    barge_in: float | None
    late: float


def turn_latency(seen: Sequence[TurnEvent]) -> TurnLatency:
    """The numbers of one turn.

    Raises:
        ValueError: nobody has stopped speaking in it.
    """
    times = {kind: [one.time for one in seen if one.kind == kind] for kind in get_args(Kind)}
    if not times["speech_end"]:
        raise ValueError("a turn has an end of the user's speech: there is no speech_end in it")
    end = times["speech_end"][0]

    def since(kind: Kind) -> float | None:
        return times[kind][0] - end if times[kind] else None

    pieces = list(playback(seen))
    barge_in = None
    if times["speech_start"]:
        began = times["speech_start"][0]
        # What follows the end of the interruption is another reply.
        new = min((at for at in times["speech_stopped"] if at > began), default=math.inf)
        old = list(playback([one for one in seen if one.time < new]))
        quiet = [old[-1][1], *times["cancelled"]] if old else []
        barge_in = max(0.0, min(quiet) - began) if quiet else None
    return TurnLatency(
        since("text"),
        since("audio"),
        since("speech_stopped"),
        since("done"),
        tuple(b - a for a, b in pairwise(times["text"])),
        tuple(b - a for a, b in pairwise(times["audio"])),
        tuple(b[0] - a[1] for a, b in pairwise(pieces) if b[0] > a[1]),
        barge_in,
        max((one.payload for one in seen if one.kind == "late"), default=0.0),
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Percentiles by the nearest rank, so that each is a value that was measured; how many there are says which of them
    mean something."""
    if not values:
        return {"n": 0}
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    ranks = {f"p{share}": float(value) for share, value in zip(PERCENTILES, found, strict=True)}
    return {"n": len(values)} | ranks | {"max": max(values)}


def summary(turns: Sequence[TurnLatency]) -> dict[str, Any]:
    """Percentiles over turns, and over all gaps of all turns. "measures" is "voice to voice" only where every turn was
    replied to in sound."""
    single = ("first_text", "first_audio", "speech_stopped", "done", "barge_in", "late")
    found: dict[str, Any] = {
        name: percentiles([value for turn in turns if (value := getattr(turn, name)) is not None]) for name in single
    }
    for name in ("text_gaps", "audio_gaps", "stalls"):
        found[name] = percentiles([gap for turn in turns for gap in getattr(turn, name)])
    voice = bool(turns) and found["first_audio"]["n"] == len(turns)
    return {"measures": "voice to voice" if voice else "voice to text", "turns": len(turns)} | found


# The last four are OpenAI's events of spoken replies, which no server of ours sends yet.
_KINDS: dict[str, Kind] = {
    "input_audio_buffer.speech_stopped": "speech_stopped",
    "conversation.item.input_audio_transcription.delta": "text",
    "conversation.item.input_audio_transcription.completed": "done",
    "response.output_text.delta": "text",
    "response.output_audio_transcript.delta": "text",
    "response.output_audio.delta": "audio",
    "response.done": "done",
}


class RealtimeLine:
    """A session of a server's /v1/realtime, as OpenAI's clients use it.

    Args:
        url: such as ``ws://127.0.0.1:8000``.
        key: of the server; "" for none.
        push_to_talk: the client commits; otherwise the server hears where the user's turn ends.
        question: asked about what is said; without it the reply is a transcript.
        socket: in the place of a connection, for tests.

    Raises:
        ValueError: no connection, an error of the server, or the end of the session; also by what is called later.
    """

    def __init__(self, url: str, *, key: str = "", push_to_talk: bool = False, question: str = "", socket: Any = None):
        self._stack = ExitStack()  # connections are context managers
        self.socket = socket or self._stack.enter_context(_connection(f"{url.rstrip('/')}/v1/realtime", key))
        turns = None if push_to_talk else {"type": "server_vad", "silence_duration_ms": SILENCE_MS}
        heard: dict[str, Any] = {"format": {"type": "audio/pcm", "rate": RATE}, "turn_detection": turns}
        if question:
            heard["transcription"] = {"question": question}
        self._tell({"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}})
        try:
            while self._next(10.0)["type"] != "session.updated":
                pass
        except TimeoutError:
            raise ValueError(f"{url}: the server takes no settings of a session within 10 s") from None

    def send(self, pcm: np.ndarray) -> None:
        audio = base64.b64encode(pcm.astype("<i2").tobytes()).decode()
        self._tell({"type": "input_audio_buffer.append", "audio": audio})

    def commit(self) -> None:
        self._tell({"type": "input_audio_buffer.commit"})

    def receive(self, timeout: float) -> tuple[Kind, Any] | None:
        until = time.monotonic() + timeout
        while True:
            try:
                event = self._next(max(0.0, until - time.monotonic()))
            except TimeoutError:
                return None
            kind = _KINDS.get(event["type"])
            if kind == "text" and event.get("delta"):
                return "text", event["delta"]
            if kind == "audio":
                return "audio", len(base64.b64decode(event["delta"])) / 2 / RATE
            if kind == "done" and event.get("response", {}).get("status") == "cancelled":
                return "cancelled", None
            if kind in ("speech_stopped", "done"):
                return kind, None

    def close(self) -> None:
        self._stack.close()

    def _tell(self, event: dict[str, Any]) -> None:
        self.socket.send(json.dumps(event))

    def _next(self, timeout: float) -> dict[str, Any]:
        try:
            event = json.loads(self.socket.recv(timeout=timeout))
        except TimeoutError:
            raise
        except Exception as error:
            raise ValueError(f"the session has ended ({error})") from None
        if event["type"] == "error" or event["type"].endswith(".failed"):
            raise ValueError(f"the server says: {(event.get('error') or {}).get('message')}")
        return event


def _connection(url: str, key: str) -> Any:
    try:
        from websockets.sync.client import connect
    except ImportError:
        raise ValueError("a realtime session needs websockets: pip install websockets") from None
    headers = {"Authorization": f"Bearer {key}"} if key else None
    try:
        return connect(f"{url}?intent=transcription", additional_headers=headers)
    except Exception as error:
        raise ValueError(f"{url}: no session ({error})") from None


def measure(
    line: RealtimeLine, said: Sequence[tuple[np.ndarray, float]], *, warm_up: int = 1, **options: Any
) -> tuple[dict[str, Any], list[TurnLatency]]:
    """Percentiles over turns one after another, and each turn's numbers.

    Args:
        line: to the server.
        said: recordings, with the second at which speech ends in each, as of ``converse``.
        warm_up: turns at the beginning that are not counted.
        options: of ``converse``.

    Raises:
        ValueError: a reply that did not end in time.
    """
    turns = []
    for number, (pcm, end) in enumerate(said, 1):
        turns.append(turn_latency(converse(line, pcm, end, **options)))
        if turns[-1].done is None and turns[-1].barge_in is None:
            raise ValueError(f"turn {number}: the reply has not ended in time")
    turns = turns[warm_up:]
    return summary(turns), turns


def spoken_words(count: int, *, seed: int = 0, around: float = 0.3) -> list[tuple[np.ndarray, float]]:
    """Words of the synthetic world with quiet around them, and where the word ends.

    Raises:
        ValueError: the package of the speech synthesiser is missing.
    """
    from afn_model.audio.frames import SAMPLE_RATE
    from afn_model.eval.copies.sounds import SPOKEN, Sounds

    sounds, found = Sounds(seed), []
    for _ in range(count):
        wave = sounds.speech(sounds.pick(SPOKEN), around=around)
        at = np.arange(round(len(wave) * RATE / SAMPLE_RATE)) * SAMPLE_RATE / RATE
        pcm = np.interp(at, np.arange(len(wave)), wave).clip(-1, 1)
        found.append((np.rint(32767 * pcm).astype(np.int16), len(wave) / SAMPLE_RATE - around))
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m afn_model.eval.latency", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("url", help="of the server, such as ws://127.0.0.1:8000")
    parser.add_argument("--turns", type=int, default=20, help="words that are said (default: 20)")
    parser.add_argument("--key", default="", help="of the server")
    parser.add_argument("--question", default="", help="asked about each word; without it a transcript is")
    parser.add_argument("--push-to-talk", action="store_true", help="the client says where the user's turn ends")
    parser.add_argument("--out", type=Path, help="file for the numbers, JSON")
    args = parser.parse_args(given)
    try:
        said = spoken_words(args.turns + 1)
        line = RealtimeLine(args.url, key=args.key, push_to_talk=args.push_to_talk, question=args.question)
        found, _ = measure(line, said, push_to_talk=args.push_to_talk)
        line.close()
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    found["turn_ends"] = "by the client" if args.push_to_talk else f"after {SILENCE_MS} ms of silence, by the server"
    text = json.dumps(found, indent=2)
    if args.out:
        write_text(args.out, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
