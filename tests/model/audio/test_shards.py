"""Tar shards: what is written is read back by name, by anybody's tar and from anybody's, and damage is said."""

import hashlib
import io
import os
import subprocess
import tarfile
import threading

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio import shards
from afn_model.audio.shards import ShardWriter, index_places, is_member, read_member
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


def test_a_tar_file_of_others_is_indexed_when_read(tmp_path, monkeypatch):
    tar = tmp_path / "theirs.tar"
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in DATA.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for name, data in DATA.items():
        assert read_member(f"{tar}#{name}") == data
    assert os.path.isfile(index_places(tar)[0])
    shards._open_archive.cache_clear()
    with tarfile.open(tar, "a") as archive:
        member = tarfile.TarInfo("later")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"new"))
    assert read_member(f"{tar}#later") == b"new", "a stale index is made anew"
    beside = index_places(tar)[0]
    beside.unlink()
    beside.mkdir()
    for cache in ("cache", "theirs.tar/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        shards._open_archive.cache_clear()
        assert read_member(f"{tar}#later") == b"new", "an index that cannot be kept costs only that"
    assert [file.name[16:] for file in (tmp_path / "cache/afn/index").iterdir()] == ["-theirs.tar.index"]


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


def pack(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("edges", "seconds"), [(False, -3600), (False, 0), (False, 3600), (True, -3600), (True, 3600)])
def test_a_shard_that_was_replaced_is_read_anew(tmp_path, edges, seconds):
    """Equal sizes, another order: by a time that is older or newer, or where that is equal by its first member."""
    clips = [("low.wav", b"l" * 900), ("high.wav", b"h" * 900)]
    first, last = ([("first", b"f")], [("last", b"l")]) if edges else ([], [])
    tar = pack(tmp_path / "x.tar", first + clips + last)
    assert read_member(f"{tar}#low.wav") == b"l" * 900
    before = os.stat(tar)
    other = pack(tmp_path / "other.tar", first + clips[::-1] + last)
    written = before.st_mtime_ns + seconds * 10**9
    os.utime(other, ns=(written, written))
    os.replace(other, tar)
    assert os.stat(tar).st_size == before.st_size
    shards._open_archive.cache_clear()  # as in a new process
    assert read_member(f"{tar}#low.wav") == b"l" * 900
    assert read_member(f"{tar}#high.wav") == b"h" * 900


def damages(index, size):
    """Indexes that are forged or damaged."""
    header, one = index[:-24], shards.MEMBERS
    yield b""
    yield index[:50]
    yield index[:-1]
    yield index + b"x"
    yield index[:-8] + (1 << 62).to_bytes(8, "little")
    yield b"afntar1\n" + index[8:]
    head = shards._HEADER
    for row in ((0, -7, 5), (0, 0, 1 << 62), (0, size - 1, 100), (0, 1 << 62, 1 << 62), (0, 5, -5)):
        body = np.array([row], one).tobytes()
        magic, *state, edges, digest, _ = head.unpack(header[: head.size])
        yield head.pack(magic, *state, edges, digest, hashlib.sha256(body).digest()) + body
    magic, size, written, _, edges, digest, content = head.unpack(header[: head.size])
    yield head.pack(magic, size, written, 1 << 62, edges, digest, content) + index[head.size :]
    yield head.pack(magic, size, written, -1, edges, digest, content) + index[head.size :]


def test_a_damaged_index_is_made_again(tmp_path):
    tar = pack(tmp_path / "x.tar", [("a", b"data" * 100)])
    assert read_member(f"{tar}#a") == b"data" * 100
    index = index_places(tar)[0].read_bytes()
    forged = list(damages(index, os.path.getsize(tar)))
    assert len(forged) == 13
    for data in forged:
        index_places(tar)[0].write_bytes(data)
        shards._open_archive.cache_clear()
        assert read_member(f"{tar}#a") == b"data" * 100
        assert index_places(tar)[0].read_bytes() == index
    with open(index_places(tar)[0], "wb") as file:
        file.truncate(1 << 40)  # a file of holes, more than there is memory
    shards._open_archive.cache_clear()
    assert read_member(f"{tar}#a") == b"data" * 100


@pytest.mark.parametrize("kind", ["gnu", "posix"])
def test_sparse_members_are_refused(tmp_path, kind):
    """Their bytes lie in the file without the holes."""
    with open(tmp_path / "hole.wav", "wb") as file:
        file.write(b"a" * 8192)
        file.seek(1 << 20)
        file.write(b"b" * 8192)
    (tmp_path / "next.wav").write_bytes(b"n" * 5000)
    made = ["tar", "-S", f"--format={kind}", "-cf", "x.tar", "hole.wav", "next.wav"]
    subprocess.run(made, cwd=tmp_path, check=True)
    tar = tmp_path / "x.tar"
    assert os.path.getsize(tar) < 1 << 19, "it was stored without its holes"
    with pytest.raises(
        ValueError, match=r"x\.tar: member 'hole\.wav' is sparse; write the file again, without tar's -S"
    ):
        read_member(f"{tar}#hole.wav")
    assert read_member(f"{tar}#next.wav") == b"n" * 5000
    shards._open_archive.cache_clear()
    with pytest.raises(ValueError, match="is sparse"):
        read_member(f"{tar}#hole.wav")


def test_forged_headers_are_one_line(tmp_path):
    """Sizes beyond all memory, in a header and in an extended one."""
    huge = tarfile.TarInfo("a")
    huge.size = 1 << 60
    (tmp_path / "size.tar").write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    huge.type = tarfile.XHDTYPE
    (tmp_path / "pax.tar").write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 512
    (tmp_path / "deep.tar").write_bytes((huge.tobuf(tarfile.GNU_FORMAT) + b"a" * 512) * 5000)
    for name in ("size", "pax", "deep"):
        with pytest.raises(ValueError, match=rf"{name}\.tar: ") as error:
            read_member(str(tmp_path / f"{name}.tar#a"))
        assert "\n" not in str(error.value)


def test_the_index_lies_elsewhere_where_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("AFN_INDEX_DIR", str(tmp_path / "indexes"))
    tar = pack(tmp_path / "x.tar", [("a", b"1")])
    assert read_member(f"{tar}#a") == b"1"
    assert not os.path.exists(f"{tar}.index")
    assert [file.name[16:] for file in (tmp_path / "indexes").iterdir()] == ["-x.tar.index"]
