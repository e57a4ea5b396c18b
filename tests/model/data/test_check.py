"""Recordings that are not there: all of them, by record, and none that is."""

import io
import json
import tarfile

import pytest

from afn_model.data.check import missing_recordings
from afn_model.data.index import Corpus, build


def ask(*audios):
    content = "".join(["<sound>"] * len(audios)) + "Q"
    return {
        "audios": list(audios),
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}],
    }


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(b"a")
    (tmp_path / "clips" / "folder.wav").mkdir()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.wav")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"a"))
    (tmp_path / "torn.tar").write_bytes(b"not a tar" * 100)
    records = [
        ask("clips/a.wav"),
        ask("clips/b.wav", "clips/a.wav", "clips/b.wav", "c.wav"),
        ask("x.tar#a.wav"),
        ask("x.tar#b.wav", "gone.tar#a.wav"),
        ask(),
        {"messages": []},
        ask("https://example.org/a.wav"),
        ask("clips/folder.wav"),
        ask(str(tmp_path / "clips" / "a.wav")),
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    build(path)
    return path


MISSING = [
    "talks[1]: c.wav: no such file",
    "talks[1]: clips/b.wav: no such file",
    "talks[3]: gone.tar: no such file",
    "talks[3]: x.tar: no member 'b.wav' among its 1",
    "talks[6]: https://example.org/a.wav: a web address, and recordings are files; AFN_ALLOW_HTTP=1 lets them be read",
    "talks[7]: clips/folder.wav: no such file",
]


def test_all_missing_recordings_are_named(corpus):
    looked = []
    assert missing_recordings({"talks": corpus}, progress=looked.append) == MISSING
    assert sum(looked) == 9
    assert missing_recordings({"a": Corpus(corpus), "b": corpus})[:1] == ["a[1]: c.wav: no such file"]


def test_members_are_looked_up_block_by_block(corpus, monkeypatch):
    monkeypatch.setattr("afn_model.data.check._BLOCK", 2)
    assert missing_recordings({"talks": corpus}) == MISSING


def test_of_a_larger_corpus_some_are_looked_at(corpus):
    looked = []
    some = missing_recordings({"talks": corpus}, most=5, progress=looked.append)
    assert sum(looked) == 5
    assert set(some) <= set(MISSING)


def test_a_tar_file_that_is_damaged(tmp_path):
    (tmp_path / "torn.tar").write_bytes(b"")
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(ask("torn.tar#a")) + "\n")
    with pytest.raises(ValueError, match=r"torn\.tar: not an uncompressed tar file"):
        build(path)
