"""What commands take. This module and ``commands`` import nothing heavy: --help and bad options answer at once."""

from __future__ import annotations

import argparse
import os
from argparse import ArgumentParser

DTYPES = {"auto": None, "bf16": "bfloat16", "fp32": "float32"}


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def error(self, message: str):
        raise ValueError(f"{message} ({self.prog} --help says more)")


def add_model(parser: ArgumentParser) -> None:
    default = os.environ.get("AFN_MODEL") or None
    told = "model folder, any layout; default the environment's AFN_MODEL"
    parser.add_argument("--model", default=default, required=default is None, metavar="DIR", help=told)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; auto keeps them as stored")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rote", choices=("checkpoint", "paper"), help="reading of rotary time embedding")
    parser.add_argument("--strict", action="store_true", help="an error where a recording is cut short")
    parser.add_argument("--system", metavar="TEXT", help="system prompt; default that of the chat template")
    parser.add_argument("--quiet", action="store_true", help="errors are all that is said on stderr")


def add_sampling(parser: ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=positive, default=1024, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--repetition-penalty", type=float, metavar="R", help="default that of the model")
    parser.add_argument("--seed", type=int, metavar="N", help="of the sampling")


def add_part(parser: ArgumentParser) -> None:
    parser.add_argument("--start", type=float, metavar="S", help="seconds into every recording")
    parser.add_argument("--end", type=float, metavar="S", help="seconds into every recording")


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_verify(parser: ArgumentParser) -> None:
    told = "run every kernel that can run here against float64, time it and let impl='auto' follow; a minute on a GPU"
    parser.add_argument("--verify", action="store_true", help=f"{told}. Exit code 1 where one fails")


def add_question(parser: ArgumentParser) -> None:
    told = "recordings the question is about; - is standard input"
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help=told)
    parser.add_argument("question")
    parser.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")


def add_recordings(parser: ArgumentParser) -> None:
    told = "recordings, folders of them, or patterns such as 'talks/**/*.mp3'; - is standard input"
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help=told)
    told = "a file that names one recording a line"
    parser.add_argument("--list", action="append", default=[], metavar="FILE", help=told)
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="recordings answered together, at most")
    told = "recordings x tokens of the longest (25 a second) that are answered together; default half an hour's, 46080"
    parser.add_argument("--batch-tokens", type=positive, metavar="N", help=told)
    told = "append the answers to FILE as JSON lines; recordings that are in it already are left out"
    parser.add_argument("--out", metavar="FILE", help=told)
    parser.add_argument("--fail-fast", action="store_true", help="end at the first recording that cannot be used")


def add_detailed(parser: ArgumentParser) -> None:
    parser.add_argument("--detailed", action="store_true", help="with everything that is said")


def add_convert(parser: ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s SRC DST --layout LAYOUT [options]\n"
        "       %(prog)s --join encoder=DIR language_model=DIR --adaptor fresh --out DST [options]"
    )
    parser.add_argument("source", metavar="SRC", nargs="?")
    parser.add_argument("destination", metavar="DST", nargs="?")
    parser.add_argument("--layout", choices=("transformers", "hub", "native"), help="with --join default transformers")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is in DST")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    told = "make the base of pre-1 of a Whisper encoder and a Qwen2 language model, both folders of transformers"
    parser.add_argument("--join", nargs=2, metavar="PART=DIR", help=told)
    parser.add_argument("--adaptor", choices=("fresh",), help="with --join: random weights")
    parser.add_argument("--out", metavar="DST", help="with --join")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of fresh weights")


def add_demo(parser: ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="run folder")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of corpus and weights")
    parser.add_argument("--seconds", type=float, default=360.0, metavar="N", help="of training")
    parser.add_argument("--questions", type=positive, default=6, metavar="N", help="asked at the end")


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
