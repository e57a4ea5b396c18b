"""Storage: what is there and what it is called, in one line why it cannot be read; by range, again, after a fork."""

import os
import signal
import socket
import sys
import time
import tracemalloc

import pytest

from afn_model import redirects, storage
from afn_model.audio.decode import load_audio
from afn_model.audio.shards import index_places
from afn_model.cli import main
from afn_model.storage import (
    StorageError,
    expand,
    is_pattern,
    join,
    listing,
    located,
    parent,
    read_range,
    shown,
    state,
    states,
)
from tests.range_server import RangeServer

fsspec = pytest.importorskip("fsspec", reason="fsspec reads what lies in storage")


@pytest.fixture
def memory():
    """The name of a folder in fsspec's memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    storage.forget()
    yield "memory://bucket"
    system.store.clear()


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("aiohttp", reason="fsspec reads the web with it")
    monkeypatch.setenv("AFN_ALLOW_HTTP", "1")
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0, 0.0))
    storage.forget()
    found = RangeServer()
    yield found
    found.close()


def put(url, data):
    fsspec.filesystem("memory").pipe_file(url, data)


def test_paths_and_addresses_are_joined():
    assert join("s3://b/x", "y/a.wav") == "s3://b/x/y/a.wav"
    assert join("/data", "s3://b/a.wav") == "s3://b/a.wav"
    with pytest.raises(StorageError, match=r"^/data/a\.wav: what lies in storage cannot name a file of this machine"):
        join("s3://b/x", "/data/a.wav")
    assert parent("s3://b/x/a.wav") == "s3://b/x"
    assert parent("s3://b") == parent("s3://b/a.wav") == "s3://b"
    assert located("/data", "hf://datasets/a/b/c.jsonl") == "hf://datasets/a/b/c.jsonl"
    assert str(located("/data", "c.jsonl")) == "/data/c.jsonl"


SECRETS = [
    ("https://h/a.wav?X-Sig=s3cret&x=1: no such file", "https://h/a.wav?…: no such file"),
    ("HTTP://me:s3cret@h:80/a.wav: no", "HTTP://h:80/a.wav: no"),
    ("https://s3cret@h/a", "https://h/a"),
    ("cannot be read (403, url='https://h/a?sig=s3cret')", "cannot be read (403, url='https://h/a?…')"),
    ("s3://key:s3@cret@b/a", "s3://b/a"),
    ("abfs://box@account/a-00?.tar and what = x", "abfs://box@account/a-00?.tar and what = x"),
    ("hf://datasets/a/b@main/c.jsonl", "hf://datasets/a/b@main/c.jsonl"),
]


@pytest.mark.parametrize(("text", "expected"), SECRETS)
def test_no_secret_of_an_address_is_shown(text, expected):
    assert shown(text) == str(StorageError(text)) == expected


def test_a_signed_address_is_read_and_its_signature_told_nobody(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AFN_INDEX_DIR", str(tmp_path))
    signed = f"?X-Amz-Signature={'s3cret' * 80}"
    server.files |= {f"a.wav{signed}": b"no audio", f"c.jsonl{signed}": b"{}\n{"}
    for name in ("a.wav", "b.wav"):
        with pytest.raises(ValueError, match=rf"{name}\?…: ") as found:
            load_audio(f"{server.url}/{name}{signed}")
        assert "s3cret" not in str(found.value)
    assert main(["data", "index", f"{server.url}/c.jsonl{signed}"]) == 2
    said = capsys.readouterr().err
    assert "c.jsonl?…, line 2: not JSON" in said
    assert "s3cret" not in said
    assert index_places(f"{server.url}/c.jsonl{signed}")[0].name.endswith("-c.jsonl.index")


def test_braces_of_too_many_names_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(storage, "_MOST_BRACES", 100)
    tracemalloc.start()
    with pytest.raises(StorageError, match="more than 100 names"):
        expand("{0..99}" * 3)
    assert tracemalloc.get_traced_memory()[1] < 200_000, "10,000 names take more"
    tracemalloc.stop()


def test_a_server_that_is_silent_has_failed(server, monkeypatch):
    monkeypatch.setattr(storage, "SILENT", 0.05)
    monkeypatch.setattr(storage, "WAITS", ())
    monkeypatch.setattr(storage, "_systems", {})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        start = time.monotonic()
        with pytest.raises(StorageError, match=f"^{url}: cannot be read .*Timeout"):
            state(url)
    assert time.monotonic() - start < 60, "a client of its own accord waits for 300 s"


def test_braces_and_stars(memory, tmp_path):
    names = [f"{memory}/train-{number:03d}.tar" for number in range(3)]
    for name in [*names, f"{memory}/deep/test.tar"]:
        put(name, b"x")
    assert expand(f"{memory}/train-{{000..002}}.tar") == expand(f"{memory}/train-*.tar") == names
    assert listing(memory) == [f"{memory}/deep/test.tar", *names]
    assert expand("{b,a}-{9..11}") == ["b-9", "b-10", "b-11", "a-9", "a-10", "a-11"]
    for name in "ba":
        (tmp_path / f"{name}.tar").touch()
    assert expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert [is_pattern(name) for name in ("a?", "gs://b/[ab]", "https://h/a?b=1", "https://h/{1..2}")] == [1, 1, 0, 1]
    for pattern, problem in [
        (f"{memory}/none-*.tar", "none-.*: nothing is called like this"),
        ("x-{3..1}.tar", r"\{3\.\.1\}: from 3 up to 1 is expected"),
        ("https://example.org/*.tar", "has no listing; name its files by braces"),
    ]:
        with pytest.raises(StorageError, match=problem):
            expand(pattern)


def test_states_are_those_of_now_and_many_are_listed_at_once(memory, monkeypatch):
    put(f"{memory}/a", b"123")
    first = state(f"{memory}/a")
    assert first.size == 3
    put(f"{memory}/a", b"1234")
    assert state(f"{memory}/a") == first, "within the hour"
    names = [f"{memory}/{name}" for name in "abcdefg"]
    put(names[1], b"")
    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "info", None)
    found = states(names)
    assert (found[names[0]].size, found[names[1]].size) == (4, 0)
    assert [str(found[name]) for name in names[2:]] == [f"{name}: no such file" for name in names[2:]]


def test_the_web_is_read_where_that_is_switched_on(server, monkeypatch):
    server.files["a"] = bytes(range(100))
    assert read_range(f"{server.url}/a", 10, 20, 100) == bytes(range(10, 20))
    assert server.sent == 10
    server.ranges = False
    assert read_range(f"{server.url}/a", 10, 20, 100) == bytes(range(10, 20)), "of the whole file, which came"
    monkeypatch.delenv("AFN_ALLOW_HTTP")
    with pytest.raises(ValueError, match=r"/a: only local files are read; download it first .*AFN_ALLOW_HTTP=1"):
        load_audio(f"{server.url}/a")
    with pytest.raises(StorageError, match=r"^ftp://h/a: no address that is read; s3, gs"):
        load_audio("ftp://h/a")


def test_a_public_server_does_not_redirect_into_a_private_network(server, monkeypatch):
    server.files["b"] = b"12345"
    port = server.server_port
    server.redirects = {"a": f"{server.url}/b", "in": f"http://localhost:{port}/b", "relative": "/b"}
    where = {"localhost": ["10.0.0.1"], "127.0.0.1": ["127.0.0.1"]}

    async def addresses(host):
        return where[host]

    monkeypatch.setattr(redirects, "addresses", addresses)
    monkeypatch.setattr(storage, "_systems", {})
    assert [read_range(f"{server.url}/{name}", 1, 3, 5) for name in ("a", "relative", "in")] == [b"23"] * 3
    where["127.0.0.1"] = ["1.1.1.1"]
    server.since()
    for read in (lambda url: read_range(url, 1, 3, 5), state, lambda url: storage.read_first(url, 5)):
        with pytest.raises(StorageError, match=r"/in: 127.0.0.1 redirects to localhost, an address of a private net"):
            read(f"{server.url}/in")
    assert {name for _, name, _ in server.asked} == {"in"}


def test_what_may_pass_is_tried_again_and_not_for_ever(server):
    server.files["a"] = b"12345"
    server.errors = [503, 500, 429]
    assert read_range(f"{server.url}/a", 1, 3, 5) == b"23"
    assert len(server.asked) == 4
    server.errors = [503] * 10
    with pytest.raises(StorageError, match=r"^http://.*/a: cannot be read \(ClientResponseError: 503") as error:
        read_range(f"{server.url}/a", 1, 3, 5)
    assert len(server.errors) == 6, "four attempts"
    assert "\n" not in str(error.value)
    server.errors.clear()
    with pytest.raises(StorageError, match="2 bytes came of the 4 from byte 3 on"):
        read_range(f"{server.url}/a", 3, 7, 9)


def test_no_access_is_said_at_once_with_what_is_needed(server, monkeypatch):
    server.files["a"], server.forbidden = b"12345", {"a"}
    with pytest.raises(StorageError, match=r"/a: no access \(.*403.*\); it needs an address that may be read"):
        read_range(f"{server.url}/a", 1, 3, 5)
    assert len(server.asked) == 1
    with pytest.raises(StorageError, match=r"/b: no such file$"):
        load_audio(f"{server.url}/b")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StorageError, match=r"^s3://b/a\.wav: needs fsspec and s3fs: pip install fsspec s3fs"):
        load_audio("s3://b/a.wav")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    storage._systems.clear()
    with pytest.raises(StorageError, match=r"^gs://b/a\.wav: needs fsspec and gcsfs"):
        load_audio("gs://b/a.wav")


def test_a_forked_process_has_file_systems_of_its_own(server):
    """An event loop has a thread, which no fork copies: whoever used the parent's would wait for ever."""
    server.files["a"] = b"12345"
    assert read_range(f"{server.url}/a", 0, 2, 5) == b"12"
    child = os.fork()
    if not child:
        right = False
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            right = read_range(f"{server.url}/a", 1, 3, 5) == b"23" and state(f"{server.url}/a").size == 5
        finally:
            os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_range(f"{server.url}/a", 2, 4, 5) == b"34", "the parent's still works"
