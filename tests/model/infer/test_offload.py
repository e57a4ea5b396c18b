"""Pages in host memory and in files come back bit for bit, or not at all."""

import errno
import hashlib
import json
import os
import threading
import time
import warnings

import pytest
import torch

from afn_model.infer import offload
from afn_model.infer.offload import STALE, WRITING, HostPages, page_folder
from afn_model.infer.pages import page_key

SHAPE = (2, 2, 4, 1, 3)
BYTES = 48 * 4


def page(dtype=torch.float32):
    """Any bits, those that are not numbers too."""
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (*SHAPE[:-1], SHAPE[-1] * size), dtype=torch.uint8).view(dtype)


def same(one, other):
    return one is not None and one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def chain(count):
    """Keys, contents and payloads of pages one behind another."""
    keys, contents = [b""], [b"%d" % number for number in range(count)]
    for content in contents:
        keys.append(page_key(keys[-1], content))
    return list(zip(keys[1:], contents, [page() for _ in contents], strict=True))


def file_of(folder, key):
    return folder / f"{key.hex()}.page"


def file_bytes(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def written(folder, pages):
    """A folder that a process has left with these pages."""
    host = HostPages(0, folder, 1 << 20)
    for one in pages:
        host.save(*one)
    host.close()


def test_memory_keeps_what_was_used_last():
    pages = chain(3)
    (first, first_content, payload), (second, *_), (third, *_) = pages
    host = HostPages(2 * BYTES)
    source = payload.clone()
    host.save(first, first_content, source)
    source.zero_()
    host.save(*pages[1])
    assert same(host.load(first, first_content), payload)
    host.save(*pages[2])
    assert (first in host, second in host, third in host) == (True, False, True)
    assert host.bytes == 2 * BYTES
    host.save(first, first_content, payload)
    host.save(*pages[1])
    assert (first in host, second in host, third in host) == (True, True, False)
    assert host.load(third, b"2") is None


def test_of_a_chain_that_came_back_the_end_leaves_first():
    pages, host = chain(4), HostPages(3 * BYTES)
    for one in pages[:3]:
        host.save(*one)
    assert len(host.load_run([(key, content) for key, content, _ in pages])) == 3
    host.save(*pages[3])
    assert [key in host for key, *_ in pages] == [True, True, False, True]


def test_the_content_is_compared_in_memory():
    (key, content, payload), (_, _, other) = chain(2)
    host = HostPages(4 * BYTES)
    host.save(key, content, payload)
    assert host.load(key, b"another") is None
    host.save(key, b"another", other)
    assert host.load(key, content) is None
    assert same(host.load(key, b"another"), other)
    assert host.bytes == BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64])
def test_files_hold_every_bit(tmp_path, device, dtype):
    all_pages = torch.stack([page(dtype) for _ in range(3)], dim=2).to(device)  # [layers, 2, pages, PAGE, ...]
    expected = all_pages[:, :, 1].cpu().clone()
    for capacity in (0, 1 << 20):
        folder = tmp_path / str(capacity)
        host = HostPages(capacity, folder, 1 << 20, device=str(device))
        host.save(b"key", b"content", all_pages[:, :, 1])
        all_pages[:, :, 1].zero_()
        assert same(host.load(b"key", b"content"), expected)
        host.close()
        again = HostPages(0, folder, 1 << 20)
        assert b"key" in again
        assert same(again.load(b"key", b"content"), expected)
        again.close()
        all_pages[:, :, 1] = expected.to(device)


def test_memory_overflows_into_the_folder_and_the_oldest_files_leave(tmp_path):
    pages = chain(6)
    written(tmp_path / "another" / "pages", pages[:1])
    size = file_bytes(tmp_path / "another" / "pages")
    folder = tmp_path / "pages"
    host = HostPages(2 * BYTES, folder, 3 * size)
    for one in pages[:5]:  # 3 and 4 stay in memory
        host.save(*one)
    assert same(host.load(*pages[0][:2]), pages[0][2])  # 3 leaves memory for it, and 1 the folder
    assert [key in host for key, *_ in pages] == [True, False, True, True, True, False]
    host.close()
    # 0 is in the folder already; 4 takes the place of 2.
    assert sorted(folder.iterdir()) == sorted(file_of(folder, pages[number][0]) for number in (0, 3, 4))
    assert host.disk.bytes == file_bytes(folder) == 3 * size


