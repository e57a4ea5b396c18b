"""Recordings are decoded as ``load_audio`` decodes them, in processes that are watched, ended and replaced."""

import asyncio
import json
import os
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from afn_model.audio.decode import load_audio
from afn_model.audio.digests import window_digest, windows_of
from afn_model.serve import intake
from afn_model.serve.errors import ApiError
from afn_model.serve.intake import DECODERS, Intake
from afn_model.serve.settings import Settings
from tests.model.serve.hostile import playlists, silence, sound, wav_of


@pytest.fixture(scope="module", autouse=True)
def started():
    DECODERS.start()


def decoded(data: bytes, dtype=torch.int16, settings: Settings | None = None, **options):
    return asyncio.run(Intake(settings or Settings(), dtype).decode(data, **options))


def refused(data: bytes, settings: Settings | None = None, **options) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decoded(data, settings=settings, **options)
    return caught.value


def decoders() -> list[int]:
    """Processes that decode now: what they may do is limited already."""
    maker, found = DECODERS.process.pid, []
    for pid in Path(f"/proc/{maker}/task/{maker}/children").read_text().split():
        with suppress(OSError):  # it has ended meanwhile
            ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not ended and re.search(r"Max open files +0 ", Path(f"/proc/{pid}/limits").read_text()):
                found.append(int(pid))
    return found


async def until(condition):
    end = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
    return found


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_samples_are_those_of_load_audio(dtype):
    for container, rate, channels, seconds in (
        ("FLAC", 44_100, 2, 1.0),
        ("WAV", 16_000, 1, 31.0),
        ("MP3", 48_000, 1, 3.0),
    ):
        data = sound(seconds, rate, channels, container)
        found, alone = decoded(data, dtype), load_audio(data, dtype=dtype)
        assert torch.equal(found.pcm, alone)
        assert found.pcm.dtype == dtype
        assert found.digests == tuple(window_digest(window) for window in windows_of([alone]))
        assert len(found.digests) == 1 + (seconds > 30)
    part = decoded(data, dtype, start=1.25, end=2.5)
    assert torch.equal(part.pcm, load_audio(data, start=1.25, end=2.5, dtype=dtype))
    assert part.id == f"{found.id}@1.25-2.5"


def test_parts_whose_ends_differ_by_little_have_ids_of_their_own():
    data = sound(2.0)
    assert decoded(data, start=1.0000001).id != decoded(data, start=1.0000002).id


def test_a_recording_is_as_long_as_is_allowed_and_no_longer():
    assert len(decoded(sound(2.0), max_seconds=2.0).pcm) == 32_000
    error = refused(sound(2.001), max_seconds=2.0, param="file")
    assert (error.status, error.param) == (413, "file")
    assert str(error) == "the recording is longer than the 2 s that are allowed"
    assert refused(sound(2.001), Settings(max_seconds=2.0)).status == 413


def test_eight_hours_of_silence_in_three_megabytes_are_refused_while_they_are_decoded():
    data = silence(8 * 3600)
    assert len(data) < 4 << 20
    assert refused(data, max_seconds=60.0).status == 413


def test_what_is_no_sound_or_a_damaged_one():
    assert refused(b"no sound").status == 415
    assert refused(b"").status == 422
    assert refused(sound()[:-5000]).status == 422
    assert refused(sound(), start=7.0).status == 422
    assert refused(sound(), start=float("nan")).status == 422
    found = decoded(sound(container="MP3")[:-30])
    assert found.problems == ("its last frame is incomplete; what is there is used",)


def test_what_tells_a_player_to_open_something_else_opens_nothing(tmp_path):
    (tmp_path / "there.wav").write_bytes(sound())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        web = f"http://127.0.0.1:{listening.getsockname()[1]}/there.wav"
        for target in (f"file://{tmp_path}/there.wav", web):
            for name, data in playlists(target):
                assert refused(data).status == 415, name
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_a_decoder_that_takes_too_long_is_ended():
    async def asked():
        await until(lambda: not decoders())
        task = asyncio.create_task(Intake(Settings(decode_seconds=1.0)).decode(silence(1000), param="file"))
        (pid,) = await until(decoders)
        os.kill(pid, signal.SIGSTOP)  # it will not end by itself
        with pytest.raises(ApiError, match=r"takes more than the 1 s that are allowed") as caught:
            await task
        assert (caught.value.status, caught.value.code, caught.value.param) == (422, "too_slow", "file")
        await until(lambda: not decoders())

    asyncio.run(asked())


