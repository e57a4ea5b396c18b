"""What commands take. This module and ``commands`` import nothing heavy: --help and bad options answer at once."""

from __future__ import annotations

import argparse
import os
from argparse import ArgumentParser

from afn_model.infer.subtitles import FORMATS

DTYPES = {"auto": None, "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# As vLLM and transformers say them.
ALSO = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
SHORTEST = 1.0  # seconds of a piece


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def error(self, message: str):
        raise ValueError(f"{message} ({self.prog} --help says more)")


def add_model(parser: ArgumentParser, *, required: bool = True, also: tuple[str, ...] = ()) -> None:
    default = os.environ.get("AFN_MODEL") or None
    told = "model folder, any layout; default the environment's AFN_MODEL"
    parser.add_argument(
        "--model", *also, default=default, required=required and default is None, metavar="DIR", help=told
    )
    add_dtype(parser, "of the weights; auto keeps them as stored")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--adapter", "--lora", metavar="DIR", help="LoRA adapter in peft's format, on top of the model")
    told = "bits of the language model's weights, coded while they are read"
    parser.add_argument("--quantize", "--quantization", choices=("int8", "nf4", "fp8"), help=told)
    parser.add_argument("--threads", type=positive, metavar="N", help="of the CPU")
    parser.add_argument("--rote", choices=("checkpoint", "paper"), help="reading of rotary time embedding")
    parser.add_argument("--strict", action="store_true", help="an error where a recording is cut short")
    parser.add_argument("--system", metavar="TEXT", help="system prompt; default that of the chat template")
    parser.add_argument("--quiet", "--no-prints", action="store_true", help="errors are all that is said on stderr")


def add_dtype(parser: ArgumentParser, told: str | None = None) -> None:
    choice = {"choices": DTYPES, "default": "auto", "metavar": f"{{{','.join(DTYPES)}}}"}
    parser.add_argument("--dtype", type=lambda name: ALSO.get(name, name), help=told, **choice)


def add_sampling(parser: ArgumentParser) -> None:
    told = "longest answer; default 1024, of a transcript at least 6 for each second"
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help=told)
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--repetition-penalty", type=float, metavar="R", help="default that of the model")
    parser.add_argument("--seed", type=int, metavar="N", help="of the sampling")


def add_part(parser: ArgumentParser) -> None:
    parser.add_argument("--start", "--offset", type=float, metavar="S", help="seconds into every recording")
    parser.add_argument("--end", type=float, metavar="S", help="seconds into every recording")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds of every recording, in place of --end")


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
    told = "ask about every recording by itself; the options below are for this"
    parser.add_argument("--each", action="store_true", help=told)
    add_many(parser)


def add_recordings(parser: ArgumentParser) -> None:
    told = "recordings, folders of them, or patterns such as 'talks/**/*.mp3'; - is standard input"
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help=told)
    add_many(parser)


def add_many(parser: ArgumentParser) -> None:
    """What is asked about each of many recordings, and where the answers go."""
    told = "a file that names one recording a line"
    parser.add_argument("--list", action="append", default=[], metavar="FILE", help=told)
    told = "recordings answered together, at most; default what --batch-tokens have room for"
    parser.add_argument("--batch", "--batch-size", "--batch_size", type=positive, metavar="N", help=told)
    told = "recordings x tokens of the longest (25 a second) that are answered together; default half an hour's, 46080"
    parser.add_argument("--batch-tokens", type=positive, metavar="N", help=told)
    told = (
        "cut recordings into pieces of at most S seconds, at quiet points; default what the model takes, half an hour"
    )
    parser.add_argument("--chunk-seconds", "--chunk_size", type=piece, metavar="S", help=told)
    told = f"one or several of {', '.join(FORMATS)}, or all, with commas between them; default txt"
    parser.add_argument("--format", "--output-format", "--output_format", type=formats, metavar="F", help=told)
    told = "write a file for each recording and format to DIR, and leave out recordings that are there already"
    parser.add_argument("--out-dir", "--output-dir", "--output_dir", metavar="DIR", help=told)
    told = "append the answers to FILE as JSON lines; recordings that are in it already are left out"
    parser.add_argument("--out", metavar="FILE", help=told)
    told = "ask again about recordings whose answers --out or --out-dir has, and replace them"
    parser.add_argument("--overwrite", action="store_true", help=told)
    parser.add_argument("--fail-fast", action="store_true", help="end at the first recording that cannot be used")


def add_speech(parser: ArgumentParser) -> None:
    told = "transcribe (default), translate from --language into --to, or lyrics of a song"
    parser.add_argument("--task", choices=("transcribe", "translate", "lyrics"), default="transcribe", help=told)
    parser.add_argument("--language", metavar="L", help="that is spoken: its English name, or a code such as de")
    parser.add_argument("--to", default="en", metavar="L", help="language of a translation; default English")
    parser.add_argument("--diarize", action="store_true", help="say who speaks: [Speaker 1] ...")
    told = "more text of the question, such as names that may come up"
    parser.add_argument("--prompt", "--initial-prompt", "--initial_prompt", metavar="TEXT", help=told)


def add_transcriber(parser: ArgumentParser) -> None:
    add_model(parser, also=("--asr",))


def add_decoder(parser: ArgumentParser) -> None:
    """What only an encoder with a decoder of its own can do."""
    parser.add_argument("--beams", type=positive, metavar="N", help="of a speech decoder's search; default 1, greedy")
    told = "a text's log-probability is divided by its tokens to the power of A; default 1"
    parser.add_argument("--length-penalty", type=float, metavar="A", help=told)
    told = "find when each word is said: in json, and as the cues of srt, vtt and tsv"
    parser.add_argument("--words", action="store_true", default=None, help=told)
    told = "print words as soon as they are sure; - is 16-bit PCM of 16 kHz, mono"
    parser.add_argument("--stream", action="store_true", default=None, help=told)


def add_attached(parser: ArgumentParser) -> None:
    told = "recordings that the first message is about; /audio FILE attaches more"
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help=told)


def add_detailed(parser: ArgumentParser) -> None:
    parser.add_argument("--detailed", action="store_true", help="with everything that is said")


def add_then(parser: ArgumentParser) -> None:
    told = "a text model that is asked --then-question about every caption: the address of its API, such as"
    parser.add_argument("--then", metavar="URL", help=f"{told} http://127.0.0.1:8000/v1; its key is AFN_THEN_KEY")
    parser.add_argument("--then-question", metavar="TEXT", help="for the text model")
    parser.add_argument("--then-model", metavar="NAME", help="of the text model; default the first that it lists")


def add_convert(parser: ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s SRC DST --layout LAYOUT [options]\n"
        "       %(prog)s --join encoder=DIR language_model=DIR --adaptor fresh --out DST [options]"
    )
    parser.add_argument("source", metavar="SRC", nargs="?")
    parser.add_argument("destination", metavar="DST", nargs="?")
    parser.add_argument("--layout", choices=("transformers", "hub", "native"), help="with --join default transformers")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is in DST")
    told = "with the encoder of this folder in the place of its own: Whisper's, of method asr, or another model's"
    parser.add_argument("--encoder", metavar="DIR", help=told)
    add_dtype(parser)
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
    parser.add_argument("--encoder", metavar="DIR", help="of an AF-Whisper to begin with; else random weights")


def piece(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, {SHORTEST:g} or more")
    return seconds


def formats(text: str) -> list[str]:
    found = list(FORMATS) if text == "all" else list(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [name for name in found if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"no format {unknown[0]!r}; there are {', '.join(FORMATS)} and all")
    return found


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
