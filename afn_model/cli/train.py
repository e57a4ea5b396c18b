"""``afn train``: runs a curriculum, or draws what a run has logged."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

EXIT_CODES = (
    "Exit codes: 0 done; 2 bad input or a failure; 75 stopped by SIGTERM, SIGHUP or Ctrl-C with its checkpoint "
    "written, the same command goes on; 130 stopped at once by a second Ctrl-C."
)


def add_train(parser: ArgumentParser) -> None:
    parser.epilog = EXIT_CODES
    parser.add_argument("what", nargs="*", metavar="FILE | plot RUN", help="the curriculum, or a run to draw")
    parser.add_argument("--curriculum", metavar="FILE", help="YAML, or a name that comes with the package: afnext, ...")
    parser.add_argument("--base", metavar="DIR", help="model folder that the first stage starts from")
    parser.add_argument("--out", metavar="RUN", help="run folder; what is finished in it is not done again")
    parser.add_argument("--data", metavar="DIR", help="folder of the datasets; default that of the curriculum")
    parser.add_argument("--layout", metavar="FILE", default="", help="YAML, or cpu, gpu, 8gpu, 128gpu")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change the layout")
    parser.add_argument("--stage", metavar="NAME", help="run this stage alone")
    parser.add_argument("--plan", action="store_true", help="say what every stage takes of memory and time, and stop")
    parser.add_argument("--gpus", metavar="N", type=int, default=1, help="of --plan; default 1")
    parser.add_argument("--gpu-memory", metavar="GB", type=float, default=80.0, help="of --plan; default 80")
    parser.add_argument("--calibration", metavar="FILE", help="of --plan: rates that bench.calibrate has measured")
    parser.add_argument("--dry-run", action="store_true", help="say what the stages would do, and stop")
    parser.add_argument("--strict", action="store_true", help="a warning before the first step is an error")
    parser.add_argument("--allow-changes", metavar="NAMES", help="lr,steps,...: go on though these settings changed")
    parser.add_argument("--init-from", metavar="CHECKPOINT", help="start with the trained weights of another run")
    parser.add_argument("--profile", metavar="FIRST:LAST", type=steps, help="profile these steps of each stage")
    parser.add_argument("--quiet", action="store_true", help="no log lines on the screen")


def steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise ArgumentTypeError(f"{text!r} is not FIRST:LAST, two step numbers")
    return int(first), int(last)


def train(args: Namespace) -> None:
    if args.what[:1] == ["plot"]:
        plot(args)
        return
    if args.what:
        if len(args.what) > 1 or args.curriculum:
            raise ValueError(f"afn train {' '.join(args.what)}: expected one curriculum, or `afn train plot RUN`")
        (args.curriculum,) = args.what
    needed = ("curriculum",) if args.plan else ("curriculum", "base", "out")
    missing = [f"--{name}" for name in needed if not getattr(args, name)]
    if missing:
        raise ValueError(f"afn train needs {', '.join(missing)} (afn train --help says more)")
    import torch

    from afn_model.train.curriculum import read_curriculum, read_layout
    from afn_model.train.fingerprint import CHANGEABLE
    from afn_model.train.prepare import Refused
    from afn_model.train.screen import lasting_output
    from afn_model.train.stage_run import Options
    from afn_model.train.stopping import STOPPED, Stopped
    from afn_model.train.trainer import train as run
    from afn_model.train.values import known, parse_yaml

    changes = {}
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair}: expected KEY=VALUE")
        try:
            changes[key] = parse_yaml(value)
        except ValueError as error:
            raise ValueError(f"--set {pair}: {error}") from None
    usual = "gpu" if torch.cuda.is_available() else "cpu"
    if args.plan:
        usual = "gpu" if args.gpus == 1 else "8gpu" if args.gpus in (8, 16) else "128gpu"
    layout = read_layout(args.layout or usual, changes)
    curriculum = read_curriculum(args.curriculum, args.data)
    if args.plan:
        from afn_model.train.planner import print_plan

        print_plan(curriculum, layout, args)
        return
    allowed = [name.strip() for name in (args.allow_changes or "").split(",") if name.strip()]
    known(allowed, CHANGEABLE, "--allow-changes")
    first = os.environ.get("RANK", "0") == "0"
    options = Options(show=first and not args.quiet, profile=args.profile, strict=args.strict)
    more = {"only": args.stage, "allow_changes": allowed, "init_from": args.init_from, "dry_run": args.dry_run}
    with lasting_output():
        try:
            run(curriculum, args.base, args.out, layout=layout, options=options, **more)
        except Stopped as stopped:
            if first:
                print(f"afn: {stopped}; the same command goes on from there", file=sys.stderr)
            raise SystemExit(STOPPED) from None
        except Refused:
            raise SystemExit(2) from None


def plot(args: Namespace) -> None:
    if len(args.what) != 2:
        raise ValueError(f"afn train {' '.join(args.what)}: expected `afn train plot RUN`")
    from afn_model.train.plot import plot as draw

    for file in draw(Path(args.what[1]), Path(args.out) if args.out else None):
        print(file)
