"""Fetching: whole files named by their bytes, flaky sources, sources that change, and records of it all."""

import json

import pytest

from afn_model.curate.stage import Context, Dropped, Failed, Kept
from afn_model.curate.stages.fetch import Fetch, digest_of, retrievals

calls: list[str] = []
CONTENT = {}


class SourceBusy(Exception):
    status = 503


class SourceGone(Exception):
    status = 404


def flaky(url, path):
    """Fails by plan: "busy" twice, "gone" always, "torn" after some bytes; the others give their content."""
    calls.append(url)
    if url == "gone":
        raise SourceGone("no more\nthere")
    if url == "busy" and calls.count(url) < 3:
        raise SourceBusy("later")
    path.write_bytes(CONTENT[url][:3])
    if url == "torn" and calls.count(url) < 2:
        raise ConnectionResetError("torn")
    path.write_bytes(CONTENT[url])
    return {"address": f"final/{url}", "status": 200, "suffix": ".MP3", "cookie": "secret"}


FLAKY = f"{__name__}:flaky"


@pytest.fixture(autouse=True)
def _clean():
    calls.clear()
    CONTENT.clear()
    CONTENT.update({"a": b"aaaa", "busy": b"bbbb", "torn": b"cccc", "gone": b""})
    retrievals.cache_clear()


def go(out, *urls, **options):
    return Fetch(**{"fetcher": FLAKY, **options}).run([{"id": url, "url": url} for url in urls], Context(out))


def lines(out):
    return [json.loads(line) for line in (out / "retrievals.jsonl").read_text().splitlines()]


def test_flaky_sources(tmp_path):
    a, busy, torn, gone = go(tmp_path, "a", "busy", "torn", "gone")
    assert isinstance(a, Kept)
    source_id = a.fields["source_id"]
    assert a.fields == {"file": f"recordings/{source_id}.mp3", "source_id": source_id, "bytes": 4}
    assert digest_of(tmp_path / a.fields["file"]) == source_id
    assert busy == Failed("SourceBusy: later", retryable=True)
    assert isinstance(torn, Failed)
    assert torn.retryable
    assert gone == Failed("SourceGone: no more there", retryable=False)
    # Nothing half is there, and what is there is not asked for again.
    assert [path.name for path in (tmp_path / "recordings").iterdir()] == [f"{source_id}.mp3"]
    assert go(tmp_path, "a") == [a]
    assert calls.count("a") == 1
    assert [type(one) for one in go(tmp_path, "busy", "torn")] == [Failed, Kept]
    assert [type(one) for one in go(tmp_path, "busy")] == [Kept]
    told = [line for line in lines(tmp_path) if line["url"] == "a"]
    assert [set(line) for line in told] == [{"time", "url", "file", "source_id", "bytes", "address", "status"}]
    assert sum("error" in line for line in lines(tmp_path)) == 4


def test_another_process_goes_on_behind_a_torn_line(tmp_path):
    (a,) = go(tmp_path, "a")
    with (tmp_path / "retrievals.jsonl").open("a") as file:
        file.write('{"url": "torn", "sou')
    retrievals.cache_clear()
    assert go(tmp_path, "a") == [a]
    CONTENT["b"] = b"bbb"
    go(tmp_path, "b")
    retrievals.cache_clear()
    assert [type(one) for one in go(tmp_path, "a", "b")] == [Kept, Kept]
    assert sorted(calls) == ["a", "b"]


def test_bytes_that_change_under_the_run_are_noticed(tmp_path):
    (a,) = go(tmp_path, "a")
    assert isinstance(a, Kept)
    CONTENT["a"] = b"other"
    assert go(tmp_path, "a") == [a], "the file is there"
    (tmp_path / a.fields["file"]).write_bytes(b"damaged")
    (changed,) = go(tmp_path, "a")
    assert isinstance(changed, Failed)
    assert a.fields["source_id"] in changed.error
    assert not changed.retryable


def test_files_are_copied_or_linked(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.wav").write_bytes(b"aaaa")
    options = {"fetcher": "", "folder": str(tmp_path / "in")}
    out, (kept,) = tmp_path / "out", go(tmp_path / "out", "a.wav", **options)
    assert isinstance(kept, Kept)
    assert (out / kept.fields["file"]).stat().st_nlink == 1
    (linked,) = go(tmp_path / "linked", "a.wav", link=True, **options)
    assert linked == kept
    assert (tmp_path / "linked" / kept.fields["file"]).stat().st_nlink == 2
    (tmp_path / "in/a.wav").write_bytes(b"changed")
    (changed,) = go(out, "a.wav", **options)
    assert isinstance(changed, Failed)
    assert "changed" in changed.error
    found = go(out, "none.wav", "../out/retrievals.jsonl", "/etc/passwd", **options)
    assert all(isinstance(one, Failed) and not one.retryable for one in found)
    assert "No such file" in found[0].error
    assert str(tmp_path) not in " ".join(one.error for one in found)


def test_too_many_bytes(tmp_path):
    assert go(tmp_path, "a", max_bytes=3) == [Dropped("too many bytes", "4 of at most 3")]
    with pytest.raises(ValueError, match="max_bytes"):
        Fetch(max_bytes=0)


def test_addresses_in_storage(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/curated/a.ogg", b"OggS")
    kept, none, web = go(
        tmp_path, "memory://curated/a.ogg", "memory://curated/b.ogg", "https://x.org/a.wav", fetcher=""
    )
    assert isinstance(kept, Kept)
    assert (tmp_path / kept.fields["file"]).read_bytes() == b"OggS"
    assert kept.fields["file"].endswith(".ogg")
    assert isinstance(none, Failed)
    assert not none.retryable
    assert isinstance(web, Failed)
    assert "AFN_ALLOW_HTTP" in web.error
