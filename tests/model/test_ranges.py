"""Files as bytes to slice: the same bytes, and no more of them fetched than are asked for."""

import random

import pytest

from afn_model import storage
from afn_model.ranges import AHEAD, BLOCK, FIRST, BytesFile, LocalBytes, RemoteBytes, open_bytes

fsspec = pytest.importorskip("fsspec", reason="fsspec reads what lies in storage")
DATA = random.Random(0).randbytes(2 * FIRST + 12_345)
URL = "memory://ranges/a"


@pytest.fixture
def fetched(monkeypatch):
    """(begin, end) of what has been fetched of ``URL``, which holds ``DATA``."""
    system = fsspec.filesystem("memory")
    system.pipe_file(URL, DATA)
    storage.forget()
    found, real = [], type(system).cat_file

    def cat_file(self, path, start=None, end=None, **options):
        found.append((start, end))
        return real(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    yield found
    system.store.clear()


@pytest.mark.parametrize("kept", [BLOCK, 1 << 26])
def test_slices_are_those_of_the_bytes(fetched, kept):
    part = DATA[1000 : 1000 + FIRST + 5]
    for data, like in [
        (RemoteBytes(URL, kept=kept), DATA),
        (RemoteBytes(URL, 1000, len(part), len(DATA), kept=kept), part),
        (RemoteBytes(URL, 7, 10, len(DATA)), DATA[7:17]),
    ]:
        assert (len(data), bytes(data), data[-1], data[len(data) :]) == (len(like), like, like[-1], b"")
        for _ in range(50):
            begin = random.randrange(len(like))
            end = min(len(like), begin + random.choice([1, 30, 100, BLOCK, 5 * BLOCK]))
            assert data[begin:end] == like[begin:end]
        assert data.find(like[-9:]) == like.find(like[-9:])
        assert data.find(b"nowhere", 5, 900) == -1
        assert len(data._blocks) <= max(1, kept // BLOCK), "what is kept is bounded"


def test_little_is_fetched_of_a_long_file_and_more_at_once_where_it_is_read_on(fetched):
    data = RemoteBytes(URL, first=BLOCK)
    assert data[5:9] == DATA[5:9]
    assert data[-4:] == DATA[-4:]
    assert fetched == [(0, BLOCK), (len(DATA) // BLOCK * BLOCK, len(DATA))]
    fetched.clear()
    data = RemoteBytes(URL, first=BLOCK)
    for at in range(0, len(DATA), 1000):
        data[at : at + 1000]
    assert len(fetched) <= 7, "each twice as much as the one before"
    assert max(end - begin for begin, end in fetched) <= AHEAD
    fetched.clear()
    fsspec.filesystem("memory").pipe_file(URL, b"short")
    assert bytes(RemoteBytes(URL)) == b"short"
    assert fetched == [(0, FIRST)], "a short file is fetched at once"


def test_files_to_read_from(fetched, tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    for path in (str(tmp_path / "a"), URL):
        file = BytesFile(open_bytes(path))
        assert file.seek(-100, 2) == len(DATA) - 100
        assert file.read() == DATA[-100:]
        assert (file.seek(10), file.read(5), file.tell()) == (10, DATA[10:15], 15)
    with pytest.raises(ValueError, match="No such file"):
        LocalBytes(str(tmp_path / "b"))
    fetched.clear()
    open_bytes(URL)
    assert fetched == []
