"""WebDataset tar files: members are grouped into samples, texts become records, and what is wrong is named."""

import io
import json
import tarfile

import pytest
import torch

from afn_model.audio.recording import Audio, load
from afn_model.data.check import missing_recordings
from afn_model.data.foreign import Columns
from afn_model.data.index import Corpus, build
from afn_model.data.records import audios_of, check, parse_sample
from tests.corpora import clip, tar

ONE, TWO = clip(0.5), clip(0.75, "WAV", seed=1)
TALK = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}]}


def indexed(path, columns=None):
    build(path, check=check, columns=columns, measure=True)
    return Corpus(path)


def row(**fields):
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("beside", "columns", "said"),
    [
        ({"txt": b"One.\n"}, Columns(), ["Transcribe the input speech.", "One."]),
        ({"json": row(text="One.", wav="old.wav", duration=0.5)}, Columns(), ["Transcribe the input speech.", "One."]),
        ({"json": row(question="Who?", answer="She.")}, Columns(), ["Who?", "She."]),
        ({"cls": b"dog"}, Columns(instruction="What?"), ["What?", "dog"]),
        ({"txt": b"One.", "cls": b"dog"}, Columns(text="cls", instruction="What?"), ["What?", "dog"]),
        ({"json": json.dumps(TALK).encode()}, Columns(), ["Who?", "She."]),
    ],
)
def test_texts_beside_a_recording(tmp_path, beside, columns, said):
    members = {}
    for number in range(3):
        members |= {f"a/{number}.{kind}": data for kind, data in beside.items()} | {f"a/{number}.flac": ONE}
    corpus = indexed(tar(tmp_path / "x.tar", members), columns)
    assert [corpus[number]["id"] for number in range(3)] == ["x/a/0", "x/a/1", "x/a/2"]
    sample = parse_sample(corpus[2], corpus.folder)
    assert [turn.text.removeprefix("<sound>") for turn in sample.turns] == said
    assert [audio.source for audio in audios_of(sample)] == [f"{tmp_path}/x.tar#a/2.flac"]
    assert corpus.seconds(2) == 0.5
    assert missing_recordings({"x": corpus}) == []


def test_shards_in_order_and_several_recordings_of_a_sample(tmp_path):
    for number in (0, 1, 10):
        members = {
            "k.0.flac": ONE,
            "k.1.wav": TWO,
            "k.txt": f"Shard {number}.".encode(),
            ".hidden": b"",
            "README": b"x",
        }
        tar(tmp_path / "data" / f"train-{number:02d}.tar", members)
    for spec in ("data/train-*.tar", "data/train-{00..01}.tar", "data/train-{00,10}.tar"):
        corpus = indexed(tmp_path / spec)
        shards = {"data/train-*.tar": (0, 1, 10), "data/train-{00,10}.tar": (0, 10)}.get(spec, (0, 1))
        assert [corpus[at]["messages"][1]["content"] for at in range(len(corpus))] == [f"Shard {n}." for n in shards]
        audios = audios_of(parse_sample(corpus[1], corpus.folder))
        heard = [load(audio) for audio in audios]
        assert all(torch.equal(*pair) for pair in zip(heard, (load(Audio(data)) for data in (ONE, TWO)), strict=True))
        assert corpus.seconds(1) == 1.25
        assert f"{tmp_path / spec}.records.index" == str(corpus.index)


def test_samples_that_cannot_be_used_are_named(tmp_path):
    members = {"a.txt": b"One.", "b.flac": ONE, "c.json": b"[1]", "c.flac": ONE, "d.txt": b"\xff", "d.flac": ONE}
    members |= {"e.json": b"{", "f.flac": ONE, "f.txt": b"One.", "g.txt": b"1", "g.TXT": b"2", "g.flac": ONE}
    path = tar(tmp_path / "x.tar", members)
    with pytest.raises(ValueError) as error:
        build(path, check=check)
    said = [line.removeprefix(f"{path}, sample ") for line in str(error.value).splitlines()]
    assert said[:3] == [
        "a: no recording in it",
        "b: no column for the answer among recording; --text names it",
        "c: c.json is a JSON list, not an object",
    ]
    assert said[3].startswith("d: d.txt is no text in UTF-8: ")
    assert said[4].startswith("e: e.json is not JSON: ")
    assert said[5:] == ["g: two members are called g.TXT"]
    build(path)
    assert len(Corpus(path)) == 7, "unchecked, they are records that cannot train"


def test_of_a_name_that_comes_twice_no_text_gets_the_other_recording(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as file:
        for name, data in (("a.flac", ONE), ("a.txt", b"One."), ("b.flac", ONE), ("b.txt", b"b"), ("a.flac", TWO)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    with pytest.raises(ValueError, match=r"sample a: comes twice in it, and its members must follow one another$"):
        build(path, check=check)


def test_a_truncated_tar_file_is_one_line(tmp_path):
    path = tar(tmp_path / "x.tar", {f"{number}.{kind}": ONE for number in range(9) for kind in ("flac", "txt")})
    whole = path.read_bytes()
    for size in (len(whole) // 2, 700, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.tar: (truncated or damaged|not an uncompressed tar file)") as error:
            build(path, check=None)
        assert "\n" not in str(error.value)


def test_a_shard_that_is_replaced_or_comes_is_noticed(tmp_path):
    for number in range(2):
        tar(tmp_path / f"{number}.tar", {"k.flac": ONE, "k.txt": b"One."})
    corpus = indexed(tmp_path / "*.tar")
    before = corpus.fingerprint
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole)
    assert Corpus(tmp_path / "*.tar", verify=True).fingerprint == before, "written again as it was"
    tar(tmp_path / "1.tar", {"k.flac": ONE[:-1] + b"x", "j.txt": b"One."})
    with pytest.raises(ValueError, match=r"its tar file .*1\.tar is not the one that was indexed"):
        Corpus(tmp_path / "*.tar")
    (tmp_path / "1.tar").write_bytes(whole)
    tar(tmp_path / "2.tar", {"k.flac": ONE, "k.txt": b"One."})
    with pytest.raises(ValueError, match=r"2\.tar has come or gone since it was indexed"):
        Corpus(tmp_path / "*.tar")
    assert indexed(tmp_path / "*.tar").fingerprint != before
