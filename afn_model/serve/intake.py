"""Recordings from bytes that nobody vouches for: decoded in processes of their own, under limits."""

from __future__ import annotations

import asyncio
import atexit
import fcntl
import hashlib
import itertools
import json
import math
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakSet

import torch

from afn_model.audio.digests import digests_of, windows_of
from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from afn_model.serve import intake_worker
from afn_model.serve.errors import ApiError
from afn_model.serve.recording import Recording
from afn_model.serve.settings import Settings

T = TypeVar("T")
MEMORY = 768 << 20  # bytes that decoding may take beside the file and its samples
STARTING = 120.0  # seconds that the decoders may take to be ready
WAITING = 4  # bodies of the largest size that may wait
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "HOME")  # of the environment, which holds keys


class DecoderDied(RuntimeError):
    """The process that makes decoders has ended before one has begun."""


class Decoders:
    """The process that makes a process for each recording (``intake_worker``); started again where it has died."""

    def __init__(self):
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock, self._jobs = threading.Lock(), itertools.count()

    def start(self) -> None:
        """Starts it, if it does not run."""
        with self._lock:
            self._started()

    def stop(self) -> None:
        """Ends it, and what it has started."""
        with self._lock:
            self._ended()

    def begin(self, job: dict[str, Any], descriptors: list[int]) -> int:
        """Has a recording decoded; the number of the job."""
        number = next(self._jobs)
        self._send(job | {"job": number}, descriptors)
        return number

    def end(self, job: int) -> None:
        """Ends a job that nobody wants any more."""
        with suppress(DecoderDied):
            if self._socket is not None:
                self._send({"end": job}, [])

    def _send(self, said: dict[str, Any], descriptors: list[int]) -> None:
        with self._lock:
            try:
                socket.send_fds(self._started(), [json.dumps(said).encode()], descriptors)
            except OSError as error:
                self._ended()
                raise DecoderDied(str(error)) from None

    def _ended(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = self._socket = None

    def _started(self) -> socket.socket:
        if self._socket is not None and self.process is not None and self.process.poll() is None:
            return self._socket
        self._ended()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path if folder)
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", intake_worker.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's ^C is for the server, which ends it
            )
        return self._socket


DECODERS = Decoders()  # one for all servers of this process: importing what decodes takes a second
atexit.register(DECODERS.stop)


