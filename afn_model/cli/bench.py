"""``afn bench``: the paper's benchmarks, from their official files to a report. Heavy imports wait until it runs."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afn_model.cli import options
from afn_model.cli.batch import BatchBar, workers_of
from afn_model.cli.options import positive
from afn_model.files import read_json, write_json

if TYPE_CHECKING:
    from afn_model.eval.running.asks import AskSettings
    from afn_model.eval.running.run import PreparedRun
    from afn_model.eval.table import BenchmarkRow
    from afn_model.infer.batch_replica import Workers

READER = "reader.json"  # how the text model is asked that answers from captions
ABLATIONS = ("no-audio", "noise", "wrong-audio", "rotate-options")
REQUESTS = 16  # at a time, to a model that is served
DEMO, DEMO_MODEL, DEMO_OUT = "demo", "runs/demo", "runs/bench-demo"
RUN_HELP = """
--data holds a folder for each benchmark, with its official files; afn bench doctor says what is missing and where to
get it. The same command goes on where a run was stopped; --share 1/8 to 8/8 divide it among processes that see the same
--out. --suite demo needs no data: it writes a few synthetic rows in every format, and asks the model of `make demo`, or
one that it trains for a minute.

Exit code 3: some items have no answer, some benchmark no files, or the judge does not reply; the last lines say which.
"""


def add_bench_run(parser: ArgumentParser) -> None:
    parser.formatter_class, parser.epilog = RawDescriptionHelpFormatter, RUN_HELP
    _add_suite(parser)
    parser.add_argument("--data", metavar="DIR", help="the benchmarks' files; for --suite demo they are made")
    parser.add_argument("--out", metavar="DIR", help=f"where answers and report go; for --suite demo {DEMO_OUT}")
    told = "whose numbers of the paper are meant; think asks for reasoning, captioner has a text model answer"
    parser.add_argument("--variant", choices=("instruct", "think", "captioner"), default="instruct", help=told)
    told = "in place of the table's prompts: official (the authors'), or one of those that docs/evaluation.md lists"
    parser.add_argument("--prompt", default="", metavar="NAME", help=told)
    told = "ask without recordings, with noise or others in their place, or with the options in every order"
    parser.add_argument("--ablation", default="", choices=ABLATIONS, help=told)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N items of each benchmark")
    parser.add_argument("--share", type=_share, default=(1, 1), metavar="I/N", help="the part of this process")
    told = "answers that grow at the same time, at most; default 64"
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help=told)
    parser.add_argument(
        "--workers", type=positive, default=2, metavar="N", help="threads that decode recordings ahead; default 2"
    )
    parser.add_argument("--replicas", type=positive, metavar="N", help="engines in processes of Ray")
    parser.add_argument(
        "--fast", action="store_true", help="answers may depend, by rounding, on what is answered beside"
    )
    told = "ask another model: an API like OpenAI's; its key is the environment's AFN_MODEL_KEY"
    parser.add_argument("--url", metavar="URL", help=told)
    parser.add_argument("--url-model", metavar="NAME", help="of it; default the first that is listed there")
    told = "text model that answers from captions (--variant captioner); its key is the environment's AFN_THEN_KEY"
    parser.add_argument("--then-url", metavar="URL", help=told)
    parser.add_argument("--then-model", metavar="NAME", help="of it; default the first that is listed there")
    options.add_model(parser, required=False)
    options.add_sampling(parser)
    _add_tools(parser)
    options.add_json(parser)


def add_bench_score(parser: ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder of a run")
    told = "the benchmarks' files, where they are now; default where they were"
    parser.add_argument("--data", metavar="DIR", help=told)
    _add_tools(parser)
    options.add_json(parser)


def add_bench_doctor(parser: ArgumentParser) -> None:
    _add_suite(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="the benchmarks' files")
    options.add_json(parser)


def add_bench_list(parser: ArgumentParser) -> None:
    _add_suite(parser)
    options.add_json(parser)


def _add_suite(parser: ArgumentParser) -> None:
    told = "paper (default), demo, beyond, or names of benchmarks with commas between them; afn bench list shows them"
    parser.add_argument("--suite", default="paper", metavar="NAMES", help=told)


def _add_tools(parser: ArgumentParser) -> None:
    told = "a judge's API, for rows that a judge scores; its key is the environment's AFN_JUDGE_KEY"
    parser.add_argument("--judge-url", metavar="URL", help=told)
    parser.add_argument("--judge-model", metavar="NAME", help="of it; default the first that is listed there")
    told = "MODULE:FUNCTION, texts -> vectors, or the URL of an embeddings API, for rows that are scored by nearness"
    parser.add_argument("--embed", metavar="WHAT", help=told)


def _share(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ArgumentTypeError(f"{text!r}: such as 1/8 is expected")
    return int(index), int(count)


def bench_run(args: Namespace) -> int:
    """3 where some items have no answer, or a benchmark no files."""
    try:
        return _asked_and_scored(args)
    except KeyboardInterrupt:
        print("afn: stopped; the same command goes on", file=sys.stderr)
        raise


def _asked_and_scored(args: Namespace) -> int:
    from afn_model.eval.running.captioner import answer_by_captions
    from afn_model.eval.running.run import Share, prepare, run, write_run
    from afn_model.eval.table import chosen

    rows = chosen(args.suite.split(","))
    out, data = _folders(args)
    _check(args, rows)
    asking, reading = _asking(args, out), _reading(args)
    _tools(args, out)  # what cannot be is told before hours of answers
    write_run(out, rows, data, asking, args.limit)
    if args.suite == DEMO:
        from afn_model.eval.copies import write_copies

        write_copies(rows, data)
    with ExitStack() as stack:
        told = None if args.quiet else stack.enter_context(_ReadBar(len(rows))).show
        prepared = prepare(rows, data, out, asking, limit=args.limit, on_row=told)
    _tell_problems(prepared.problems)
    if not args.quiet:
        print(f"afn: {out}: {_size(prepared, args.share)}", file=sys.stderr)
    with ExitStack() as stack:
        bar = None if args.quiet else stack.enter_context(BatchBar())
        index, count = args.share
        options = {
            "share": Share(index - 1, count),
            "together": args.batch,
            "on_progress": None if bar is None else bar.show,
        }
        hearing = partial(_workers, args, stack)
        if reading is None:
            done = [run([ask for some in prepared.asks.values() for ask in some], out, hearing, **options)]
        else:
            write_json(out / READER, reading.as_json())
            readers = partial(_readers, args)
            prepared, *done = answer_by_captions(prepared, out, asking, reading, hearing, readers, **options)
    if not args.quiet:
        before = f", {done[-1].before} were there before" if done[-1].before else ""
        lines, errors = (sum(getattr(one, name) for one in done) for name in ("lines", "errors"))
        others = (
            f"; {done[-1].others} lines of answers/ that no run has written are left out" if done[-1].others else ""
        )
        print(f"afn: {out}: {lines} asked, {errors} errors{before}{others}", file=sys.stderr)
    return _finish(args, rows, prepared, out)


def bench_score(args: Namespace) -> int:
    """3 where some items have no answer, or a benchmark no files."""
    from afn_model.eval.running.asks import AskSettings
    from afn_model.eval.running.captioner import questions_by_now
    from afn_model.eval.running.run import prepare, read_run
    from afn_model.eval.table import chosen

    _check_names(args)
    out = Path(args.out)
    told = read_run(out)
    rows, asking, data = chosen(told["benchmarks"]), told["asking"], args.data or told["data"]
    if not Path(data).is_dir():  # before the report is written anew
        raise ValueError(f"{data}: no such folder; --data says where the benchmarks' files are now")
    prepared = prepare(rows, data, out, asking, limit=told["limit"])
    _tell_problems(prepared.problems)
    if (out / READER).is_file():
        reading = AskSettings.of_json(read_json(out / READER), out / READER)
        prepared = questions_by_now(prepared, out, asking, reading)
    return _finish(args, rows, prepared, out)


def bench_doctor(args: Namespace) -> int:
    """3 where something is missing."""
    from afn_model.eval.reports.doctor import examine, text
    from afn_model.eval.table import chosen

    rows = chosen(args.suite.split(","))
    with _ReadBar(len(rows)) as bar:
        found = examine(rows, args.data, on_row=bar.show)
    print(json.dumps([one.as_json() for one in found], indent=2) if args.json else text(found))
    return 0 if all(one.complete for one in found) else 3


def bench_list(args: Namespace) -> None:
    from dataclasses import asdict

    from afn_model.eval.reports.scored import labels
    from afn_model.eval.table import chosen

    rows = chosen(args.suite.split(","))
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        return
    titles, width = labels(rows), max(len(row.name) for row in rows)
    print(f"row  {'--suite':<{width}}   items  metric        title")
    for row in rows:
        items = f"{row.items:,}" if row.items else "?"
        metric = f"{row.metric} ↓" if row.lower else row.metric
        print(f"{row.row or '-':>3}  {row.name:<{width}}  {items:>6}  {metric:<12}  {titles[row.name]}")


def _folders(args: Namespace) -> tuple[Path, Path]:
    """(out, data)"""
    if args.out is None and args.suite == DEMO:
        args.out = DEMO_OUT
    if args.out is None or (args.data is None and args.suite != DEMO):
        raise ValueError("--out and --data are required (afn bench run --help says more)")
    out = Path(args.out)
    data = Path(args.data) if args.data else out / "data"
    if args.suite != DEMO and not data.is_dir():
        raise ValueError(f"{data}: no such folder; --data holds a folder for each benchmark (docs/evaluation.md)")
    return out, data


def _check(args: Namespace, rows: list[BenchmarkRow]) -> None:
    """Before anything is written to a run's folder.

    Raises:
        ValueError: options that do not go together, or no such prompt.
    """
    from afn_model.eval.running.asks import AskSettings

    for row in rows:
        AskSettings({}, prompt=args.prompt).prompt_of(row)
    if args.variant == "captioner" and not args.then_url:
        raise ValueError("--variant captioner needs --then-url, the API of a text model that answers from the captions")
    if args.then_url and args.variant != "captioner":
        raise ValueError("--then-url is of --variant captioner, in which a text model answers")
    _check_names(args)


def _check_names(args: Namespace) -> None:
    for model, url in (("url-model", "url"), ("then-model", "then-url"), ("judge-model", "judge-url")):
        given = {name: getattr(args, name.replace("-", "_"), None) for name in (model, url)}
        if given[model] and not given[url]:
            raise ValueError(f"--{model} needs --{url}, where that model answers")


def _asking(args: Namespace, out: Path) -> AskSettings:
    from afn_model.eval.running.asks import AskSettings

    given = {
        "max_tokens": args.max_new_tokens,
        "repetition_penalty": args.repetition_penalty,
        "temperature": args.temperature or None,
        "top_p": args.top_p if args.top_p != 1.0 else None,
    }
    return AskSettings(
        model=_model(args, out),
        variant=args.variant,
        prompt=args.prompt,
        generation={name: value for name, value in given.items() if value is not None},
        seed=args.seed or 0,
        ablation=args.ablation,
        deterministic=not args.fast,
    )


def _model(args: Namespace, out: Path) -> dict[str, Any]:
    """What tells the model from others; for the demo suite a model is found or made."""
    from afn_model.weights.identity import identity

    if args.url:
        from afn_model.eval.running.endpoint import served

        return served(args.url, args.url_model, key=os.environ.get("AFN_MODEL_KEY"))
    if args.model is None and args.suite == DEMO:
        args.model = _demo_model(out)
    if args.model is None:
        raise ValueError("--model or --url is required (afn bench run --help says more)")
    told = {"dtype": args.dtype, "rote": args.rote, "quantize": args.quantize, "system": args.system}
    if args.adapter:
        from afn_model.files import fingerprint

        told["adapter"] = "".join(fingerprint(path)[:8] for path in sorted(Path(args.adapter).glob("*.safetensors")))
    return identity(args.model) | {name: value for name, value in told.items() if value not in (None, "auto")}


def _demo_model(out: Path) -> str:
    """That of ``make demo``; where there is none, one that trains for a minute and knows less."""
    if (Path(DEMO_MODEL) / "config.json").is_file():
        return DEMO_MODEL
    folder = out / "model"
    if not (folder / "config.json").is_file():
        from afn_model.demo import run as demo

        print(f"afn: {DEMO_MODEL} has no model (make demo): one is trained for a minute", file=sys.stderr)
        demo(folder, seconds=60, clips=1500, heldout=30, questions=0, say=lambda text: None)
    return str(folder)


def _workers(args: Namespace, stack: ExitStack, questions: Path) -> Workers:
    if args.url:
        from afn_model.eval.running.endpoint import EndpointWorkers

        key = os.environ.get("AFN_MODEL_KEY")
        return EndpointWorkers(args.url, args.url_model, key=key, together=min(args.batch, REQUESTS))
    told = {"source": str(questions), "deterministic": not args.fast}
    return workers_of(Namespace(**vars(args) | told), stack)


def _reading(args: Namespace) -> AskSettings | None:
    """How the text model is asked that answers from captions."""
    if not args.then_url:
        return None
    from afn_model.eval.running.asks import AskSettings
    from afn_model.eval.running.endpoint import served

    model = served(args.then_url, args.then_model, key=os.environ.get("AFN_THEN_KEY"))
    return AskSettings(model=model, prompt=args.prompt, seed=args.seed or 0)


def _readers(args: Namespace, questions: Path) -> Workers:
    from afn_model.eval.running.endpoint import EndpointWorkers

    key = os.environ.get("AFN_THEN_KEY")
    return EndpointWorkers(args.then_url, args.then_model, key=key, together=min(args.batch, REQUESTS), audio=False)


def _tell_problems(problems: dict[str, str]) -> None:
    for name, problem in problems.items():
        print(f"afn: {name}: {problem}", file=sys.stderr)


def _size(prepared: PreparedRun, share: tuple[int, int]) -> str:
    """Such as "12,345 questions of 39 benchmarks, 56.7 hours of audio, here 1/8 of them"."""
    asks = [ask for some in prepared.asks.values() for ask in some]
    hours = sum(ask.seconds for ask in asks) / 3600
    part = f", here {share[0]}/{share[1]} of them" if share[1] > 1 else ""
    return f"{len(asks):,} questions of {len(prepared.asks):,} benchmarks, {hours:,.1f} hours of audio{part}"


class _ReadBar:
    """A line on stderr, where that is a terminal: which benchmark's files are read."""

    def __init__(self, of: int) -> None:
        self.of = of

    def __enter__(self) -> _ReadBar:
        from tqdm import tqdm

        self.bar = tqdm(total=self.of, bar_format="reading {desc} {n}/{total}|{bar}|", leave=False, disable=None)
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def show(self, name: str) -> None:
        """A benchmark begins."""
        self.bar.set_description_str(name)
        self.bar.update()


