"""``afn curate``: recordings into training data, stage by stage, and what people ask of a run. Heavy imports wait."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afn_model.cli import options
from afn_model.cli.options import positive

if TYPE_CHECKING:
    from afn_model.curate.plan import CurationPlan
    from afn_model.curate.run import StageDone

RUN_HELP = """
PLAN is a YAML file: stages in order, with their parameters. The same command goes on where a run was stopped, and runs
what has changed: a stage of another version or parameters with those that read what it writes, and rows that are new,
read otherwise, or had an error that may pass.

Exit codes: 0 every row was kept or dropped; 2 bad input; 3 some rows are quarantined (afn curate status DIR says why);
4 a budget of the plan is spent: the same command goes on with as much again.
"""


def add_curate_run(parser: ArgumentParser) -> None:
    parser.formatter_class, parser.epilog = RawDescriptionHelpFormatter, RUN_HELP
    parser.add_argument("plan", metavar="PLAN", help="a YAML file, or one of the package's plans by its name")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    told = "local (default): processes of this machine; ray: a cluster that sees DIR, at RAY_ADDRESS"
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help=told)
    told = "shards that are worked on at a time on this machine; default its cores"
    parser.add_argument("--workers", type=positive, metavar="N", help=told)
    told = "run nothing: print calls, tokens, core-hours and GPU-hours of every stage, from DIR where something was run"
    parser.add_argument("--dry-run", action="store_true", help=told)
    parser.add_argument("--hours", type=_hours, metavar="H", help="of audio, for --dry-run; default what DIR has found")
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone; those before it must be done")
    told = "run only the first N recordings, in the order of their ids; more of them later keep these"
    parser.add_argument("--limit", type=positive, metavar="N", help=told)
    told = "a parameter in place of the plan's, read as YAML; can be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.PARAMETER=VALUE", help=told)
    parser.add_argument("--retry", action="store_true", help="also run rows again that are quarantined for good")
    parser.add_argument("--quiet", action="store_true", help="errors are all that is said on stderr")
    options.add_json(parser)


def add_curate_plan(parser: ArgumentParser) -> None:
    told = "talks (every stage, to copy and change) or demo (what afn curate demo runs)"
    parser.add_argument("name", metavar="NAME", help=told)


def add_curate_folder(parser: ArgumentParser) -> None:
    parser.add_argument("out", metavar="DIR", help="the folder of a run")


def add_curate_explain(parser: ArgumentParser) -> None:
    add_curate_folder(parser)
    told = "of a row, recording, segment, annotation or exported record, or a url"
    parser.add_argument("name", metavar="ID", help=told)


def add_curate_takedown(parser: ArgumentParser) -> None:
    add_curate_folder(parser)
    parser.add_argument("names", nargs="*", metavar="ID", help="of recordings or anything made of them, or urls")
    parser.add_argument("--list", action="append", default=[], metavar="FILE", help="a file that names one a line")


def curate_run(args: Namespace) -> int:
    """3 where rows are quarantined, 4 where a budget is spent."""
    from afn_model.curate.plan import read_plan

    plan, out = read_plan(args.plan, _changes(args.set)), Path(args.out)
    if args.dry_run:
        return _dry_run(args, plan, out)
    if args.hours is not None:
        raise ValueError("--hours is for --dry-run (afn curate run --help says more)")
    from afn_model.curate.run import run

    with ExitStack() as stack:
        done = run(
            plan,
            out,
            _executor(args, plan, stack),
            only=args.only,
            limit=args.limit,
            retry=args.retry,
            on_stage=None if args.quiet else _tell,
        )
    if args.json:
        print(json.dumps([vars(one) for one in done], indent=2))
    if any(one.stopped for one in done):
        return 4
    if not (failed := sum(one.failed for one in done)):
        return 0
    if not args.quiet:
        print(f"afn: {failed:,} rows are quarantined: afn curate status {out} says why", file=sys.stderr)
    return 3


def curate_plan(args: Namespace) -> None:
    from afn_model.curate.plan import shipped

    sys.stdout.write(shipped(args.name).read_text("utf-8"))


def curate_status(args: Namespace) -> None:
    from afn_model.curate.status import status, text

    found = status(args.out)
    print(json.dumps(found.as_json(), indent=2, ensure_ascii=False) if args.json else text(found))


def curate_explain(args: Namespace) -> None:
    from afn_model.curate.lineage import explain, text

    found = explain(args.out, args.name)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else text(found))


def curate_takedown(args: Namespace) -> None:
    from afn_model.curate.lineage import take_down

    names = [*args.names, *(line for file in args.list for line in _listed(Path(file)))]
    if not names:
        raise ValueError("nothing to take down: give ids or urls, or --list FILE")
    found = take_down(args.out, names)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"taken down: {len(found['rows']):,} rows with {len(found['sources']):,} recordings; no stage gets them again"
    )
    for stage, shards in found["stages"].items():
        print(f"{stage}: the next run writes anew {', '.join(shards)}")


def curate_audit(args: Namespace) -> int:
    """1 where something is wrong."""
    from afn_model.curate.audit import audit

    found = audit(args.out)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(found) or f"{args.out}: every row once, and files as their manifests say")
    return 1 if found else 0


def curate_report(args: Namespace) -> None:
    from afn_model.curate.report import write_report

    print(f"Report: {write_report(args.out)}")


def _dry_run(args: Namespace, plan: Any, out: Path) -> int:
    from dataclasses import asdict

    from afn_model.curate.cost import estimate, text

    costs = estimate(plan, args.hours, out if out.is_dir() else None)
    print(json.dumps([asdict(cost) for cost in costs], indent=2) if args.json else text(costs))
    return 0


def _executor(args: Namespace, plan: CurationPlan, stack: ExitStack) -> Any:
    from afn_model.curate.executors import Processes, RayTasks, here

    if args.executor == "ray":
        found: Any = RayTasks(os.environ.get("RAY_ADDRESS"), args.workers)
    else:
        workers = args.workers or len(os.sched_getaffinity(0))
        if workers == 1:
            return here
        found = Processes(workers, plan.modules)
    stack.callback(found.close)
    return found


def _changes(given: list[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or "." not in name:
            raise ValueError(f"--set {one}: expected STAGE.PARAMETER=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--set {one}: the value is no YAML") from None
    return found


def _tell(done: StageDone) -> None:
    parts = [f"{done.rows:,} rows", f"{done.kept:,} kept"]
    for count, name in ((done.dropped, "dropped"), (done.failed, "quarantined"), (done.left, "left")):
        parts += [f"{count:,} {name}"] if count else []
    ran = f"; {done.run:,} run in {done.seconds:.1f} s of work" if done.run else "; nothing to run"
    stopped = f"; a budget is spent ({done.stopped})" if done.stopped else ""
    print(f"afn: {done.stage}: {', '.join(parts)}{ran}{stopped}", file=sys.stderr)


def _listed(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of hours")
    return hours