class Intake:
    """Decodes recordings.

    Args:
        settings: limits.
        dtype: of samples.
    """

    def __init__(self, settings: Settings, dtype: torch.dtype = torch.float32):
        self.settings, self.dtype = settings, dtype
        self.waiting = self.bytes = 0
        self._mapped: WeakSet[mmap.mmap] = WeakSet()
        self._free = asyncio.Semaphore(settings.decoders)

    @property
    def held(self) -> int:
        """Bytes of the samples of recordings that somebody has."""
        return sum(map(len, self._mapped))

    async def start(self) -> None:
        """Starts the process that makes decoders, without waiting for it."""
        self._free = asyncio.Semaphore(self.settings.decoders)
        await asyncio.to_thread(DECODERS.start)

    async def stop(self) -> None:
        """Nothing is left to end: what is decoded ends with who waits for it, and the process that makes decoders with
        this one."""

    async def decode(
        self,
        data: bytes,
        *,
        start: float | None = None,
        end: float | None = None,
        max_seconds: float | None = None,
        param: str | None = None,
    ) -> Recording:
        """A recording from the bytes of a file.

        A task that is cancelled ends the process that decodes for it.

        Args:
            data: of the file, whatever its name says it is.
            start, end: seconds; the whole recording if None.
            max_seconds: the longest; that of the settings if None.
            param: what errors call it, such as ``messages[0].content[1]``.

        Raises:
            ApiError: 413 longer than allowed, 415 not audio that is read, 422 it cannot be decoded, 429 too many wait,
                503 decoders do not start.
        """
        longest = self.settings.max_seconds if max_seconds is None else max_seconds
        if not data:
            raise ApiError(422, "the recording is empty: there are no bytes in it", param=param)
        job = {"start": start, "end": end, "max_seconds": longest, "dtype": str(self.dtype).removeprefix("torch.")}
        job |= {"memory": MEMORY, "seconds": math.ceil(self.settings.decode_seconds)}
        with self._admitted(len(data)):
            async with self._free:
                width, most = torch.empty(0, dtype=self.dtype).element_size(), self.settings
                if self.held > most.upload_bytes + most.max_audio_seconds * SAMPLE_RATE * width:
                    what = "there is no room for more recordings now"
                    raise ApiError(429, what, param=param, code="queue_full", retry_after=5.0)
                for _ in range(2):  # the second after the process that makes decoders has been killed
                    with suppress(DecoderDied):
                        return await self._decoded(data, job, param)
        raise ApiError(503, "recordings cannot be decoded now", param=param, code="no_decoder", retry_after=5.0)

    @contextmanager
    def _admitted(self, size: int) -> Iterator[None]:
        most = WAITING * self.settings.max_body_bytes
        if self.waiting >= self.settings.max_requests or (self.waiting and self.bytes + size > most):
            what = f"{self.waiting} recordings wait to be decoded"
            raise ApiError(429, what, code="queue_full", retry_after=1.0)
        self.waiting += 1
        self.bytes += size
        try:
            yield
        finally:
            self.waiting -= 1
            self.bytes -= size

    async def _decoded(self, data: bytes, job: dict[str, Any], param: str | None) -> Recording:
        width = torch.empty(0, dtype=self.dtype).element_size()
        capacity = round(job["max_seconds"] * SAMPLE_RATE)
        with ExitStack() as opened:
            file, room = (opened.enter_context(_memory(name)) for name in ("file", "samples"))
            os.ftruncate(room, max(1, capacity) * width)
            fcntl.fcntl(room, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            digest = await _in_thread(lambda: _written(file, data))
            ours, theirs = socket.socketpair()
            opened.enter_context(ours)
            with theirs:
                number = DECODERS.begin(job, [file, room, theirs.fileno()])
            report = await self._report(number, ours, param)
            found = _read(report, capacity, param)
            count, problems = found
            pcm, digests, mapped = await _in_thread(lambda: _samples(room, count, self.dtype, param))
            self._mapped.add(mapped)
        start, end = job["start"], job["end"]
        return Recording(Recording.part_id(digest, start, end), pcm, tuple(digests), problems)

    async def _report(self, job: int, report: socket.socket, param: str | None) -> bytes:
        """What a decoder says; nothing where it was killed."""
        report.setblocking(False)
        loop, limit, ended = asyncio.get_running_loop(), self.settings.decode_seconds, False

        async def rest() -> bytes:
            said, most = b"", intake_worker.REPORT
            while len(said) <= most and (more := await loop.sock_recv(report, most)):
                said += more
            return said

        try:
            begun = b""
            with suppress(asyncio.TimeoutError, ConnectionError):
                begun = await within(STARTING, loop.sock_recv(report, 1))
            if begun != intake_worker.BEGUN:
                raise DecoderDied("the process that makes decoders has ended")
            found = b""
            with suppress(ConnectionError):
                found = await within(limit, rest())
            ended = True
            return found
        except asyncio.TimeoutError:
            what = f"the recording takes more than the {limit:g} s that are allowed to decode it"
            raise ApiError(422, what, param=param, code="too_slow") from None
        finally:
            if not ended:
                DECODERS.end(job)


@contextmanager
def _memory(name: str) -> Iterator[int]:
    """A file in memory alone."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def within(seconds: float, work: Awaitable[T]) -> T:
    """``asyncio.wait_for``, which before Python 3.12 forgets a cancellation that comes when the work is done."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})  # until nobody looks at the descriptor, whose number is given again


async def _in_thread(work: Callable[[], T]) -> T:
    """What a thread finds, which is waited for even where nobody wants it: it uses descriptors."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _written(file: int, data: bytes) -> str:
    """Writes a file to memory that nobody can change, and says its sha256."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return hashlib.sha256(data).hexdigest()


def _read(report: bytes, capacity: int, param: str | None) -> tuple[int, tuple[str, ...]]:
    """(samples, problems) of a report, which a file may have made its decoder write."""
    try:
        said = json.loads(report)
        if "error" in said:
            status, error = int(said["status"]), _plain(said["error"])
            raise ApiError(status if status in (413, 415) else 422, error, param=param)
        count, problems = int(said["samples"]), tuple(_plain(one) for one in said["problems"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        what = "the recording cannot be decoded: its decoder has ended early"
        raise ApiError(422, what, param=param, code="decoder_ended") from None
    if not MIN_SAMPLES <= count <= capacity:
        raise ApiError(422, f"the recording cannot be decoded: {count} samples", param=param)
    return count, problems


def _plain(said: Any) -> str:
    return "".join(one if one.isprintable() else "?" for one in str(said))[:600]


def _samples(
    room: int, count: int, dtype: torch.dtype, param: str | None
) -> tuple[torch.Tensor, list[bytes], mmap.mmap]:
    """The samples, which nobody can change, the digest of each window, and what lives as long as the samples do.

    They are hashed here: a decoder that a file has taken over could say the digest of somebody else's window, whose
    features it would then get or spoil.
    """
    try:
        fcntl.fcntl(room, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    except OSError:
        raise ApiError(422, "the recording cannot be decoded: its decoder has not ended", param=param) from None
    width = torch.empty(0, dtype=dtype).element_size()
    mapped = mmap.mmap(room, count * width, access=mmap.ACCESS_COPY)
    pcm = torch.frombuffer(mapped, dtype=dtype, count=count)
    return pcm, digests_of(windows_of([pcm])), mapped
