"""``afn ask``, ``afn transcribe`` and ``afn caption``. Heavy imports wait until one of them runs."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from afn_model.cli.messages import show_error
from afn_model.cli.recordings import STDIN, AnswerFile, expand, part_about

if TYPE_CHECKING:
    from afn_model.infer.answer import Answer
    from afn_model.infer.sampling_params import SamplingParams
    from afn_model.session import Session

TRANSCRIBE = "Transcribe the input speech."
CAPTION = "Generate a caption for the input audio."
DETAILED_CAPTION = (
    "Generate a detailed caption for the input audio. "
    "In the caption, transcribe all spoken content by all speakers in the audio precisely."
)


def opening(args: Namespace) -> list[dict]:
    return [] if args.system is None else [{"role": "system", "content": args.system}]


def question_about(files: list[str], question: str, args: Namespace) -> list[dict]:
    """The conversation that asks about recordings, or about the part of each that the options say."""
    parts = [part_about(file, args.start, args.end) for file in files]
    return [*opening(args), {"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def print_piece(text: str) -> None:
    print(text, end="", flush=True)


def print_answer(
    session: Session, conversation: list[dict], params: SamplingParams, *, quiet: bool, **options: Any
) -> Answer:
    """Answers a conversation and prints the answer as it comes."""
    from afn_model.cli.session import AnswerBar

    with AnswerBar(quiet=quiet) as bar:

        def on_text(_: int, piece: str) -> None:
            bar.close()
            print_piece(piece)

        options |= {"on_text": on_text, "on_progress": bar.on_progress}
        (answer,) = session.answer([conversation], params, **options)
    print(flush=True)
    return answer


def ask(args: Namespace) -> None:
    from afn_model.cli.session import AnswerBar, as_json, open_session, sampling_params

    if not args.audio and (os.path.isfile(args.question) or args.question == STDIN):
        raise ValueError(f"{args.question}: a recording without a question")
    if args.audio.count(STDIN) > 1:
        raise ValueError("standard input is one recording, given once")
    stream = sys.stdout.isatty() and not (args.json or args.no_stream)
    params = sampling_params(args)
    conversation = question_about(args.audio, args.question, args)
    with open_session(args) as session:
        if stream:
            print_answer(session, conversation, params, quiet=args.quiet)
            return
        with AnswerBar(quiet=args.quiet) as bar:
            (answer,) = session.answer([conversation], params, on_progress=bar.on_progress)
    row = as_json(answer, args.audio, args.question, args)
    print(json.dumps(row, ensure_ascii=False) if args.json else answer.text)


def about_each(args: Namespace, question: str) -> int:
    """The same question about every recording, in batches; with several recordings, each answer after its file.

    Returns:
        the exit code: 1 where a recording could not be answered about, and the others were.
    """
    from afn_model.audio.source import is_pipe
    from afn_model.cli.session import MAY_BE_GIVEN, AnswerBar, as_json, open_session, same_in_all, sampling_params
    from afn_model.infer.answer import BATCH_TOKENS

    params = sampling_params(args)
    given = expand(args.audio, args.list)
    out = None if args.out is None else AnswerFile(args.out, dict.fromkeys(MAY_BE_GIVEN) | same_in_all(question, args))
    # What comes through a pipe is another recording every time, whatever the pipe's name.
    files = given if out is None else [file for file in given if file not in out.done or is_pipe(file)]
    if not files:
        if not args.quiet:
            print(f"afn: {args.out} has answers about all {len(given)} recordings", file=sys.stderr)
        return 0
    conversations = [question_about([file], question, args) for file in files]

    def show(file: str, answer: Answer) -> None:
        row: dict[str, Any] = as_json(answer, [file], question, args)
        if out is not None:
            out.write(row)
        elif args.json:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            print(answer.text if len(given) == 1 else f"{file}: {answer.text}", flush=True)

    failed, limits = 0, {"batch_size": args.batch, "batch_tokens": args.batch_tokens or BATCH_TOKENS}
    with open_session(args) as session, AnswerBar(len(files), quiet=args.quiet) as bar:
        for place, found in session.answers(conversations, params, on_progress=bar.on_progress, **limits):
            bar.done()
            if isinstance(found, ValueError):
                if args.fail_fast:
                    raise found
                failed += 1
                show_error(found)
            else:
                show(files[place], found)
    if failed and len(files) > 1:
        print(f"afn: {failed} of {len(files)} recordings could not be used", file=sys.stderr)
    return 1 if failed else 0


def transcribe(args: Namespace) -> int:
    return about_each(args, TRANSCRIBE)


def caption(args: Namespace) -> int:
    return about_each(args, DETAILED_CAPTION if args.detailed else CAPTION)
