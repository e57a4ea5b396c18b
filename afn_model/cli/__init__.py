"""The ``afn`` command.

afn ask talk.wav "When does the applause start?" --model runs/demo
afn transcribe one.mp3 two.flac --model runs/demo --json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import warnings

from afn_model.cli import streams
from afn_model.cli.commands import COMMANDS
from afn_model.cli.messages import show_error, show_warning, without_model
from afn_model.cli.options import Parser

__all__ = ["main"]

PACKAGE = "afn-kernels"


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    0, 1 where some of several recordings could not be used, 2 for bad input, 130 when interrupted, 141 when the reader
    of stdout has gone. Bad input is one line on stderr; with AFN_DEBUG=1 in the environment its traceback follows.
    """
    printable = streams.prepare()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = show_warning
            code = dispatch(sys.argv[1:] if argv is None else argv, printable)
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        streams.give_up_stdout()
        return 141
    except (ValueError, OSError) as error:
        show_error(error)
        if os.environ.get("AFN_DEBUG"):
            raise
        streams.give_up_stdout()
        return 2
    except ModuleNotFoundError as error:
        raise SystemExit(without_model(error)) from None
    except KeyboardInterrupt:
        return 130


def dispatch(argv: list[str], printable: bool = True) -> int:
    """Runs the command that a command line names; its exit code."""
    if argv == ["--version"]:
        print(f"afn {importlib.metadata.version(PACKAGE)}")
        return 0
    # Two words make the name of some commands.
    group = argv[0] if argv and any(name.startswith(f"{argv[0]} ") for name in COMMANDS) else ""
    top = chooser(group)
    words = argv[1:] if group else argv
    if group == "curate" and words and words[0].endswith((".yaml", ".yml")):
        words = ["run", *words]
    if not words:
        top.print_help(sys.stderr)
        return 2
    first = top.parse_args(words)
    name = f"{group} {first.command}".strip()
    command = COMMANDS[name]
    parser = Parser(prog=f"afn {name}", description=command.summary)
    for add in command.options:
        add(parser)
    # Options may stand between recordings and question.
    args = parser.parse_intermixed_args(first.arguments)
    if not printable and not command.writes and not getattr(args, "out", None):
        raise ValueError("standard output is closed: there is nowhere to print to")
    return command.run(args) or 0


def chooser(group: str) -> Parser:
    """Reads which command is meant: of all, or of those whose name begins with a group's."""
    before = f"{group} " if group else ""
    found = {name.removeprefix(before): command for name, command in COMMANDS.items() if name.startswith(before)}
    width = max(map(len, found))
    listed = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in found.items())
    prog = f"afn {group}".strip()
    epilog = f"commands:\n{listed}\n\n{prog} COMMAND --help says more."
    parser = Parser(prog=prog, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=found, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    if not group:
        parser.add_argument("--version", action="store_true", help="print the version")
    return parser
