"""Decodes recordings of which nobody knows where they come from: each in a process that has nothing to lose.

``python -m afn_model.serve.intake_worker FD`` imports the decoders once and waits. For each recording it makes a copy
of itself, which sees the bytes of that recording alone, can open nothing, and is gone after it; a copy costs 20 ms of a
CPU, importing a second. FD is a socket of packets: a job in JSON with three descriptors (the file, room for its
samples, where to report), or the number of one to be ended.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import resource
import select
import signal
import socket
import sys
import warnings
from contextlib import suppress
from typing import Any

BEGUN = b"+"  # the first byte of a report
REPORT = 4096  # bytes of a report, at most
NAME = "the recording"
RATES = (8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # whose filters are ready
_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38  # linux/prctl.h


def main(descriptor: int) -> None:
    """Serves until the other end of the socket is closed."""
    control = socket.socket(fileno=descriptor)
    warm_up()
    gc.collect()
    gc.freeze()  # so that copies share it
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control], [], [], 0.2 if children else None)
        for job, pid in list(children.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del children[job]
        if not ready:
            continue
        packet, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 3)
        if not packet:
            break
        said = json.loads(packet)
        if not descriptors and said["end"] in children:
            os.kill(children[said["end"]], signal.SIGKILL)
        elif descriptors:
            pid = os.fork()
            if not pid:
                control.close()
                _decode_and_exit(said, *descriptors)
            children[said["job"]] = pid
        for one in descriptors:
            os.close(one)
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)


def warm_up() -> None:
    """Imports and computes what every recording needs."""
    import av  # noqa: F401
    import soundfile
    import torch

    from afn_model.audio.decode import stream_audio
    from afn_model.audio.source import AudioSource

    torch.set_num_threads(1)  # a copy has no threads but its own
    for rate in RATES:
        header = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0" + rate.to_bytes(4, "little")
        header += (2 * rate).to_bytes(4, "little") + b"\2\0\x10\0data" + rate.to_bytes(4, "little")
        for _ in stream_audio(AudioSource(NAME, header + bytes(rate)), dtype=torch.int16):
            pass
    with suppress(soundfile.SoundFileError):
        soundfile.SoundFile(os.devnull)


def limit(memory: int, seconds: int) -> None:
    """Takes from this process, for good, whatever it does not need: it can use ``memory`` more bytes and ``seconds`` of
    a CPU, and can open, send, write and start nothing."""
    with open("/proc/self/statm") as file:
        there = int(file.read().split()[0]) * mmap.PAGESIZE
    libc = ctypes.CDLL(None)
    libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    limits = {"AS": there + memory, "CPU": seconds, "FSIZE": 0, "CORE": 0, "NPROC": 0, "NOFILE": 0}
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def _decode_and_exit(job: dict[str, Any], file: int, room: int, report: int) -> None:
    """What a copy does; it never returns."""
    try:
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        said = socket.socket(fileno=report)
        said.send(BEGUN)
        data, samples = mmap.mmap(file, 0, access=mmap.ACCESS_READ), mmap.mmap(room, 0)
        for one in (file, room, silent):
            os.close(one)
        limit(job["memory"], job["seconds"])
        said.sendall(json.dumps(_decoded(job, data, samples)).encode()[:REPORT])
    finally:
        os._exit(0)


def _decoded(job: dict[str, Any], data: mmap.mmap, samples: mmap.mmap) -> dict[str, Any]:
    """Writes samples, and says how many they are or why there are none."""
    import torch

    from afn_model.audio.decode import NotAudioError, TooLongError, stream_audio
    from afn_model.audio.source import AudioSource

    dtype = getattr(torch, job["dtype"])
    wanted = {name: job[name] for name in ("start", "end", "max_seconds")}
    out, count = torch.frombuffer(samples, dtype=dtype), 0
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for block in stream_audio(AudioSource(NAME, data), dtype=dtype, **wanted):
                out[count : count + len(block)] = block
                count += len(block)
        problems = [str(one.message).removeprefix(f"{NAME}: ")[:300] for one in found]
        return {"samples": count, "problems": problems[:4]}
    except TooLongError:
        return {"status": 413, "error": f"{NAME} is longer than the {job['max_seconds']:g} s that are allowed"}
    except NotAudioError as error:
        return {"status": 415, "error": f"{NAME} is {error}"[:500]}
    except ValueError as error:
        said = str(error)
        return {"status": 422, "error": (said if said.startswith(NAME) else f"{NAME}: {said}")[:500]}
    except Exception as error:
        return {"status": 422, "error": f"{NAME} cannot be decoded ({type(error).__name__})"}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(int(sys.argv[1]))
