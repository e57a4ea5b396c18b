"""What the options of a command line say of a session: which model, and how it answers."""

from __future__ import annotations

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


class ProgressBar:
    """A progress bar on stderr that comes with its first step, where that is a terminal, and goes when done."""

    def __init__(self, desc: str, unit: str, total: int | None = None):
        self.options = {"desc": desc, "unit": unit, "leave": False, "disable": None}
        self.total, self.bar = total, None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self) -> None:
        """One step of ``total``."""
        if self.bar is None:
            self.bar = tqdm(total=self.total, **self.options)
        self.bar.update()

    def on_step(self, done: int, total: int) -> None:
        """Called after every step, ``done`` of ``total``."""
        self.total = total
        self.advance()
        if done == total:
            self.bar.close()

    def clear(self) -> None:
        """Makes way for a line of output until the next step."""
        if self.bar is not None:
            self.bar.clear()


@contextmanager
def open_session(args: Namespace) -> Iterator[Session]:
    """The session that the options of ``options.add_model`` ask for, with a progress bar while weights are read."""
    with ProgressBar(f"Loading {args.model}", " tensors") as bar:
        yield Session(
            args.model,
            dtype=dtype_of(args.dtype),
            device=args.device,
            rote=args.rote,
            strict=args.strict,
            on_step=bar.on_step,
        )


def sampling_params(args: Namespace) -> SamplingParams:
    """What the options of ``options.add_sampling`` ask for."""
    return SamplingParams(
        max_new_tokens=args.max_new_tokens,
        repetition_penalty=args.repetition_penalty,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )


def as_json(answer: Answer, model: str, audio: list[str], question: str) -> dict[str, Any]:
    """What ``--json`` prints of an answer."""
    return {
        "model": model,
        "audio": audio,
        "question": question,
        "answer": answer.text,
        "tokens": {"prompt": answer.prompt_tokens, "answer": answer.answer_tokens},
        "seconds": {name: round(value, 4) for name, value in answer.seconds.items()},
    }


def dtype_of(name: str) -> torch.dtype | None:
    return None if DTYPES[name] is None else getattr(torch, DTYPES[name])
