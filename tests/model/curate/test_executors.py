"""One process, two, or Ray: the same files; and no worker outlives its run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afn_model.curate.executors import Processes, RayTasks, here
from afn_model.curate.spending import StopRun
from tests.model.curate.toy import Toy


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    toy = Toy(tmp_path_factory.mktemp("toy"))
    toy.run()
    return toy.files()


def test_here_is_one_after_another():
    assert list(here(str, [1, 2])) == ["1", "2"]


@pytest.mark.slow
def test_two_processes_give_the_same_files(tmp_path, wanted):
    toy, executor = Toy(tmp_path), Processes(2)
    try:
        toy.run(executor=executor)
        assert toy.files() == wanted
        toy.told["budgets"] = {"shout": {"calls": 1}}
        stopped = toy.run(toy.plan(shout_mark="?"), executor)["shout"].stopped
        assert stopped in ("calls: 1 of 1", "calls: 2 of 1"), "the other process may be in a call when one has ended"
        with pytest.raises(ValueError, match="a worker was killed"):
            list(executor(_die, toy_work(toy)))
    finally:
        executor.close()


def _die(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(tmp_path):
    code = (
        "import os, sys, time; from afn_model.curate.executors import Processes\n"
        "if __name__ == '__main__':\n"
        "    executor = Processes(1)\n"
        "    print(executor.pool.submit(os.getpid).result(), flush=True)\n"
        "    executor.pool.submit(time.sleep, 60)\n"
        "    time.sleep(60)\n"
    )
    path = tmp_path / "main.py"
    path.write_text(code)
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        worker = int(main.stdout.readline())
        main.kill()
    until = time.monotonic() + 20
    while is_there(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_there(worker), "the worker goes on without its run"


def is_there(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_ray_gives_the_same_files(tmp_path, wanted):
    before = dict(os.environ)
    pytest.importorskip("ray", reason="Ray is in [cluster]")
    toy, executor = Toy(tmp_path), RayTasks("local", 2)
    try:
        toy.run(executor=executor)
        assert toy.files() == wanted
        with pytest.raises(StopRun, match="spent"):
            list(executor(_stop, toy_work(toy)))
    finally:
        executor.close()
        os.environ.clear()  # Ray leaves some of its own
        os.environ.update(before)


def toy_work(toy):
    from afn_model.curate.run import _work

    return [_work(toy.plan(), toy.out, toy.plan().stages[1], "00000-of-00002")]


def _stop(_):
    raise StopRun("spent")
