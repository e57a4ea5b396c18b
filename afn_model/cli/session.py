"""A model folder opened for questions: recordings first, then weights, then answers, token by token."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tqdm import tqdm

from afn_model.afnext import AFNext
from afn_model.cli.options import DTYPES
from afn_model.infer.text_stream import TextStream
from afn_model.prompt.batch import Batch
from afn_model.prompt.processor import AFNextProcessor
from afn_model.weights.checkpoint import load


@dataclass
class Answer:
    """What the model said, and how long that took."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    seconds: dict[str, float]

    def record(self, model: str, audio: list[str], question: str) -> dict[str, Any]:
        return {
            "model": model,
            "audio": audio,
            "question": question,
            "answer": self.text,
            "tokens": {"prompt": self.prompt_tokens, "answer": self.answer_tokens},
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }


class Engine:
    """A model folder opened for questions. Weights are read when first needed, after the recordings have been."""

    def __init__(self, args: Namespace):
        self.args = args
        self.load_seconds = 0.0
        self.processor = AFNextProcessor.from_pretrained(args.model, strict=args.strict)

    @cached_property
    def model(self) -> AFNext:
        began = time.perf_counter()
        with progress(desc=f"Loading {self.args.model}", unit=" tensors") as bar:
            model = load(
                AFNext,
                self.args.model,
                dtype=dtype_of(self.args.dtype),
                device=device_of(self.args.device),
                rote=self.args.rote,
                on_step=lambda done, total: (setattr(bar, "total", total), bar.update()),
            )
        self.load_seconds = time.perf_counter() - began
        return model

    def batch(self, conversations: list[list[dict]], files: list[str]) -> Batch:
        try:
            return self.processor(conversations[0] if len(conversations) == 1 else conversations)
        except ValueError as error:
            if not files or any(file in str(error) for file in files):
                raise
            raise ValueError(f"{', '.join(files)}: {error}") from None

    def answer(
        self, conversations: list[list[dict]], files: list[str], write: Callable[[str], Any] | None = None
    ) -> list[Answer]:
        """The answers to a batch of conversations.

        Args:
            conversations: messages, each list ending with a question.
            files: the recordings in them, for error messages.
            write: takes the text of a single answer piece by piece as it comes.
        """
        began, args, first = time.perf_counter(), self.args, []
        batch = self.batch(conversations, files)
        model = self.model
        text = TextStream(self.processor.decode, write) if write else None
        start = time.perf_counter()
        limit = args.max_new_tokens * len(conversations)
        with progress(desc="Answering", unit=" tokens", total=limit, disable=True if write else None) as bar:

            def on_token(_: int, token: int) -> None:
                if not first:
                    first.append(time.perf_counter() - start)
                bar.update()
                if text:
                    text(token)

            answers = model.generate(
                batch,
                args.max_new_tokens,
                repetition_penalty=args.repetition_penalty,
                temperature=args.temperature,
                top_p=args.top_p,
                seed=args.seed,
                on_token=on_token,
            )
        if text:
            text.close()
        end = time.perf_counter()
        seconds = {
            "load": self.load_seconds,
            "first_token": first[0] if first else end - start,
            "total": end - began,
        }
        lengths = batch.cu_seqlens.diff().tolist()
        return [
            Answer(self.processor.decode(tokens), length, len(tokens), seconds)
            for tokens, length in zip(answers, lengths, strict=True)
        ]


def progress(**options: Any) -> tqdm:
    """A progress bar on stderr, shown when that is a terminal and gone when done."""
    return tqdm(**{"disable": None, "leave": False} | options)


def dtype_of(name: str) -> torch.dtype | None:
    return None if DTYPES[name] is None else getattr(torch, DTYPES[name])


def device_of(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU (afn doctor says what there is)")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
