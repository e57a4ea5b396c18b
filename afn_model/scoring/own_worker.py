"""The process that ``own.OwnReward`` starts: reads requests as lines of JSON, and writes what the function returns.

It runs as a file and imports nothing of the project, so that it starts at once.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the trainer decides; this process ends with it
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also from within an endless loop
    requests, replies, own = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"), os.getpid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what it or a program that it starts reads is no request
    os.dup2(2, 1)  # what the function prints is no reply
    first = json.loads(requests.readline())
    sys.path[:] = [os.getcwd(), *(path for path in first["path"] if path)]
    function, problem = None, ""
    try:
        module, _, name = first["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        problem = f"cannot be imported: {one_line(error)}"
    for line in requests:
        reply = {"error": problem}
        if function is not None:
            request = json.loads(line)
            try:
                given = request["prompts"], request["answers"], request["samples"]
                found = function(*given) if request["answers"] else ()
                reply = {"values": [float(value) for value in found]}
            except Exception as error:
                reply = {"error": f"raised {one_line(error)}"}
        if os.getpid() != own:  # a process that the function forked came back too: its reply would be the next one's
            os._exit(0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    main()