def test_a_restart_keeps_the_files_and_their_order(tmp_path):
    pages = chain(4)
    written(tmp_path, pages[:3])
    size = file_bytes(tmp_path) // 3
    for number, (key, *_) in enumerate(pages[:3]):
        os.utime(file_of(tmp_path, key), ns=(number * 10**9, number * 10**9))
    host = HostPages(0, tmp_path, 3 * size)
    assert host.disk.bytes == 3 * size
    assert same(host.load(*pages[0][:2]), pages[0][2])
    host.close()
    host = HostPages(0, tmp_path, 3 * size)
    host.save(*pages[3])
    host.close()
    assert [key in host for key, *_ in pages] == [True, False, True, True]
    smaller = HostPages(0, tmp_path, size)
    assert len(list(tmp_path.iterdir())) == 1
    assert pages[3][0] in smaller


def test_close_may_leave_memory_unwritten(tmp_path):
    host = HostPages(4 * BYTES, tmp_path, 1 << 20)
    host.save(*chain(1)[0])
    host.close(keep=False)
    assert not list(tmp_path.iterdir())
    assert host.bytes == 0


def flip(place):
    def damage(file):
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)

    return damage


def sealed(change):
    """A file with another JSON object and a right checksum."""

    def damage(file):
        data = file.read_bytes()
        end = 36 + int.from_bytes(data[32:36], "little")
        text = change(json.loads(data[36:end])).encode().ljust(end - 36)
        body = len(text).to_bytes(4, "little") + text + data[end:]
        file.write_bytes(hashlib.sha256(body).digest() + body)

    return damage


DAMAGE = {
    "digest": flip(3),
    "length": flip(33),
    "object": flip(50),
    "last value": flip(-1),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "a digest only": lambda file: file.write_bytes(file.read_bytes()[:32]),
    "empty": lambda file: file.write_bytes(b""),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "a folder": lambda file: (file.unlink(), file.mkdir(), (file / "kept").touch()),
    "another folder's": sealed(lambda facts: json.dumps(facts | {"folder": "pages-of-another-model"})),
    "another key's": sealed(lambda facts: json.dumps(facts | {"key": "00"})),
    "another content": sealed(lambda facts: json.dumps(facts | {"content": "00"})),
    "a content that is none": sealed(lambda facts: json.dumps(facts | {"content": "0"})),
    "another shape": sealed(lambda facts: json.dumps(facts | {"shape": [1, 2]})),
    "a shape that is none": sealed(lambda facts: json.dumps(facts | {"shape": "x"})),
    "another type": sealed(lambda facts: json.dumps(facts | {"dtype": "Tensor"})),
    "no type": sealed(lambda facts: json.dumps(facts | {"dtype": "x"})),
    "nothing": sealed(lambda facts: "{}"),
    "a list": sealed(lambda facts: "[]"),
    "no object": sealed(lambda facts: "{"),
}


@pytest.mark.parametrize("when", ["before a start", "while it is known"])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_a_miss_and_deleted(tmp_path, what, when):
    (one, other) = chain(2)
    written(tmp_path, [one, other])
    host = HostPages(4 * BYTES, tmp_path, 1 << 20) if when == "while it is known" else None
    DAMAGE[what](file_of(tmp_path, one[0]))
    host = host or HostPages(4 * BYTES, tmp_path, 1 << 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert host.load(*one[:2]) is None
        assert same(host.load(*other[:2]), other[2])
    assert one[0] not in host
    assert file_of(tmp_path, one[0]).is_file() is False
    assert host.disk.bytes == file_of(tmp_path, other[0]).stat().st_size
    if what != "a folder":
        host.save(*one)
        host.close()
        assert same(HostPages(0, tmp_path, 1 << 20).load(*one[:2]), one[2])


def test_pages_of_another_model_are_not_read(tmp_path):
    facts = {"weights": "w", "rote": "checkpoint", "dtype": torch.bfloat16, "page": 64}
    mine = page_folder(tmp_path, **facts)
    assert mine == page_folder(tmp_path, **dict(reversed(facts.items())))
    others = [
        facts | change for change in ({"weights": "v"}, {"rote": "paper"}, {"dtype": torch.float32}, {"page": 32})
    ]
    assert len({mine, *(page_folder(tmp_path, **other) for other in others)}) == 5
    (one,) = chain(1)
    written(mine, [one])
    theirs = page_folder(tmp_path, **others[0])
    theirs.mkdir()
    file_of(theirs, one[0]).write_bytes(file_of(mine, one[0]).read_bytes())
    assert HostPages(0, theirs, 1 << 20).load(*one[:2]) is None
    assert not list(theirs.iterdir())
    assert same(HostPages(0, mine, 1 << 20).load(*one[:2]), one[2])


class FullDisk:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.file.write(data)


@pytest.mark.parametrize("fails", ["creating", "writing", "renaming"])
def test_a_full_disk_is_only_read_from_then_on(tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path, mode):
        if mode == "rb" or fails == "renaming":
            return open(path, mode)
        return full() if fails == "creating" else FullDisk(open(path, mode), 100)

    pages = chain(2 * WRITING + 3)
    written(tmp_path, pages[:1])
    before = file_bytes(tmp_path)
    host = HostPages(BYTES, tmp_path, 1 << 20)
    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        patched.setattr(offload, "open", opened, raising=False)
        if fails == "renaming":
            patched.setattr(offload.os, "replace", full)
        for one in pages[1:]:
            host.save(*one)
        host.close()
    assert [str(one.message) for one in seen] == [
        f"{tmp_path}: no more pages are written to it: No space left on device"
    ]
    assert list(tmp_path.iterdir()) == [file_of(tmp_path, pages[0][0])]
    assert host.disk.bytes == file_bytes(tmp_path) == before
    assert not host.disk._writing
    assert [key in host for key, *_ in pages] == [True] + [False] * (len(pages) - 1)
    assert same(HostPages(0, tmp_path, 1 << 20).load(*pages[0][:2]), pages[0][2])


def test_without_a_folder_that_can_be_made_there_is_memory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"file: no more pages are written to it: File exists"):
        host = HostPages(BYTES, tmp_path / "file", 1 << 20)
    one, other = chain(2)
    host.save(*one)
    host.save(*other)
    assert one[0] not in host
    assert same(host.load(*other[:2]), other[2])
    host.close()


