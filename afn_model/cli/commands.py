"""The commands: each is a function of its options that prints to stdout and raises ValueError at bad input."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afn_model.cli import options
from afn_model.cli.data import add_index, add_inspect, add_stats
from afn_model.cli.data import index as data_index
from afn_model.cli.data import inspect as data_inspect
from afn_model.cli.data import stats as data_stats
from afn_model.cli.messages import show_error
from afn_model.cli.train import add_train, train

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
CHAT_HELP = "/audio FILE attaches a recording to the next message, /reset starts anew, /quit ends"


def opening(args: Namespace) -> list[dict]:
    return [] if args.system is None else [{"role": "system", "content": args.system}]


def question_about(files: Iterable[str], question: str, **part: float | None) -> dict:
    """The message that asks about recordings, or about the part of each from ``start`` to ``end`` seconds."""
    recordings = [{"type": "audio", "path": file, **part} for file in files]
    return {"role": "user", "content": [*recordings, {"type": "text", "text": question}]}


def print_piece(text: str) -> None:
    print(text, end="", flush=True)


def ask(args: Namespace) -> None:
    from afn_model.cli.session import ProgressBar, as_json, open_session, sampling_params

    if not args.audio and os.path.isfile(args.question):
        raise ValueError(f"{args.question}: a recording without a question")
    stream = sys.stdout.isatty() and not (args.json or args.no_stream)
    params = sampling_params(args)
    conversation = [*opening(args), question_about(args.audio, args.question, start=args.start, end=args.end)]
    with open_session(args) as session, ProgressBar("Answering", " pieces", params.max_new_tokens) as bar:

        def on_text(_: int, piece: str) -> None:
            if stream:
                print_piece(piece)
            else:
                bar.advance()

        (answer,) = session.answer([conversation], params, on_text=on_text)
    if args.json:
        print(json.dumps(as_json(answer, args.model, args.audio, args.question), ensure_ascii=False))
    else:
        print("" if stream else answer.text)


def about_each(args: Namespace, question: str) -> None:
    """The same question about every recording, in batches; with several recordings, each answer after its file."""
    from afn_model.cli.session import ProgressBar, as_json, open_session, sampling_params

    params = sampling_params(args)
    conversations = [
        [*opening(args), question_about([file], question, start=args.start, end=args.end)] for file in args.audio
    ]

    def show(place: int, answer: Answer) -> None:
        file = args.audio[place]
        bar.clear()
        if args.json:
            print(json.dumps(as_json(answer, args.model, [file], question), ensure_ascii=False), flush=True)
        else:
            print(answer.text if len(args.audio) == 1 else f"{file}: {answer.text}", flush=True)

    total = params.max_new_tokens * len(conversations)
    with open_session(args) as session, ProgressBar("Answering", " pieces", total) as bar:
        session.answer(
            conversations,
            params,
            batch_size=args.batch,
            in_order=True,
            on_text=lambda *_: bar.advance(),
            on_answer=show,
        )


def transcribe(args: Namespace) -> None:
    about_each(args, TRANSCRIBE)


def caption(args: Namespace) -> None:
    about_each(args, DETAILED_CAPTION if args.detailed else CAPTION)


def chat(args: Namespace) -> None:
    from afn_model.cli.session import open_session, sampling_params

    params = sampling_params(args)
    with open_session(args) as session:
        talk(session, params, opening(args))


def talk(session: Session, params: SamplingParams, start: list[dict]) -> None:
    """Turn after turn, from the messages that a conversation starts with."""
    interactive = sys.stdin.isatty()
    if interactive:
        print(CHAT_HELP, file=sys.stderr)
    messages, attached = start, []
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
                (answer,) = session.answer([asked], params, on_text=lambda _, piece: print_piece(piece))
                print()
                messages, attached = [*asked, {"role": "assistant", "content": answer.text}], []
        except (ValueError, OSError) as error:
            if not interactive:
                raise
            show_error(error)


def attach(file: str, session: Session) -> dict[str, Any]:
    """A part of a message with the samples of a recording, which later turns then need not read again."""
    from afn_model.audio.decode import load_audio
    from afn_model.audio.frames import SAMPLE_RATE

    processor = session.processor
    pcm = load_audio(file, strict=processor.strict, max_seconds=processor.max_seconds)
    return {"type": "audio", "audio": pcm, "sampling_rate": SAMPLE_RATE}


def convert(args: Namespace) -> None:
    from afn_model.afnext import AFNext
    from afn_model.cli.session import dtype_of
    from afn_model.prompt.processor import AFNextProcessor
    from afn_model.weights.checkpoint import check_destination

    check_destination(args.source, args.destination, overwrite=args.overwrite)
    processor = AFNextProcessor.from_pretrained(args.source)
    model = AFNext.from_pretrained(args.source, dtype=dtype_of(args.dtype))
    model.save_pretrained(args.destination, layout=args.layout)
    processor.save_pretrained(args.destination)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"{args.destination}: {args.layout} layout, {parameters:,} parameters, {dtype}")


def demo(args: Namespace) -> None:
    from importlib.util import find_spec

    missing = [package for package in ("espeakng_loader", "matplotlib") if find_spec(package) is None]
    if missing:
        raise ValueError(f"the demo needs {' and '.join(missing)}: pip install -e '.[demo]'")
    from afn_model.demo import run

    out = Path(args.out)
    run(out, seed=args.seed, seconds=args.seconds, questions=args.questions)
    print(f'\nAsk more: afn ask RECORDING "QUESTION" --model {out}')


def doctor(args: Namespace) -> None:
    from afn_model.cli.doctor import examine, text

    report = examine()
    print(json.dumps(report, indent=2) if args.json else text(report))


@dataclass(frozen=True)
class Command:
    """What runs, what it takes, and what it is for."""

    run: Callable[[Namespace], None]
    options: tuple[Callable[[ArgumentParser], None], ...]
    summary: str


ANSWERING = (options.add_model, options.add_sampling)
LISTENING = (options.add_recordings, *ANSWERING, options.add_part, options.add_json)
COMMANDS = {
    "demo": Command(demo, (options.add_demo,), "train a small model from nothing and ask it about recordings"),
    "ask": Command(
        ask,
        (options.add_question, *ANSWERING, options.add_part, options.add_json),
        "ask a question about recordings",
    ),
    "transcribe": Command(transcribe, LISTENING, "write down what is said"),
    "caption": Command(caption, (*LISTENING, options.add_detailed), "describe what is to be heard"),
    "chat": Command(chat, ANSWERING, "talk about recordings, turn after turn"),
    "data index": Command(data_index, (add_index,), "make the index beside a corpus, which training needs"),
    "data inspect": Command(data_inspect, (add_inspect,), "show a record: who says what, where the audio goes"),
    "data stats": Command(data_stats, (add_stats,), "what a corpus holds, and what packing saves"),
    "train": Command(train, (add_train,), "train through the stages of a curriculum, or draw a run: train plot RUN"),
    "convert": Command(convert, (options.add_convert,), "write a model folder in another layout or dtype"),
    "doctor": Command(doctor, (options.add_json,), "what this machine has, and which kernels would run"),
}
