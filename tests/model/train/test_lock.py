"""A run folder is one run's at a time, and nothing a dead one has left keeps it."""

import json
import os
import subprocess
import sys

import pytest

from afn_model.train import lock
from afn_model.train.lock import LOCK, locked, this_process


def held(folder, **changes) -> dict:
    found = this_process() | changes
    (folder / LOCK).write_text(json.dumps(found))
    return found


def test_the_second_is_refused_and_the_first_keeps_it(tmp_path):
    run = tmp_path / "run"
    with locked(run):
        refused = pytest.raises(ValueError, match=rf"run: in use by process {os.getpid()} on .*; if that has ended,")
        with refused, locked(run):
            pass
        assert json.loads((run / LOCK).read_text())["pid"] == os.getpid()
    assert not (run / LOCK).exists()


def test_another_process_is_seen_while_it_runs_and_not_after_it_was_killed(tmp_path):
    code = (
        "import sys, time, pathlib; from afn_model.train.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('have it', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "have it\n"
        with pytest.raises(ValueError, match=f"in use by process {other.pid}"), locked(tmp_path):
            pass
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie: nobody has asked for its exit code
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_a_number_that_another_process_has_by_now(tmp_path):
    if lock.began(os.getpid()) is None:
        pytest.skip("no /proc")
    held(tmp_path, began=1)
    with locked(tmp_path):
        pass


def test_another_host_is_believed(tmp_path):
    held(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(ValueError, match="in use by process 1 on elsewhere"), locked(tmp_path):
        pass


def test_an_attempt_that_torchrun_has_ended(tmp_path, monkeypatch):
    held(tmp_path, host="elsewhere", torchrun="job", attempt=0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(ValueError, match="in use"), locked(tmp_path):
        pass
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_what_a_power_cut_has_left(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with locked(tmp_path):
        pass


def test_only_the_own_lock_is_removed(tmp_path):
    with locked(tmp_path):
        other = held(tmp_path, host="elsewhere")
    assert json.loads((tmp_path / LOCK).read_text()) == other
