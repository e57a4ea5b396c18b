"""The ``afn`` command.

afn ask talk.wav "When does the applause start?" --model runs/demo
afn transcribe one.mp3 two.flac --model runs/demo --json
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from afn_model.cli.commands import COMMANDS
from afn_model.cli.messages import show_error, show_warning
from afn_model.cli.options import Parser

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0, 2 for bad input, 130 when interrupted.

    Bad input is one line on stderr; with AFN_DEBUG=1 in the environment its traceback follows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = show_warning
            dispatch(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        show_error(error)
        if os.environ.get("AFN_DEBUG"):
            raise
        return 2
    except KeyboardInterrupt:
        return 130


def dispatch(argv: list[str]) -> None:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    epilog = f"commands:\n{listed}\n\nafn COMMAND --help says more."
    top = Parser(prog="afn", epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    top.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    # Two words make the name of some commands.
    if len(argv) > 1 and f"{argv[0]} {argv[1]}" in COMMANDS:
        argv = [f"{argv[0]} {argv[1]}", *argv[2:]]
    first = top.parse_args(argv)
    command = COMMANDS[first.command]
    parser = Parser(prog=f"afn {first.command}", description=command.summary)
    for add in command.options:
        add(parser)
    # Options may stand between recordings and question.
    command.run(parser.parse_intermixed_args(first.arguments))
