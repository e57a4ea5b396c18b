"""``afn train``: runs a curriculum, makes one for recordings at hand, or draws what a run has logged."""

from __future__ import annotations

import math
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afn_model.cli.options import positive

if TYPE_CHECKING:
    from afn_model.train.curriculum import Curriculum

# Options of a curriculum that is made for --data FILE, by their names in ``one_command.Wishes``.
WISHES = ("lora", "method", "epochs", "steps", "lr", "batch_tokens", "context", "eval")
# Curricula that make their worlds and their bases themselves, and the modules that do.
FROM_NOTHING = {"afwhisper-tiny": "tiny_speech", "talk-tiny": "tiny_talk"}
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
    told = (
        "a corpus or a pattern of several, to fine-tune on without a curriculum; or a curriculum's folder of datasets"
    )
    parser.add_argument("--data", metavar="FILE|DIR", help=told)
    parser.add_argument("--layout", metavar="FILE", default="", help="YAML, or cpu, gpu, 8gpu, 128gpu")
    told = "change the layout or a stage: workers=4, lr=1e-5 where there is one stage, STAGE.lora.rank=8"
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=told)
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
    told = "tensorboard, wandb, mlflow, with commas; none; default tensorboard where it is installed"
    parser.add_argument("--report", metavar="NAMES", help=told)
    parser.add_argument("--quiet", action="store_true", help="no log lines on the screen")
    made = parser.add_argument_group("with --data FILE")
    made.add_argument("--lora", metavar="RANK", type=positive, help="train adapters of the language model")
    made.add_argument("--method", choices=("sft", "dpo"), help="default sft; dpo learns from chosen and rejected")
    made.add_argument("--epochs", type=above_0, metavar="N", help="default 3, of dpo 1")
    made.add_argument("--steps", type=positive, metavar="N", help="optimiser steps, in place of epochs or as their end")
    made.add_argument("--lr", type=above_0, metavar="R", help="default 1e-4 with --lora, else 1e-5; of dpo a tenth")
    made.add_argument("--batch-tokens", type=positive, metavar="N", help="of a step; default for about 100 steps")
    made.add_argument("--context", type=positive, metavar="N", help="default that of the longest sample, up to 8192")
    told = "held-out records: a corpus, or a share such as 0.02; the best model is kept"
    made.add_argument("--eval", metavar="FILE|SHARE", help=told)


def above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


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
    if is_whole(args):
        from_nothing(args)
        return
    made = args.curriculum is None and is_corpus(args.data)
    if args.curriculum and is_corpus(args.data):
        raise ValueError(f"--data {args.data}: a file makes a curriculum of its own; beside one --data is a folder")
    needed = ("curriculum",) if args.plan else ("curriculum", "base", "out")
    needed = ("base",) if made else needed
    missing = [f"--{name}" for name in needed if not getattr(args, name)]
    if missing:
        raise ValueError(f"afn train needs {', '.join(missing)} (afn train --help says more)")
    unmade = [f"--{name.replace('_', '-')}" for name in WISHES if not made and getattr(args, name) is not None]
    if unmade:
        raise ValueError(
            f"{', '.join(unmade)}: for --data FILE; of a curriculum --set changes fields, as in --set lr=1e-5"
        )
    import torch

    from afn_model.train.callbacks import reporters
    from afn_model.train.curriculum import read_curriculum
    from afn_model.train.fingerprint import CHANGEABLE
    from afn_model.train.prepare import Refused
    from afn_model.train.run_layout import read_layout
    from afn_model.train.screen import lasting_output
    from afn_model.train.stage_run import Options
    from afn_model.train.stopping import STOPPED, Stopped
    from afn_model.train.trainer import train as run
    from afn_model.train.values import known

    of_layout, of_stages = changes_of(args.set)
    usual = "gpu" if torch.cuda.is_available() else "cpu"
    if args.plan:
        usual = "gpu" if args.gpus == 1 else "8gpu" if args.gpus in (8, 16) else "128gpu"
    layout = read_layout(args.layout or usual, of_layout)
    reports = {}
    if args.report is not None:
        names = [name.strip() for name in args.report.split(",") if name.strip()]
        reports = {"tensorboard": False, "callbacks": reporters(names)}
    curriculum = made_for(args, of_stages) if made else read_curriculum(args.curriculum, args.data, of_stages)
    if args.plan:
        from afn_model.train.planner import print_plan

        print_plan(curriculum, layout, args)
        return
    allowed = [name.strip() for name in (args.allow_changes or "").split(",") if name.strip()]
    known(allowed, CHANGEABLE, "--allow-changes")
    first = os.environ.get("RANK", "0") == "0"
    options = Options(show=first and not args.quiet, profile=args.profile, strict=args.strict, **reports)
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


def is_whole(args: Namespace) -> bool:
    """Whether a curriculum is to make its world and its base itself."""
    return args.curriculum in FROM_NOTHING and not (args.base or args.data or args.plan)


