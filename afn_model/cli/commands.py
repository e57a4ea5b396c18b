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
    from afn_model.cli.session import Engine

TRANSCRIBE = "Transcribe the input speech."
CAPTION = "Generate a caption for the input audio."
DETAILED_CAPTION = (
    "Generate a detailed caption for the input audio. "
    "In the caption, transcribe all spoken content by all speakers in the audio precisely."
)
CHAT_HELP = "/audio FILE attaches a recording to the next message, /reset starts anew, /quit ends"


def opening(args: Namespace) -> list[dict]:
    return [] if args.system is None else [{"role": "system", "content": args.system}]


def recording(file: str, args: Namespace) -> dict[str, Any]:
    return {"type": "audio", "path": file, "start": args.start, "end": args.end}


def question_about(files: Iterable[str], question: str, args: Namespace) -> list[dict]:
    """A conversation of one question, after its recordings."""
    parts = [*(recording(file, args) for file in files), {"type": "text", "text": question}]
    return [*opening(args), {"role": "user", "content": parts}]


def print_piece(text: str) -> None:
    print(text, end="", flush=True)


def ask(args: Namespace) -> None:
    from afn_model.cli.session import Engine

    if not args.audio and os.path.isfile(args.question):
        raise ValueError(f"{args.question}: a recording without a question")
    stream = sys.stdout.isatty() and not (args.json or args.no_stream)
    conversation = question_about(args.audio, args.question, args)
    (answer,) = Engine(args).answer([conversation], args.audio, print_piece if stream else None)
    if args.json:
        print(json.dumps(answer.record(args.model, args.audio, args.question), ensure_ascii=False))
    else:
        print("" if stream else answer.text)


def about_each(args: Namespace, question: str) -> None:
    """The same question about every recording, in batches; with several recordings, each answer after its file."""
    from afn_model.cli.session import Engine

    engine = Engine(args)
    for start in range(0, len(args.audio), args.batch):
        files = args.audio[start : start + args.batch]
        answers = engine.answer([question_about([file], question, args) for file in files], files)
        for file, answer in zip(files, answers, strict=True):
            if args.json:
                print(json.dumps(answer.record(args.model, [file], question), ensure_ascii=False), flush=True)
            else:
                print(answer.text if len(args.audio) == 1 else f"{file}: {answer.text}", flush=True)


def transcribe(args: Namespace) -> None:
    about_each(args, TRANSCRIBE)


def caption(args: Namespace) -> None:
    about_each(args, DETAILED_CAPTION if args.detailed else CAPTION)


def chat(args: Namespace) -> None:
    from afn_model.cli.session import Engine

    engine, interactive = Engine(args), sys.stdin.isatty()
    if interactive:
        print(CHAT_HELP, file=sys.stderr)
    messages, attached = opening(args), []
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            if line == "/reset":
                messages, attached = opening(args), []
            elif line.startswith("/audio "):
                attached.append(attach(line.removeprefix("/audio ").strip(), engine))
            elif line.startswith("/"):
                raise ValueError(f"{line}: no such command; {CHAT_HELP}")
            elif line:
                asked = [*messages, {"role": "user", "content": [*attached, {"type": "text", "text": line}]}]
                (answer,) = engine.answer([asked], [], print_piece)
                print()
                messages, attached = [*asked, {"role": "assistant", "content": answer.text}], []
        except (ValueError, OSError) as error:
            if not interactive:
                raise
            show_error(error)


def attach(file: str, engine: Engine) -> dict[str, Any]:
    """A part of a message with the samples of a recording, which later turns then need not read again."""
    from afn_model.audio.decode import load_audio
    from afn_model.audio.frames import SAMPLE_RATE

    pcm = load_audio(file, strict=engine.args.strict, max_seconds=engine.processor.max_seconds)
    return {"type": "audio", "audio": pcm, "sampling_rate": SAMPLE_RATE}


def convert(args: Namespace) -> None:
    from afn_model.afnext import AFNext
    from afn_model.cli.session import dtype_of
    from afn_model.prompt.processor import AFNextProcessor

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
