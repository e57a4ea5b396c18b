"""What maps the shards of a stage to workers: this process, processes of this machine, or a cluster of Ray."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any

from afn_model.curate.stage import NotReady, Resources

Task = Callable[[Any], Any]


def here(task: Task, work: Sequence[Any]) -> Iterator[Any]:
    """One after another, in this process."""
    return map(task, work)


class Processes:
    """Processes of this machine.

    Args:
        count: how many, for stages that need one core; fewer of others work at a time, and on GPUs one.
        modules: that all of them need; they are imported once, before there are processes.
    """

    def __init__(self, count: int, modules: Iterable[str] = ()):
        self.count, context = count, multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", *sorted(set(modules))])
        self.pool = ProcessPoolExecutor(count, context, initializer=_end_with_the_parent)

    def __call__(self, task: Task, work: Sequence[Any]) -> Iterator[Any]:
        """
        Raises:
            ValueError: a worker was killed.
        """
        waiting, running = list(reversed(work)), set[Future[Any]]()
        most = max(1, min(self.count, int(self.count / _needs(work).cpu)))
        if _needs(work).gpu:
            most = max(1, int(1 / _needs(work).gpu))
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    running.add(self.pool.submit(task, waiting.pop()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        except BrokenProcessPool:
            raise ValueError("a worker was killed, perhaps for want of memory; the same command goes on") from None
        finally:
            for one in running:
                one.cancel()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class RayTasks:
    """Tasks of a cluster of Ray, or of this machine by Ray; all must see the run's folder and the recordings.

    Ray schedules; what is done is said by the files of the run. A task that is lost with its machine is given again.

    Args:
        address: of the cluster; None for that of the environment or one of this machine.
        cpus: of a local one.

    Raises:
        NotReady: Ray is not installed.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise NotReady("--executor ray needs Ray: pip install 'afn-kernels[cluster]'") from None
        self.ray: Any = ray
        self.started = not ray.is_initialized()
        if self.started:
            ray.init(address, num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")

    def __call__(self, task: Task, work: Sequence[Any]) -> Iterator[Any]:
        needs = _needs(work)
        remote = self.ray.remote(max_retries=3, num_cpus=needs.cpu, num_gpus=needs.gpu)(task)
        left = [remote.remote(one) for one in work]
        try:
            while left:
                (done,), left = self.ray.wait(left)
                yield self.ray.get(done)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            for one in left:
                self.ray.cancel(one)

    def close(self) -> None:
        if self.started:
            self.ray.shutdown()


def _needs(work: Sequence[Any]) -> Resources:
    return work[0].plan.stage(work[0].stage).resources if work else Resources()


def _end_with_the_parent() -> None:
    """A worker whose run was killed ends, rather than keep its shard from the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
