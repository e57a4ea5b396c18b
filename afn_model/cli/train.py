"""``afn train``: runs a curriculum, or draws what a run has logged."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path


def add_train(parser: ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="plot RUN", help="draw a run's losses, rewards and throughput")
    parser.add_argument("--curriculum", metavar="FILE", help="YAML, or a name that comes with the package: afnext, ...")
    parser.add_argument("--base", metavar="DIR", help="model folder that the first stage starts from")
    parser.add_argument("--out", metavar="RUN", help="run folder; what is finished in it is not done again")
    parser.add_argument("--data", metavar="DIR", help="folder of the datasets; default that of the curriculum")
    parser.add_argument("--layout", metavar="FILE", default="", help="YAML, or cpu, gpu, 8gpu, 128gpu")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change the layout")
    parser.add_argument("--stage", metavar="NAME", help="run this stage alone")
    parser.add_argument("--profile", metavar="FIRST:LAST", type=steps, help="profile these steps of each stage")
    parser.add_argument("--quiet", action="store_true", help="no log lines on the screen")


def steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise ArgumentTypeError(f"{text!r} is not FIRST:LAST, two step numbers")
    return int(first), int(last)


def train(args: Namespace) -> None:
    if args.what:
        plot(args)
        return
    missing = [f"--{name}" for name in ("curriculum", "base", "out") if not getattr(args, name)]
    if missing:
        raise ValueError(f"afn train needs {', '.join(missing)} (afn train --help says more)")
    import torch
    import yaml

    from afn_model.train.curriculum import read_curriculum, read_layout
    from afn_model.train.trainer import Options, Stopped
    from afn_model.train.trainer import train as run

    changes = {}
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair}: expected KEY=VALUE")
        changes[key] = yaml.safe_load(value)
    layout = read_layout(args.layout or ("gpu" if torch.cuda.is_available() else "cpu"), changes)
    curriculum = read_curriculum(args.curriculum, args.data)
    first = os.environ.get("RANK", "0") == "0"
    options = Options(show=first and not args.quiet, profile=args.profile)
    try:
        run(curriculum, args.base, args.out, layout=layout, only=args.stage, options=options)
    except Stopped as stopped:
        raise ValueError(f"{stopped}; the same command goes on from there") from None


def plot(args: Namespace) -> None:
    if len(args.what) != 2 or args.what[0] != "plot":
        raise ValueError(f"afn train {' '.join(args.what)}: expected `afn train plot RUN`")
    from afn_model.train.plot import plot as draw

    for file in draw(Path(args.what[1]), Path(args.out) if args.out else None):
        print(file)
