"""``afn ask``, ``afn transcribe`` and ``afn caption``. Heavy imports wait until one of them runs."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING, Any

from afn_model.cli.each import about_each
from afn_model.cli.messages import show_finish
from afn_model.cli.prompts import caption_task, speech_question, transcribing
from afn_model.cli.recordings import STDIN, expand, part_about
from afn_model.prompt.questions import CAPTION, DETAILED_CAPTION

if TYPE_CHECKING:
    from afn_model.infer.answer import Answer
    from afn_model.infer.sampling_params import SamplingParams
    from afn_model.session import Session


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
    if not quiet:
        show_finish(answer.finish, f"after {answer.answer_tokens} tokens")
    return answer


def ask(args: Namespace) -> int:
    if not args.audio and not args.list and (os.path.isfile(args.question) or args.question == STDIN):
        raise ValueError(f"{args.question}: a recording without a question")
    if args.each:
        return about_each(args, args.question)
    given = {
        "--format": args.format,
        "--out-dir": args.out_dir,
        "--out": args.out,
        "--chunk-seconds": args.chunk_seconds,
    }
    if found := next((name for name, value in given.items() if value is not None), None):
        raise ValueError(f"{found} is for questions about every recording by itself: --each")
    ask_once(args)
    return 0


def ask_once(args: Namespace) -> None:
    """One question about all recordings together."""
    from afn_model.cli.session import AnswerBar, as_json, open_session, sampling_params, set_end

    set_end(args)
    if args.audio.count(STDIN) > 1:
        raise ValueError("standard input is one recording, given once")
    files = expand(args.audio, args.list) if args.audio or args.list else []
    stream = sys.stdout.isatty() and not (args.json or args.no_stream)
    params = sampling_params(args)
    conversation = question_about(files, args.question, args)
    try:
        with open_session(args) as session:
            if stream:
                print_answer(session, conversation, params, quiet=args.quiet)
                return
            with AnswerBar(quiet=args.quiet) as bar:
                (answer,) = session.answer([conversation], params, on_progress=bar.on_progress)
    except ValueError as error:
        if files and "the model's context is" in str(error):
            raise ValueError(f"{error}; --start and --end ask about a part, --each in pieces") from None
        raise
    row = as_json(answer, files, args.question, args)
    print(json.dumps(row, ensure_ascii=False) if args.json else answer.text)
    if not args.quiet:
        show_finish(answer.finish, f"after {answer.answer_tokens} tokens")


def transcribe(args: Namespace) -> int:
    from afn_model.weights.speech import is_speech

    question = transcribing(args)
    if is_speech(args.model):
        from afn_model.cli.speech import write_down
        from afn_model.prompt.processor import AFNextProcessor

        return write_down(args, speech_question(args, AFNextProcessor.from_pretrained(args.model)))
    given = {"--beams": args.beams, "--length-penalty": args.length_penalty, "--words": args.words}
    given["--stream"] = args.stream
    if found := next((name for name, value in given.items() if value is not None), None):
        raise ValueError(f"{found} is for an encoder with a decoder of its own, which {args.model} is not")
    return about_each(args, question, spoken=True)


def caption(args: Namespace) -> int:
    if args.then is None and (args.then_question or args.then_model):
        raise ValueError("--then-question and --then-model are for a text model: --then says where")
    if args.then is not None and not args.then_question:
        raise ValueError("--then needs --then-question, what the text model is asked about every caption")
    question = caption_task(args.model) or (DETAILED_CAPTION if args.detailed else CAPTION)
    return about_each(args, question, then=None if args.then is None else partial(ask_then, args))


def ask_then(args: Namespace, row: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A row whose answer is that of a text model to a question about the caption, which the row keeps.

    Raises:
        ValueError: the text model does not answer.
    """
    from afn_model.infer.elsewhere import complete, text_of
    from afn_model.prompt.questions import described

    told = f"{described(row['answer'], 1, seconds)}\n{args.then_question}"
    key = os.environ.get("AFN_THEN_KEY")
    answer = text_of(complete(args.then, [{"role": "user", "content": told}], model=args.then_model, key=key))
    start = args.start or 0.0
    whole = {"start": round(start, 3), "end": round(start + seconds, 3), "text": answer}
    return row | {"answer": answer, "caption": row["answer"], "segments": [whole], "times": "none"}