def from_nothing(args: Namespace) -> None:
    """Runs one of ``FROM_NOTHING`` in its world, with a report.

    ``--set scale=0.1`` and ``seed=1`` are of the whole; ``demo=FOLDER``, of talk-tiny, names a folder of ``afn demo``.
    """
    name = args.curriculum
    unused = [f"--{option.replace('_', '-')}" for option in ("stage", "dry_run", "init_from") if getattr(args, option)]
    if unused:
        raise ValueError(f"{', '.join(unused)}: {name} without --base makes everything, from the world on")
    own = ("scale=", "seed=", *(("demo=",) if name == "talk-tiny" else ()))
    given = dict(pair.split("=", 1) for pair in args.set if pair.startswith(own))
    of_layout, of_stages = changes_of([pair for pair in args.set if not pair.startswith(own)])
    try:
        scale, seed = float(given.get("scale", 1)), int(given.get("seed", 0))
        if not 0 < scale < math.inf or seed < 0:
            raise ValueError
    except ValueError:
        raise ValueError(f"--set {given}: a scale above 0 and a seed from 0 are expected") from None

    from importlib import import_module

    from afn_model.train.run_layout import read_layout
    from afn_model.train.screen import lasting_output
    from afn_model.train.stage_run import Options
    from afn_model.train.stopping import STOPPED, Stopped

    run = import_module(f"afn_model.bootstrap.{FROM_NOTHING[name]}").run
    out = Path(args.out or f"runs/{name}")
    options = Options(show=not args.quiet, profile=args.profile, strict=args.strict, tensorboard=False)
    more = {"demo": Path(given["demo"])} if "demo" in given else {}
    with lasting_output():
        try:
            layout = read_layout(args.layout or "cpu", of_layout)
            run(out, seed=seed, scale=scale, changes=of_stages, layout=layout, options=options, **more)
        except Stopped as stopped:
            print(f"afn: {stopped}; the same command goes on from there", file=sys.stderr)
            raise SystemExit(STOPPED) from None
    print(out / "report.md")


def changes_of(pairs: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``--set`` changes of the layout, and of stages."""
    from dataclasses import fields

    from afn_model.train.curriculum import Stage
    from afn_model.train.run_layout import RunLayout
    from afn_model.train.values import parse_yaml

    of_layout, of_stages = {}, {}
    layout, stage = ([f.name for f in fields(kind) if f.name != "name"] for kind in (RunLayout, Stage))
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair}: expected KEY=VALUE")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"--set {pair}: {error}") from None
        if key not in layout and "." not in key and key not in stage:
            names = f"the layout has {', '.join(layout)}; a stage has {', '.join(stage)}"
            raise ValueError(f"--set {key:.60}: no such field; {names}")
        (of_layout if key in layout else of_stages)[key] = value
    return of_layout, of_stages


def made_for(args: Namespace, changes: dict[str, Any]) -> Curriculum:
    """The curriculum for ``--data FILE``; it is shown, and written to the run folder, which has a name by default."""
    from afn_model.files import write_text
    from afn_model.prompt.processor import AFNextProcessor
    from afn_model.train.curriculum import made_curriculum, with_changes
    from afn_model.train.one_command import Wishes, corpora_of, one_stage, yaml_of

    rank, ranks = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    corpora = corpora_of(args.data, may_index=ranks == 1)
    if args.eval and is_file(args.eval):
        corpora_of(args.eval, may_index=ranks == 1)
    wishes = Wishes(**{name: getattr(args, name) for name in WISHES if getattr(args, name) is not None})
    raw = one_stage(corpora, AFNextProcessor.from_pretrained(args.base), wishes, ranks)
    raw = with_changes(raw, changes)
    (name,), text = raw["stages"], yaml_of(raw)
    if args.out is None:
        args.out = os.path.join("runs", next(iter(corpora)) + ("" if name == "finetune" else f"-{name}"))
    curriculum = made_curriculum(raw, name)
    if rank == 0:
        if not args.quiet:
            print(text, end="\n\n", flush=True)
        if not args.dry_run:
            file = Path(args.out) / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
    return curriculum


def is_corpus(data: str | None) -> bool:
    """Whether ``--data`` means corpora, by a file, an address or a pattern, and not the folder of a curriculum's."""
    if not data or os.path.isdir(data):
        return False
    return os.path.isfile(data) or re.search(r"[*?\[{]|\.(jsonl?|parquet|tar|arrow|csv|tsv)$", data) is not None


def is_file(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return True
    return False


def plot(args: Namespace) -> None:
    if len(args.what) != 2:
        raise ValueError(f"afn train {' '.join(args.what)}: expected `afn train plot RUN`")
    from afn_model.train.plot import plot as draw

    for file in draw(Path(args.what[1]), Path(args.out) if args.out else None):
        print(file)
