"""``afn chat``: turn after turn about recordings. Heavy imports wait until it runs."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from afn_model.cli.answering import opening, print_answer
from afn_model.cli.messages import show_error
from afn_model.cli.recordings import expand

if TYPE_CHECKING:
    from afn_model.infer.sampling_params import SamplingParams
    from afn_model.session import Session

CHAT_HELP = "/audio FILE attaches a recording to the next message, /reset starts anew, /quit ends"


def chat(args: Namespace) -> None:
    from afn_model.cli.session import open_session, sampling_params

    params = sampling_params(args)
    with open_session(args) as session:
        attached = [attach(file, session) for file in expand(args.audio)] if args.audio else []
        talk(session, params, opening(args), attached, quiet=args.quiet)


def talk(
    session: Session, params: SamplingParams, start: list[dict], attached: list[dict], *, quiet: bool = False
) -> None:
    """Turn after turn, from the messages that a conversation starts with and the recordings that the first one is
    about; each turn computes what is new in it.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        print(CHAT_HELP, file=sys.stderr)
    messages = start
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            if line == "/reset":
                messages, attached = start, []
            elif line.startswith("/audio "):
                attached.append(attach(line.removeprefix("/audio ").strip(), session))
            elif line.startswith("/"):
                raise ValueError(f"{line}: no such command; {CHAT_HELP}")
            elif line:
                asked = [*messages, {"role": "user", "content": [*attached, {"type": "text", "text": line}]}]
                answer = print_answer(session, asked, params, quiet=quiet)
                messages, attached = [*asked, {"role": "assistant", "content": answer.text}], []
        except (ValueError, OSError) as error:
            if not interactive:
                raise
            show_error(error)


def attach(file: str, session: Session) -> dict[str, Any]:
    """A part of a message with the samples of a recording, which later turns then need not read or hash again."""
    from afn_model.audio.decode import load_audio
    from afn_model.audio.digests import DecodedRecording

    processor = session.processor
    pcm = load_audio(file, strict=processor.strict, max_seconds=processor.max_seconds)
    return {"type": "audio", "audio": DecodedRecording(pcm)}
