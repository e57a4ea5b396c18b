"""The commands: each is a function of its options that prints to stdout and raises ValueError at bad input."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from afn_model.cli import options
from afn_model.cli.answering import ask, caption, transcribe
from afn_model.cli.batch import add_batch, batch
from afn_model.cli.bench import (
    add_bench_doctor,
    add_bench_list,
    add_bench_run,
    add_bench_score,
    bench_doctor,
    bench_list,
    bench_run,
    bench_score,
)
from afn_model.cli.chat import chat
from afn_model.cli.curate import (
    add_curate_explain,
    add_curate_folder,
    add_curate_plan,
    add_curate_run,
    add_curate_takedown,
    curate_audit,
    curate_explain,
    curate_plan,
    curate_report,
    curate_run,
    curate_status,
    curate_takedown,
)
from afn_model.cli.curate_benchmarks import add_curate_benchmarks, curate_benchmarks
from afn_model.cli.curate_demo import add_curate_demo, curate_demo
from afn_model.cli.data import add_copy, add_import, add_index, add_inspect, add_stats, add_step, copy_, import_
from afn_model.cli.data import index as data_index
from afn_model.cli.data import inspect as data_inspect
from afn_model.cli.data import stats as data_stats
from afn_model.cli.data import step as data_step
from afn_model.cli.messages import install_extra
from afn_model.cli.serve import add_serve, serve
from afn_model.cli.talk import add_talk, talk
from afn_model.cli.train import add_train, train


def convert(args: Namespace) -> None:
    from afn_model.afnext import AFNext
    from afn_model.cli.session import dtype_of
    from afn_model.prompt.processor import AFNextProcessor
    from afn_model.weights.checkpoint import check_destination
    from afn_model.weights.speech import replace_encoder

    if args.join:
        join(args)
        return
    if args.adaptor or args.out:
        raise ValueError("--adaptor and --out are for --join (afn convert --help says more)")
    given = {"SRC": args.source, "DST": args.destination, "--layout": args.layout}
    if missing := [name for name, value in given.items() if value is None]:
        raise ValueError(f"the following arguments are required: {', '.join(missing)} (afn convert --help says more)")
    check_destination(args.source, args.destination, overwrite=args.overwrite)
    processor = AFNextProcessor.from_pretrained(args.source)
    model = AFNext.from_pretrained(args.source, dtype=dtype_of(args.dtype))
    if args.encoder:
        replace_encoder(model, args.encoder)
    model.save_pretrained(args.destination, layout=args.layout)
    processor.save_pretrained(args.destination)
    print(f"{args.destination}: {written(model, args.layout)}")


def join(args: Namespace) -> None:
    """Joins an encoder and a language model by a fresh adaptor."""
    from afn_model.afnext import AFNext
    from afn_model.cli.session import dtype_of
    from afn_model.weights import join as joining
    from afn_model.weights.checkpoint import check_destination

    parts = dict(part.partition("=")[::2] for part in args.join)
    if set(parts) != {"encoder", "language_model"} or not all(parts.values()):
        raise ValueError(f"--join {' '.join(args.join)}: expected encoder=DIR language_model=DIR")
    if args.adaptor is None or args.out is None or args.source is not None:
        raise ValueError("--join takes --adaptor fresh and --out DST, and nothing else to convert")
    for folder in parts.values():
        check_destination(folder, args.out, overwrite=args.overwrite)
    model, processor = joining.join(AFNext, **parts, seed=args.seed, dtype=dtype_of(args.dtype))
    layout = args.layout or "transformers"
    model.save_pretrained(args.out, layout=layout)
    processor.save_pretrained(args.out)
    print(f"{args.out}: {written(model, layout)}; its adaptor is random (seed {args.seed})")


def written(model: Any, layout: str) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{layout} layout, {parameters:,} parameters, {str(model.dtype).removeprefix('torch.')}"


def demo(args: Namespace) -> None:
    from importlib.util import find_spec

    missing = [package for package in ("espeakng_loader", "matplotlib") if find_spec(package) is None]
    if missing:
        raise ValueError(f"the demo needs {' and '.join(missing)}: {install_extra('demo')}")
    from afn_model.demo import run

    out = Path(args.out)
    run(out, seed=args.seed, seconds=args.seconds, questions=args.questions, encoder=args.encoder)
    print(f'\nAsk more: afn ask RECORDING "QUESTION" --model {out}')


def doctor(args: Namespace) -> int:
    """1 where a kernel that was verified failed."""
    from afn_model.cli.doctor import examine, text, verified

    found = verified() if args.verify else None
    report = examine()
    if args.json:
        rows = {} if found is None else {"verify": {"device": found.device, "size": found.size, "rows": found.rows}}
        print(json.dumps(report | rows, indent=2))
    else:
        print(text(report), *(() if found is None else (found,)), sep="\n")
    return 1 if found is not None and found.failed else 0


@dataclass(frozen=True)
class Command:
    """What runs and may return an exit code, what it takes, what it is for, and whether it does more than print."""

    run: Callable[[Namespace], int | None]
    options: tuple[Callable[[ArgumentParser], None], ...]
    summary: str
    writes: bool = False


ANSWERING = (options.add_model, options.add_sampling)
LISTENING = (options.add_recordings, *ANSWERING, options.add_part, options.add_json)
COMMANDS = {
    "demo": Command(demo, (options.add_demo,), "train a small model from nothing and ask it about recordings", True),
    "ask": Command(
        ask,
        (options.add_question, *ANSWERING, options.add_part, options.add_json),
        "ask a question about recordings",
    ),
    "transcribe": Command(
        transcribe,
        (
            options.add_recordings,
            options.add_transcriber,
            options.add_sampling,
            options.add_part,
            options.add_json,
            options.add_speech,
            options.add_decoder,
        ),
        "write down what is said",
    ),
    "caption": Command(caption, (*LISTENING, options.add_detailed, options.add_then), "describe what is to be heard"),
    "batch": Command(batch, (add_batch, *ANSWERING), "answer a file of requests into a file of answers", True),
    "chat": Command(chat, (options.add_attached, *ANSWERING), "talk about recordings, turn after turn"),
    "talk": Command(
        talk,
        (add_talk, partial(options.add_model, required=False), options.add_sampling, options.add_json),
        "answer spoken questions aloud, or say a text",
        True,
    ),
    "serve": Command(serve, (add_serve, options.add_model), "answer over HTTP as OpenAI's API, with a page", True),
    "bench run": Command(bench_run, (add_bench_run,), "ask a model the benchmarks of the paper, and score", True),
    "bench score": Command(bench_score, (add_bench_score,), "score the answers of a run again, without a model", True),
    "bench doctor": Command(bench_doctor, (add_bench_doctor,), "what there is of the benchmarks' files"),
    "bench list": Command(bench_list, (add_bench_list,), "the benchmarks, with their items and metrics"),
    "curate plan": Command(curate_plan, (add_curate_plan,), "print a plan to copy: talks has every stage"),
    "curate run": Command(curate_run, (add_curate_run,), "make training data of recordings, stage by stage", True),
    "curate status": Command(
        curate_status, (add_curate_folder, options.add_json), "what has become of the rows at every stage"
    ),
    "curate explain": Command(
        curate_explain, (add_curate_explain, options.add_json), "what happened to a recording, a row or a record"
    ),
    "curate takedown": Command(
        curate_takedown,
        (add_curate_takedown, options.add_json),
        "remove recordings and what was made of them",
        True,
    ),
    "curate audit": Command(
        curate_audit, (add_curate_folder, options.add_json), "check that nothing was lost, leaked or changed"
    ),
    "curate report": Command(curate_report, (add_curate_folder,), "write a report and a picture of a run", True),
    "curate demo": Command(
        curate_demo, (add_curate_demo,), "curate synthetic recordings from end to end, and check what is promised", True
    ),
    "curate benchmarks": Command(
        curate_benchmarks,
        (add_curate_benchmarks,),
        "make the index of benchmarks that training data must not hold",
        True,
    ),
    "data import": Command(
        import_, (add_import,), "make a corpus of another tool's: array, table, manifest, Kaldi folder", True
    ),
    "data copy": Command(copy_, (add_copy,), "copy a corpus with its recordings into tar files on this machine", True),
    "data index": Command(data_index, (add_index,), "make the index beside a corpus, which training needs", True),
    "data inspect": Command(data_inspect, (add_inspect,), "show a record: who says what, where the audio goes"),
    "data step": Command(data_step, (add_step,), "show which samples a step of a stage trains on"),
    "data stats": Command(data_stats, (add_stats,), "what a corpus holds, and what packing saves"),
    "train": Command(
        train, (add_train,), "train through the stages of a curriculum, or draw a run: train plot RUN", True
    ),
    "convert": Command(
        convert, (options.add_convert,), "write a model folder in another layout or dtype, or join a new one", True
    ),
    "doctor": Command(
        doctor, (options.add_json, options.add_verify), "what this machine has, and which kernels would run"
    ),
}
