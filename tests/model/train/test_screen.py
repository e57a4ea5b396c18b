"""What is printed may be lost; nothing else is."""

import io
import subprocess
import sys

import pytest

from afn_model.train.screen import Lasting

CODE = """
import os, sys
from afn_model.train.screen import lasting_output
with lasting_output():
    for number in range(1000):
        print(f"line {number}", flush=True)
        print("x" * 1000, file=sys.stderr)
    sys.stdout.isatty(), sys.stderr.isatty()
os.write(int(sys.argv[1]), b"done")
"""


def run(arguments: str, tmp_path) -> tuple[int, str]:
    """Exit code and what was written to a file of its own, of a shell's command line with CODE in it."""
    (tmp_path / "code.py").write_text(CODE)
    line = arguments.replace("CODE", f"{sys.executable} {tmp_path / 'code.py'} 9 9>{tmp_path / 'done'}")
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    return done.returncode, (tmp_path / "done").read_text()


@pytest.mark.parametrize(
    "arguments", ["CODE | head -1; exit ${PIPESTATUS[0]}", "CODE 2>&1 | head -1; exit ${PIPESTATUS[0]}"]
)
def test_a_pipe_whose_reader_has_ended(tmp_path, arguments):
    assert run(arguments, tmp_path) == (0, "done")


@pytest.mark.parametrize("arguments", ["CODE >&-", "CODE 2>&-", "CODE >&- 2>&-", "CODE > /dev/full"])
def test_a_stream_that_is_closed_or_full(tmp_path, arguments):
    assert run(arguments, tmp_path) == (0, "done")


def test_what_can_be_written_is():
    stream = io.StringIO()
    lasting = Lasting(stream)
    print("a line", file=lasting, flush=True)
    assert stream.getvalue() == "a line\n"
    assert not lasting.isatty()
    stream.close()
    assert lasting.write("lost") == 4
