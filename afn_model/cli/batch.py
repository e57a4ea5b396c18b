"""``afn batch``: a file of requests into a file of answers. Heavy imports wait until it runs."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from afn_model.cli.options import positive

if TYPE_CHECKING:
    from afn_model.infer.batch import BatchProgress
    from afn_model.infer.batch_replica import Replica, Workers

HELP = """
IN holds a request a line: OpenAI's batch lines for /v1/chat/completions (text, input_audio, and audio_url with a data:
URL; nothing is fetched for a line), or records of a corpus, {"id", "sound", "conversations"} or {"id", "audios",
"messages"}, whose paths start from the folder of IN and whose last answer, if they have one, is left out. Either may
say temperature, top_p, seed, n, stop, max_tokens, logprobs, response_format, prediction and the like; the options below
say the rest. A random answer is a function of the seed (0 if none is given) and the line's id.

OUT gets a line for each as soon as it is answered. A line that cannot be answered gets one with an error, and the exit
code is then 1. The same command goes on where a run was stopped, at whatever moment; lines with errors are done too.
"""


def add_batch(parser: ArgumentParser) -> None:
    parser.formatter_class, parser.epilog = RawDescriptionHelpFormatter, HELP
    parser.add_argument("source", metavar="IN", help="JSON Lines of requests")
    parser.add_argument("target", metavar="OUT", help="JSON Lines of answers; what it answers already is left out")
    parser.add_argument("--in-order", action="store_true", help="answer and write in the order of IN")
    told = "answers that grow at the same time, at most; default 64"
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help=told)
    told = "threads that decode recordings ahead, default 2"
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help=told)
    told = "an answer's bits depend on its line alone, not on what is answered beside it; slower"
    parser.add_argument("--deterministic", action="store_true", help=told)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N lines of IN")
    parser.add_argument("--max-errors", type=int, metavar="N", help="give up after more than N lines with errors")
    told = "engines in processes of Ray, each on a GPU of its own where there are GPUs; all must see the recordings"
    parser.add_argument("--replicas", type=positive, metavar="N", help=told)


def batch(args: Namespace) -> int:
    """1 where lines have errors."""
    from afn_model.cli.session import sampling_params
    from afn_model.files import model_folder
    from afn_model.infer.batch import answer_batch

    model_folder(args.model)
    with ExitStack() as stack:
        bar = None if args.quiet else stack.enter_context(BatchBar())
        done = answer_batch(
            args.source,
            args.target,
            partial(workers_of, args, stack),
            defaults=sampling_params(args),
            together=args.batch,
            in_order=args.in_order,
            limit=args.limit,
            max_errors=args.max_errors,
            on_progress=None if bar is None else bar.show,
        )
    if not args.quiet:
        before = f", {done.before} were answered before" if done.before else ""
        print(f"afn: {args.target}: {done.lines} lines, {done.errors} of them errors{before}", file=sys.stderr)
    return 1 if done.errors else 0


def workers_of(args: Namespace, stack: ExitStack) -> Workers:
    from afn_model.infer.batch_replica import OneReplica, RayReplicas

    if args.replicas is None:
        return OneReplica(replica_of(args, stack))
    gpu = None if args.device == "auto" else args.device.startswith("cuda")
    there = Namespace(**vars(args) | {"model": os.path.abspath(args.model), "source": os.path.abspath(args.source)})
    return RayReplicas(partial(replica_of, there), args.replicas, gpu=gpu)


def replica_of(args: Namespace, stack: ExitStack) -> Replica:
    """A replica; ``stack`` keeps open what it opens."""
    from afn_model.cli.session import open_session, sampling_params
    from afn_model.infer.batch_replica import Replica
    from afn_model.infer.engine import Engine
    from afn_model.session import engine_of

    session = stack.enter_context(open_session(args))

    def engine() -> Engine:
        return engine_of(session.model, session.processor, slots=args.batch, deterministic=args.deterministic)

    return Replica(
        engine,
        session.processor,
        folder=os.path.dirname(args.source),
        defaults=sampling_params(args),
        system=args.system,
        together=args.batch,
        readers=args.workers,
    )


class BatchBar:
    """A line on stderr: what is done of all, and the time left. Where that is no terminal, a new line each minute."""

    def __init__(self, every: float = 60.0) -> None:
        self.bar: Any = None
        self.every, self.began, self.said = every, time.monotonic(), time.monotonic()

    def __enter__(self) -> BatchBar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, progress: BatchProgress) -> None:
        from tqdm import tqdm

        if self.bar is None:
            form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} < {remaining} left"
            self.bar = tqdm(total=total_of(progress), bar_format=form, leave=False, disable=None)
        self.bar.set_description_str(told_of(progress), refresh=False)
        self.bar.update(done_of(progress) - self.bar.n)
        if self.bar.disable and time.monotonic() - self.said >= self.every:
            self.said = time.monotonic()
            print(f"afn: {told_of(progress)}{left_of(progress, self.said - self.began)}", file=sys.stderr, flush=True)


def done_of(progress: BatchProgress) -> float:
    """Work that is done: seconds of audio, and one for each answer."""
    return progress.seconds + progress.lines


def total_of(progress: BatchProgress) -> float:
    return progress.of_seconds + progress.of_lines


def left_of(progress: BatchProgress, seconds: float) -> str:
    """Such as ", about 1:02:03 left" after so many seconds; "" where nothing is done yet."""
    done = done_of(progress)
    if not done:
        return ""
    return f", about {timedelta(seconds=round(seconds * (total_of(progress) - done) / done))} left"


def told_of(progress: BatchProgress) -> str:
    """Such as "12 of 300 lines, 0.5 of 5.1 hours of audio, 2 errors"."""
    hours = f", {progress.seconds / 3600:.1f} of {progress.of_seconds / 3600:.1f} hours of audio"
    errors = f", {progress.errors} errors" if progress.errors else ""
    return f"{progress.lines} of {progress.of_lines} lines{hours if progress.of_seconds else ''}{errors}"
