"""What the options of a command line say of a session: which model, and how it answers."""

from __future__ import annotations

import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from afn_model.cli.options import DTYPES
from afn_model.infer.answer import Answer
from afn_model.infer.sampling_params import SamplingParams
from afn_model.session import Session
from afn_model.weights.speech import is_speech

# Options that decide what is asked about what, and how; some are of captions alone, or of transcripts.
MAY_BE_GIVEN = (
    *("system", "start", "end", "adapter", "quantize"),
    *("then_question", "then_model"),
    *("beams", "length_penalty", "words"),
)
REDRAWN = 0.1  # seconds between two looks of a progress line


class LoadingBar:
    """A progress bar on stderr that comes with the first tensor, where that is a terminal, and goes with the last."""

    def __init__(self, desc: str, *, quiet: bool = False):
        self.options = {"desc": desc, "unit": " tensors", "leave": False, "disable": True if quiet else None}
        self.bar: tqdm | None = None

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_step(self, done: int, total: int) -> None:
        """Called after every tensor, ``done`` of ``total``."""
        if self.bar is None:
            self.bar = tqdm(total=total, **self.options)
        self.bar.update()
        if done == total:
            self.bar.close()


class AnswerBar:
    """A line on stderr, where that is a terminal, that says which recordings are worked on and how far that is."""

    def __init__(self, files: int = 1, *, quiet: bool = False):
        self.files, self.shown = files, not quiet and sys.stderr.isatty()
        self.bar: tqdm | None = None
        self.stage, self.drawn = "", 0.0

    def __enter__(self) -> AnswerBar:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """The line goes and does not come back."""
        self.shown = False
        if self.bar is not None:
            self.bar.close()

    def on_progress(self, stage: str, conversations: list[int], done: int, total: int) -> None:
        """As ``afn_model.infer.answer.answers`` calls it."""
        now = time.monotonic()
        if not self.shown or (stage == self.stage and now - self.drawn < REDRAWN):
            return
        self.stage, self.drawn = stage, now
        several = self.files > 1 or (self.bar is not None and self.bar.n > 0)
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} < {remaining} left" if several else "{desc} {elapsed}"
        if self.bar is None:
            self.bar = tqdm(total=self.files, bar_format=form, leave=False)
        self.bar.bar_format = form
        self.bar.set_description_str(said_of(stage, conversations, done, total, self.files))

    def done(self, share: float = 1.0) -> None:
        """A recording, or a share of one, is done: makes way for its line of output until the next step."""
        if self.bar is not None:
            self.bar.n += share
            self.bar.clear()


def said_of(stage: str, conversations: list[int], done: int, total: int, files: int) -> str:
    """Such as "files 9 to 16 of 50: listening, 40 %"."""
    first, last = min(conversations) + 1, max(conversations) + 1
    which = f"file {first} of {files}: " if first == last else f"files {first} to {last} of {files}: "
    what = {"read": "reading", "prefill": f"listening, {done / total:.0%}", "decode": f"answering, {done} tokens"}
    return (which if files > 1 else "") + what[stage]


@contextmanager
def open_session(args: Namespace) -> Iterator[Session]:
    """The session that the options of ``options.add_model`` ask for, with a progress bar while weights are read."""
    if args.quiet:
        warnings.simplefilter("ignore")
    read = None
    if is_speech(args.model) and (args.adapter or args.quantize or args.rote):
        name = "adapter" if args.adapter else "quantize" if args.quantize else "rote"
        raise ValueError(f"--{name} is for a language model, and {args.model} has none")
    if args.adapter or args.quantize:
        from afn_model.cli.weights import reader

        read = reader(args.adapter, args.quantize)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    try:
        with LoadingBar(f"Loading {args.model}", quiet=args.quiet) as bar:
            yield Session(
                args.model,
                dtype=dtype_of(args.dtype),
                device=args.device,
                rote=args.rote,
                strict=args.strict,
                on_step=bar.on_step,
                read=read,
            )
    finally:
        torch.set_num_threads(threads)


def sampling_params(args: Namespace) -> SamplingParams:
    """What the options of ``options.add_sampling`` ask for."""
    return SamplingParams(
        max_new_tokens=1024 if args.max_new_tokens is None else args.max_new_tokens,
        repetition_penalty=args.repetition_penalty,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )


def set_end(args: Namespace) -> None:
    """Puts ``--end`` in the place of ``--duration``.

    Raises:
        ValueError: both are given.
    """
    if args.duration is not None and args.end is not None:
        raise ValueError("--end and --duration both say where the part of a recording ends")
    if args.duration is not None:
        args.end = (args.start or 0.0) + args.duration


def same_in_all(question: str, args: Namespace) -> dict[str, Any]:
    """What ``as_json`` says alike of all answers of one command."""
    given = {name: value for name in MAY_BE_GIVEN if (value := getattr(args, name, None)) is not None}
    return {"model": args.model, "question": question} | given


def as_json(answer: Answer, audio: list[str], question: str, args: Namespace) -> dict[str, Any]:
    """What ``--json`` prints of an answer."""
    return {
        "model": args.model,
        "audio": audio,
        **same_in_all(question, args),
        "answer": answer.text,
        "finish": answer.finish,
        "tokens": {"prompt": answer.prompt_tokens, "answer": answer.answer_tokens},
        "seconds": {name: round(value, 4) for name, value in answer.seconds.items()},
        "together": answer.together,
    }


def dtype_of(name: str) -> torch.dtype | None:
    return None if DTYPES[name] is None else getattr(torch, DTYPES[name])
