"""Workers that decode: what goes wrong in one of them reaches the trainer."""

import gc
import json
import resource
import signal

import pytest

from afn_model import storage
from afn_model.data import decode
from afn_model.data import loader as loader_module
from afn_model.data.decode import SampleDecoder
from afn_model.data.index import build
from afn_model.data.loader import DataConfig, Loader
from tests import tiny
from tests.corpora import clip


@pytest.fixture
def loader(tmp_path, monkeypatch):
    """A loader with one worker; a trainer that waits for ever is told so."""
    said = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "messages": said}) + "\n" for i in range(8)))
    build(path)
    config = DataConfig({"texts": path}, {"texts": 1.0}, seed=0, context=256, bins=1, max_seconds=30.0, chunk=8)

    def hangs(*_):
        raise AssertionError("the trainer waits for what never comes")

    earlier = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    yield Loader(config, tiny.processor(), workers=1)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


def test_no_room_in_shared_memory_is_one_line(loader, monkeypatch):
    begin = loader_module._begin_worker

    def begin_without_room(number):
        begin(number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))  # which shared memory counts for

    monkeypatch.setattr(loader_module, "_begin_worker", begin_without_room)
    with pytest.raises(ValueError, match=r"^a micro-batch of [\d.]+ MB does not fit into shared memory[^\n]*$"):
        next(iter(loader)).micro  # noqa: B018


def test_workers_collect_garbage_where_the_trainer_does_so_itself(loader, monkeypatch):
    def said(*_):
        raise ValueError(f"collects: {gc.isenabled()}")

    monkeypatch.setattr(SampleDecoder, "decode", said)
    enabled = gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(ValueError, match=r"^collects: True$"):
            next(iter(loader)).micro  # noqa: B018
    finally:
        if enabled:
            gc.enable()


def test_an_outage_of_storage_leaves_no_sample_out(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec", reason="fsspec reads what lies in storage")
    system, answers = fsspec.filesystem("memory"), []
    path = tmp_path / "c.jsonl"
    said = [{"role": "user", "content": "<sound>One?"}, {"role": "assistant", "content": "Two."}]
    record = {"id": "a", "audios": ["memory://outage/a.flac"], "messages": said, "duration": 0.5}
    path.write_text(json.dumps(record) + "\n")
    build(path)
    system.pipe_file("memory://outage/a.flac", clip(0.5))
    real = type(system).cat_file

    def cat_file(self, path, start=None, end=None, **options):
        if answers.pop(0) is False:
            raise ConnectionResetError("lost")
        return real(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    monkeypatch.setattr(storage, "WAITS", ())
    monkeypatch.setattr(decode, "_OUTAGES", (0.0, 0.0))
    config = DataConfig({"c": path}, {"c": 1.0}, seed=0, context=256, bins=1, max_seconds=30.0, chunk=8)
    answers[:] = [False, False, True]
    micro = next(iter(Loader(config, tiny.processor()))).micro[0]
    assert ([sample.id for sample in micro.samples], micro.bad) == (["a"], [])
    answers[:] = [False] * 3
    with pytest.raises(ValueError, match=r"^memory://outage/a\.flac: cannot be read \(ConnectionResetError: lost\)$"):
        next(iter(Loader(config, tiny.processor()))).micro  # noqa: B018