def _finish(args: Namespace, rows: list[BenchmarkRow], prepared: PreparedRun, out: Path) -> int:
    from afn_model.eval.reports.brief import brief, unanswered
    from afn_model.eval.reports.report import as_json, run_facts, write_report
    from afn_model.eval.reports.scored import scored
    from afn_model.eval.running.run import answers_of

    reader = read_json(out / READER)["model"]["name"] if (out / READER).is_file() else ""
    facts = run_facts(out, rows, data=args.data, unreadable=prepared.unreadable, reader=reader)
    tools = _tools(args, out)
    scores = scored(rows, answers_of(prepared, out), tools, prepared.problems)
    if tools.judge and tools.judge.failures:
        lost = f"{tools.judge.failures} grades did not come; afn bench score asks for them again"
        print(f"afn: judge: {lost} ({tools.judge.last_failure})", file=sys.stderr)
    report = write_report(out, scores, facts)
    print(json.dumps(as_json(scores, facts), indent=2) if args.json else "\n".join(brief(scores, facts, report)))
    return 0 if scores.complete and not unanswered(scores) else 3


def _tools(args: Namespace, out: Path) -> Any:
    from afn_model.eval.rules.embedders import embedder
    from afn_model.eval.rules.judge import RemoteJudge
    from afn_model.eval.score import Tools

    tools = Tools()
    if args.judge_url:
        key = os.environ.get("AFN_JUDGE_KEY")
        tools.judge = RemoteJudge(args.judge_url, model=args.judge_model, key=key, cache=out / "judge.jsonl")
    if args.embed:
        tools.embed, tools.embed_name = embedder(args.embed)
    return tools
