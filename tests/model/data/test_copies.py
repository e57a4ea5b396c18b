"""A JSON Lines file in storage: copied once, known by its state, never stale, and no more copies kept than fit."""

import json
import os

import pytest

from afn_model import storage
from afn_model.data import copies, index
from afn_model.data.check import missing_recordings
from afn_model.data.copies import COPY, RECORDS, most_bytes
from afn_model.data.index import Corpus, build
from afn_model.data.records import check, parse_sample
from tests.corpora import clip

fsspec = pytest.importorskip("fsspec", reason="fsspec reads what lies in storage")
from fsspec.registry import _registry  # noqa: E402

TURNS = [{"role": "user", "content": "<sound>What is said?"}, {"role": "assistant", "content": "One."}]


class DeniedFileSystem(fsspec.AbstractFileSystem):
    """A bucket that nobody may read."""

    protocol = "gs"

    def info(self, path, **_):
        raise PermissionError(f"Forbidden: {path}")

    def cat_file(self, path, start=None, end=None, **_):
        raise PermissionError(f"Forbidden: {path}")

    def ls(self, path, detail=True, **_):
        raise PermissionError(f"Forbidden: {path}")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """Writes a file of fsspec's memory; returns what has been fetched since the last call."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system, fetched = fsspec.filesystem("memory"), []
    real = type(system).cat_file

    def cat_file(self, path, start=None, end=None, **options):
        fetched.append(path)
        return real(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(system), "cat_file", cat_file)

    def put(name=None, data=b""):
        if name is not None:
            system.pipe_file(f"memory://b/{name}", data)
        found = [path for path in fetched]
        fetched.clear()
        return found

    storage.forget()
    yield put
    system.store.clear()


def lines(*paths, **fields):
    rows = ({"audios": [{"path": path}], "messages": TURNS} | fields for path in paths)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_corpus_is_copied_once_and_its_recordings_are_beside_it(bucket, tmp_path):
    url = "memory://b/talks/c.jsonl"
    bucket("talks/a.flac", clip(0.5))
    bucket("talks/c.jsonl", lines("a.flac", "memory://b/talks/a.flac", "gone.flac"))
    with pytest.raises(ValueError, match=r"^memory://b/talks/c\.jsonl: no index; make one with `afn data index"):
        Corpus(url)
    with pytest.raises(ValueError, match=r"c\.jsonl, line 3: memory://b/talks/gone\.flac: no such file$"):
        build(url, check=check, measure=True)
    bucket("talks/c.jsonl", lines("a.flac", "memory://b/talks/a.flac"))
    build(url, check=check, measure=True)
    bucket()
    corpus = Corpus(url, verify=True)
    assert [corpus.seconds(number) for number in range(len(corpus))] == [0.5, 0.5]
    assert corpus[1]["audios"] == [{"path": "memory://b/talks/a.flac"}]
    assert corpus.folder == "memory://b/talks"
    assert bucket() == [], "the copy is read"
    assert str(corpus.index).startswith(str(tmp_path / "cache"))
    build(url)
    assert missing_recordings({"c": url}) == []


def test_recordings_that_are_missing_in_storage_are_named(bucket):
    bucket("a.flac", b"x")
    bucket("c.jsonl", lines(*(f"{name}.flac" for name in "abcdefg")))
    build("memory://b/c.jsonl")
    assert missing_recordings({"c": "memory://b/c.jsonl"}) == [
        f"c[{number}]: {name}.flac: no such file" for number, name in enumerate("bcdefg", 1)
    ]


def test_a_corpus_that_has_changed_is_refused_and_one_written_again_is_not(bucket):
    url, first = "memory://b/c.jsonl", lines("a.flac", duration=1)
    bucket("c.jsonl", first)
    build(url)
    known = Corpus(url).fingerprint
    bucket("c.jsonl", first)
    assert Corpus(url).fingerprint == known
    assert bucket() != [], "read once more"
    assert Corpus(url).fingerprint == known
    assert bucket() == [], "and known from then on"
    for other in (lines("b.flac", duration=1), lines("a.flac", duration=12)):
        bucket("c.jsonl", other)
        with pytest.raises(ValueError, match=r"c\.jsonl: it has changed; index it again with `afn data index"):
            Corpus(url)


def test_copies_that_do_not_fit_go_and_come_back(bucket, monkeypatch):
    size = len(lines("a.flac"))
    monkeypatch.setenv("AFN_CACHE_GB", str(2.5 * size / 1e9))
    places = []
    for number in range(3):
        bucket(f"{number}.jsonl", lines(f"{number}.flac"))
        build(f"memory://b/{number}.jsonl")
        places.append(Corpus(f"memory://b/{number}.jsonl").index)
        os.utime(places[-1] / RECORDS, ns=(number, number))
    assert [(place / RECORDS).exists() for place in places] == [False, True, True]
    assert all((place / COPY).exists() for place in places)
    bucket()
    assert Corpus("memory://b/0.jsonl")[0]["audios"] == [{"path": "0.flac"}]
    assert len(bucket()) == 1, "fetched again"
    assert [(place / RECORDS).exists() for place in places] == [True, False, True]
    monkeypatch.setenv("AFN_CACHE_GB", str(0.5 * size / 1e9))
    with pytest.raises(ValueError, match=r"0\.jsonl: 0\.0 GB, but AFN_CACHE_GB lets copies have .*: raise it"):
        Corpus("memory://b/0.jsonl")
    monkeypatch.setenv("AFN_CACHE_GB", "much")
    with pytest.raises(ValueError, match="AFN_CACHE_GB is 'much', not a number above 0"):
        most_bytes()


def test_a_copy_that_another_process_removes_at_once_is_fetched_again(bucket, monkeypatch):
    url, goes = "memory://b/c.jsonl", [True, True, False]
    bucket("c.jsonl", lines("a.flac"))
    build(url)

    def fetch(url, copy, *state):
        found = copies.fetch(url, copy, *state)
        if goes.pop(0):
            copy.unlink()
        return found

    monkeypatch.setattr(index, "fetch", fetch)
    assert Corpus(url)[0]["audios"] == [{"path": "a.flac"}]
    assert not goes
    goes[:] = [True] * 20
    with pytest.raises(ValueError, match=r"^memory://b/c\.jsonl: others remove its copy .*: raise AFN_CACHE_GB$"):
        Corpus(url)


def test_a_bucket_without_access_is_one_line_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(_registry, "gs", DeniedFileSystem)
    monkeypatch.setattr(storage, "_systems", {})
    for name in ("c.jsonl", "x-{0..2}.tar", "x-*.tar", "folder", "a.parquet"):
        for work in (build, Corpus):
            with pytest.raises(ValueError) as error:
                work(f"gs://private/{name}")
            said = str(error.value)
            expected = "no index" if work is Corpus and name not in ("x-*.tar", "folder") else "no access"
            assert said.startswith("gs://private")
            assert f": {expected}" in said, said
            assert "\n" not in said
            if expected == "no access":
                assert "Google credentials that may read it" in said
    (tmp_path / "c.jsonl").write_bytes(lines(*(f"gs://private/{number}.flac" for number in range(6))))
    build(tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match=r"^gs://private/0\.flac: no access .*credentials[^\n]*$"):
        build(tmp_path / "c.jsonl", measure=True)  # the others would fare no better
    found = missing_recordings({"c": tmp_path / "c.jsonl"})
    assert len(found) == 6
    assert all("no access (PermissionError: Forbidden" in line for line in found)
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


@pytest.mark.parametrize("path", ["/dev/zero", "//etc/passwd", "/data/a.tar#b.wav", "/data/a.parquet#0.0:audio"])
def test_a_corpus_in_storage_names_no_file_of_this_machine(bucket, path):
    bucket("c.jsonl", lines("a.flac", path, duration=1))
    with pytest.raises(ValueError, match=r"^memory://b/c\.jsonl, line 2: .*: what lies in storage cannot name a file "):
        build("memory://b/c.jsonl")
    with pytest.raises(ValueError, match="cannot name a file of this machine"):
        parse_sample(json.loads(lines(path)), "memory://b")