def test_a_page_that_fits_nowhere_is_not_kept(tmp_path):
    (one,) = chain(1)
    host = HostPages(BYTES - 1, tmp_path, BYTES)
    host.save(*one)
    host.close()
    assert one[0] not in host
    assert not list(tmp_path.iterdir())
    host = HostPages(0)
    host.save(*one)
    assert one[0] not in host
    assert host.bytes == 0


def test_a_file_that_another_process_has_deleted_is_a_miss(tmp_path):
    one, other = chain(2)
    written(tmp_path, [one, other])
    host = HostPages(BYTES, tmp_path, 1 << 20)
    file_of(tmp_path, one[0]).unlink()
    assert host.load(*one[:2]) is None
    assert host.disk.bytes == file_bytes(tmp_path)


def test_what_a_killed_process_has_left_goes_and_what_is_not_ours_stays(tmp_path):
    name = chain(1)[0][0].hex()
    old, fresh, stranger = (tmp_path / x for x in (f".0123abcd-{name}.page", f".4567abcd-{name}.page", "notes.page"))
    for file in (old, fresh, stranger):
        file.write_bytes(b"some")
    os.utime(old, (time.time() - 2 * STALE,) * 2)
    os.utime(stranger, (time.time() - 2 * STALE,) * 2)
    host = HostPages(0, tmp_path, 1)
    assert sorted(tmp_path.iterdir()) == sorted([fresh, stranger])
    assert host.disk.bytes == 0


def test_a_run_ends_at_the_first_page_that_is_missing(tmp_path):
    pages = chain(5)
    written(tmp_path, [pages[number] for number in (0, 2, 4)])
    host = HostPages(4 * BYTES, tmp_path, 1 << 20)
    host.save(*pages[1])
    found = host.load_run([(key, content) for key, content, _ in pages])
    assert len(found) == 3
    assert all(same(payload, one[2]) for payload, one in zip(found, pages, strict=False))
    assert not host.disk._reading
    assert host.load_run([(pages[0][0], b"another content")]) == []


def test_a_run_is_read_by_several_threads(tmp_path, monkeypatch):
    pages = chain(2)
    written(tmp_path, pages)
    together, read = threading.Barrier(2), offload._read

    def meet(*arguments):
        together.wait(timeout=60)
        return read(*arguments)

    monkeypatch.setattr(offload, "_read", meet)
    host = HostPages(4 * BYTES, tmp_path, 1 << 20)
    assert len(host.load_run([(key, content) for key, content, _ in pages])) == 2


def test_only_so_many_pages_wait_to_be_written(tmp_path, monkeypatch):
    gate, write = threading.Event(), offload._write

    def slow(*arguments):
        gate.wait(timeout=60)
        return write(*arguments)

    monkeypatch.setattr(offload, "_write", slow)
    pages = chain(WRITING + 1)
    host = HostPages(0, tmp_path, 1 << 20)
    for one in pages[:WRITING]:
        host.save(*one)
    assert not gate.is_set()
    assert same(host.load(*pages[3][:2]), pages[3][2])  # while it is being written
    timer = threading.Timer(0.2, gate.set)
    timer.start()
    host.save(*pages[WRITING])
    assert gate.is_set()
    assert len(host.disk._writing) <= WRITING
    timer.join()
    host.close()
    assert len(list(tmp_path.iterdir())) == WRITING + 1


@pytest.mark.parametrize("arguments", [(-1,), (1, None, 5), (1, "folder", 0), (1, "folder", -1)])
def test_capacities_that_make_no_sense(arguments):
    with pytest.raises(ValueError, match="capacity"):
        HostPages(*arguments)