def test_a_decoder_that_takes_too_much_memory_is_refused_it(monkeypatch):
    body = bytes(range(256)) * (2 * 24_000)  # 3 s, as float32 49 MB
    data = wav_of(body, channels=512, align=512, bits=8, rate=8000, bytes=512 * 8000)
    monkeypatch.setattr(intake, "MEMORY", 1 << 16)
    assert refused(data).status == 422
    monkeypatch.undo()
    assert len(decoded(data).pcm) == 48_000


def test_a_decoder_that_is_killed_takes_nothing_with_it():
    async def asked():
        await until(lambda: not decoders())
        of = Intake(Settings())
        doomed = asyncio.create_task(of.decode(silence(8 * 3600), max_seconds=8 * 3600))
        (pid,) = await until(decoders)
        good = asyncio.create_task(of.decode(sound()))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ApiError) as caught:
            await doomed
        assert (caught.value.status, caught.value.code) == (422, "decoder_ended")
        assert len((await good).pcm) == 8000
        assert (of.waiting, of.bytes) == (0, 0)

    asyncio.run(asked())


def test_what_nobody_waits_for_is_ended_at_once():
    async def asked():
        await until(lambda: not decoders())
        of = Intake(Settings(decoders=1))
        task = asyncio.create_task(of.decode(silence(8 * 3600), max_seconds=8 * 3600))
        (pid,) = await until(decoders)
        behind = asyncio.create_task(of.decode(sound()))
        os.kill(pid, signal.SIGSTOP)  # it will not end by itself
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len((await behind).pcm) == 8000
        await until(lambda: pid not in decoders())
        assert Path(f"/proc/{DECODERS.process.pid}").exists()

    decoded(sound())
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(asked())
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_so_many_wait():
    async def asked():
        of = Intake(Settings(decoders=1, max_requests=3))
        found = await asyncio.gather(*(of.decode(sound()) for _ in range(5)), return_exceptions=True)
        assert [getattr(one, "status", 200) for one in found] == [200, 200, 200, 429, 429]
        assert found[3].retry_after
        few = Intake(Settings(max_requests=3, max_body_bytes=len(sound()) // 4))
        found = await asyncio.gather(few.decode(sound()), few.decode(sound()), return_exceptions=True)
        assert [getattr(one, "status", 200) for one in found] == [200, 429]

    asyncio.run(asked())


def test_the_process_that_makes_decoders_is_started_again_and_knows_no_secrets():
    decoded(sound())
    first = DECODERS.process
    names = {line.partition("=")[0] for line in Path(f"/proc/{first.pid}/environ").read_text().split("\0")}
    assert names <= {*intake.PASSED_ON, "PYTHONPATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", ""}
    os.kill(first.pid, signal.SIGKILL)
    assert len(decoded(sound()).pcm) == 8000
    assert DECODERS.process is not first


@pytest.mark.parametrize(
    "report",
    [
        b"",
        b"\x80\x04K\x01.",
        b"[" * 4000,
        b'{"samples": 1e400, "problems": []}',
        b'{"samples": -5, "problems": []}',
        b'{"samples": 100001, "problems": []}',
        b'{"samples": 320, "problems": []}',
        b'{"samples": 1000}',
        b'{"error": "x"}',
        b'{"error": "x", "status": []}',
        b"7",
    ],
)
def test_what_a_decoder_says_is_not_believed(report):
    with pytest.raises(ApiError) as caught:
        intake._read(report, 100_000, "file")
    assert (caught.value.status, caught.value.param) == (422, "file")


def test_errors_of_a_decoder_are_its_files_fault_and_one_line():
    said = json.dumps({"error": "a\nb\x1b[2J" + "c" * 900, "status": 500}).encode()
    with pytest.raises(ApiError) as caught:
        intake._read(said, 100_000, None)
    assert caught.value.status == 422
    assert str(caught.value).startswith("a?b?[2Jccc")
    assert len(str(caught.value)) <= 600
