"""Tar shards: what is written is read back by name, by anybody's tar and from anybody's, and damage is said."""

import io
import os
import tarfile
import threading

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio import shards
from afn_model.audio.shards import ShardWriter, index_path, is_member, read_member
from tests import tiny
from tests.tiny import conversation

DATA = {f"a/{i}.bin": os.urandom(700 * i) for i in range(20)} | {"é" * 150: b"long name", "empty": b""}


@pytest.fixture
def written(tmp_path):
    """Name → path of every member."""
    with ShardWriter(tmp_path / "shards", "x", 50_000) as writer:
        return {name: str(tmp_path / writer.add(name, data)) for name, data in DATA.items()}


def test_members_come_back(written, tmp_path):
    for name, path in written.items():
        assert is_member(path)
        assert read_member(path) == DATA[name]
    tars = sorted((tmp_path / "shards").glob("*.tar"))
    assert [tar.name for tar in tars] == [f"x-{i:05d}.tar" for i in range(len(tars))]
    assert len(tars) > 1
    assert all(tar.stat().st_size <= 50_000 + 10_240 for tar in tars), "but for the padding at the end"
    found = {}
    for tar in tars:
        with tarfile.open(tar) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    assert found == DATA


def test_a_tar_file_of_others_is_indexed_when_read(tmp_path):
    tar = tmp_path / "theirs.tar"
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in DATA.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for name, data in DATA.items():
        assert read_member(f"{tar}#{name}") == data
    assert os.path.isfile(index_path(tar))
    shards._open_shard.cache_clear()
    with tarfile.open(tar, "a") as archive:
        member = tarfile.TarInfo("later")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"new"))
    os.utime(tar, (2e9, 2e9))
    assert read_member(f"{tar}#later") == b"new", "a stale index is made anew"
    os.remove(index_path(tar))
    os.mkdir(index_path(tar))
    shards._open_shard.cache_clear()
    assert read_member(f"{tar}#later") == b"new", "an index that cannot be kept costs only that"


def test_threads_and_forks_read_alike(written):
    wrong = []

    def read_all():
        wrong.extend(name for name, path in written.items() if read_member(path) != DATA[name])

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    child = os.fork()
    if not child:
        read_all()
        os._exit(len(wrong))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_is_wrong_is_said(written, tmp_path):
    path = next(iter(written.values()))
    with pytest.raises(ValueError, match=r"gone\.tar#a: no file .*gone\.tar"):
        read_member(str(tmp_path / "gone.tar#a"))
    with pytest.raises(ValueError, match=r"x-00000\.tar: no member 'nothing' among its \d+"):
        read_member(path.partition("#")[0] + "#nothing")
    (tmp_path / "no.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(ValueError, match=r"no\.tar: not an uncompressed tar file"):
        read_member(str(tmp_path / "no.tar#a"))
    whole = tmp_path / "shards" / "x-00000.tar"
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"cut\.tar: (truncated|not an uncompressed tar file)"):
        read_member(str(tmp_path / "cut.tar#a/1.bin"))


def test_nothing_unfinished_is_left(tmp_path):
    def fail():
        with ShardWriter(tmp_path, "x", 10_000) as writer:
            writer.add("a", b"1")
            writer.add("a", b"2")

    with pytest.raises(ValueError, match="a second recording named 'a'"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with ShardWriter(tmp_path / "deep" / "shards", "x", 1000, relative_to=tmp_path) as writer:
        assert writer.add("a", b"1") == "deep/shards/x-00000.tar#a"


def test_the_processor_reads_members(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000, format="FLAC")
    (tmp_path / "a.flac").write_bytes(file.getvalue())
    with ShardWriter(tmp_path / "shards", "x", 10**6) as writer:
        path = str(tmp_path / writer.add("a.flac", file.getvalue()))
    processor = tiny.processor()
    batch, other = (processor(conversation("What?", source)) for source in (path, str(tmp_path / "a.flac")))
    assert torch.equal(batch.pcm, other.pcm)
    with pytest.raises(ValueError, match=r"x-00000\.tar: no member 'b\.flac'"):
        processor(conversation("What?", path.replace("a.flac", "b.flac")))
