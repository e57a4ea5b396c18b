"""A step is a stream: its first micro-batch waits for no other, and what is queued holds few file descriptors."""

import itertools
import json
import multiprocessing
import os
import resource

import pytest
import torch

from afn_distributed.comm import in_threads, virtual_group
from afn_model.data.decode import SampleDecoder
from afn_model.data.index import build
from afn_model.data.loader import DataConfig, Loader
from afn_model.data.micro_batch import GlobalBatch, MicroBatch
from afn_model.data.plan import Position
from tests import tiny

QUEUED = 128


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    talk = [{"from": "human", "value": "<sound>\nWhat is said?"}, {"from": "gpt", "value": "A dog barks."}]
    for i in range(8):
        tiny.record(folder / f"{i}.wav", 0.5, i, rate=16_000)
    lines = [{"id": str(i), "sound": f"{i % 8}.wav", "duration": 0.5, "conversations": talk} for i in range(QUEUED)]
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build(path)
    return path


def loader(corpus, bins, workers=0, group=None):
    config = DataConfig({"c": corpus}, {"c": 1}, seed=0, context=128, bins=bins, max_seconds=1.0, chunk=QUEUED)
    return Loader(config, tiny.processor(), workers=workers, group=group)


@pytest.mark.parametrize("bins", [2, 64])
def test_the_first_micro_batch_waits_for_no_other(corpus, monkeypatch, bins):
    decoded = []
    plain = SampleDecoder.decode
    monkeypatch.setattr(SampleDecoder, "decode", lambda self, job: decoded.append(job) or plain(self, job))
    step = next(iter(loader(corpus, bins)))
    micro = next(iter(step))
    assert len(decoded) == 1
    assert (len(step), len(micro.samples), step.supervised > 0) == (bins, 1, True)
    assert [len(one.samples) for one in step.micro] == [1] * (bins - 1), "those that were not read yet"
    assert len(decoded) == bins


def test_what_could_not_be_used_is_complete_once_all_were_read():
    stream = (MicroBatch(None, [], [""], [(f"c[{i}]", "torn")], cut=i, dropped=[("x", "long")]) for i in range(3))
    step = GlobalBatch(stream, Position(), 3, count=3)
    for number, micro in enumerate(step.through(lambda micro: micro), 1):
        micro.bad.append(("later", "no rewards"))
        assert len(step.bad) == 2 * number
    assert (step.cut, step.dropped, len(step)) == (3, 3, 3)
    late = GlobalBatch(iter([]), Position(), 3, count=3)
    with pytest.raises(AssertionError, match="before the next step"):
        list(late)


def hold(corpus, send):
    """The file descriptors of a process that holds so many micro-batches, beside those it had before."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before = len(os.listdir("/proc/self/fd"))
    step = next(iter(loader(corpus, QUEUED, workers=1)))
    kept = step.micro
    send.send((len(kept), len(os.listdir("/proc/self/fd")) - before))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts /proc/self/fd")
def test_micro_batches_that_are_kept_hold_a_file_descriptor_each(corpus):
    here, there = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=hold, args=(corpus, there))
    process.start()
    assert here.poll(60)
    held, descriptors = here.recv()
    process.join(10)
    assert held == QUEUED
    assert descriptors <= QUEUED + 40, "and some pipes to the workers"


def test_ranks_that_share_sequences_decode_each_micro_batch_once(corpus, monkeypatch):
    """One of them has its samples, the others all else, and steps of fewer micro-batches than ranks do no harm."""
    decoded = []
    plain = SampleDecoder.decode
    monkeypatch.setattr(SampleDecoder, "decode", lambda self, job: decoded.append(job) or plain(self, job))
    alone = [one for step in itertools.islice(loader(corpus, 2), 4) for one in step.micro]
    ranks = virtual_group(3)
    count = len(decoded)

    def work(rank):
        shared = itertools.islice(loader(corpus, 2, group=ranks[rank]), 4)
        return [one for step in shared for one in step.micro]

    parts = in_threads(work, 3)
    assert count <= len(decoded) - count <= count + 2, "and some ahead"
    for number, (whole, *ones) in enumerate(zip(alone, *parts, strict=True)):
        assert [one.source for one in ones] == [number % 3] * 3
        for rank, one in enumerate(ones):
            assert torch.equal(one.batch.input_ids, whole.batch.input_ids)
            assert torch.equal(one.batch.samples, whole.batch.samples)
            assert torch.equal(one.batch.pcm, whole.batch.pcm if rank == number % 3 else whole.batch.pcm[:0])
            assert [sample.id for sample in one.samples] == [sample.id for sample in whole.samples]


def test_ranks_that_share_sequences_all_hear_of_a_failure(corpus, monkeypatch):
    def fails(*_):
        raise ValueError("no room")

    monkeypatch.setattr(SampleDecoder, "decode", fails)
    ranks = virtual_group(3)

    def work(rank):
        with pytest.raises(ValueError, match=r"^no room$"):
            next(iter(loader(corpus, 2, group=ranks[rank]))).micro  # noqa: B018
        return rank

    assert in_threads(work, 3) == [0, 1, 2]
