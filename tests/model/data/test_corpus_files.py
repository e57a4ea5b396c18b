"""What a corpus' name stands for, and that a run reads the same from every form of it, wherever it lies."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

from afn_model import storage
from afn_model.audio.decode import load_audio
from afn_model.audio.recording import Audio, load, measured_seconds
from afn_model.audio.shards import open_archive
from afn_model.data.corpus_files import locate
from afn_model.data.index import Corpus, build
from afn_model.data.loader import DataConfig, Loader
from afn_model.data.records import check
from afn_model.ranges import BLOCK, RemoteBytes
from afn_model.train.curriculum import read_curriculum, write_curriculum
from tests import tiny
from tests.corpora import clip, parquet, tar
from tests.range_server import RangeServer

CLIPS = [clip(0.3 + 0.1 * number, seed=number) for number in range(5)]
TEXTS = ["One two three.", "A dog barks.", "Which is louder?", "What is said?", "déjà vu 你好"]


def test_names(tmp_path):
    for name in ("a/x.tar", "b/c/y.tar", "d/z.parquet", "d/deep/w.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    one = locate(tmp_path / "a" / "x.tar")
    assert (one.kind, one.folder, one.files) == ("tars", f"{tmp_path}/a", (f"{tmp_path}/a/x.tar",))
    both = locate(f"{tmp_path}/{{a,b/c}}/*.tar")
    assert (both.kind, both.folder) == ("tars", str(tmp_path))
    assert [both.inside(file) for file in both.files] == ["a/x.tar", "b/c/y.tar"]
    folder = locate(tmp_path / "d")
    assert (folder.kind, [folder.inside(file) for file in folder.files]) == ("tables", ["deep/w.parquet", "z.parquet"])
    assert locate("s3://b/x/c.jsonl").folder == "s3://b/x"
    assert locate("gs://b/{x,y}/{1..2}.tar").folder == "gs://b"
    assert not any("*" in str(place.parent) for place in locate(f"{tmp_path}/*/*.tar").places)
    with pytest.raises(ValueError, match="only local files are read; download it first"):
        locate("https://example.org/c.jsonl")


def test_a_curriculum_names_addresses(tmp_path):
    text = "datasets: {a: 's3://b/a.jsonl', b: 'x/b-{0..3}.tar'}\n"
    stage = "stages: {one: {trains: all, blend: {a: 1, b: 1}, context: 16, batch_tokens: 16}}\n"
    (tmp_path / "c.yaml").write_text(text + stage)
    found = read_curriculum(tmp_path / "c.yaml")
    assert found.datasets == {"a": "s3://b/a.jsonl", "b": tmp_path / "x" / "b-{0..3}.tar"}
    write_curriculum(found, tmp_path / "d.yaml")
    assert read_curriculum(tmp_path / "d.yaml").datasets == found.datasets
    there = read_curriculum(tmp_path / "c.yaml", "gs://bucket/data").datasets
    assert there == {"a": "s3://b/a.jsonl", "b": "gs://bucket/data/x/b-{0..3}.tar"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    pytest.importorskip("fsspec", reason="fsspec reads what lies in storage")
    pytest.importorskip("aiohttp", reason="fsspec reads the web with it")
    monkeypatch.setenv("AFN_ALLOW_HTTP", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage.forget()
    found = RangeServer()
    yield found
    found.close()


def written(folder):
    """The same five recordings as JSON Lines, as two Parquet files, and as two tar files; names of their files."""
    rows = [{"text": text, "audio": {"bytes": data, "path": None}} for text, data in zip(TEXTS, CLIPS, strict=True)]
    parquet(folder / "t-0.parquet", rows[:3])
    parquet(folder / "t-1.parquet", rows[3:])
    members = [{f"{n}.txt": TEXTS[n].encode(), f"{n}.flac": CLIPS[n]} for n in range(5)]
    tar(folder / "t-0.tar", members[0] | members[1])
    tar(folder / "t-1.tar", members[2] | members[3] | members[4])
    lines = []
    for number, (text, data) in enumerate(zip(TEXTS, CLIPS, strict=True)):
        (folder / f"{number}.flac").write_bytes(data)
        said = [
            {"role": "user", "content": "<sound>\nTranscribe the input speech."},
            {"role": "assistant", "content": text},
        ]
        lines.append(json.dumps({"audios": [{"path": f"{number}.flac"}], "messages": said}) + "\n")
    (folder / "t.jsonl").write_text("".join(lines))


def batches(spec, processor, workers=0):
    build(spec, check=check, measure=True)
    config = DataConfig({"t": spec}, {"t": 1}, seed=0, context=512, bins=1, max_seconds=30.0, chunk=64)
    loader = Loader(config, processor, workers=workers)
    first = next(iter(loader)).micro[0]
    assert not first.bad
    return loader, first


@pytest.mark.slow
def test_every_form_gives_the_same_batches_from_here_and_from_storage(tmp_path, server):
    pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    (tmp_path / "here").mkdir()
    written(tmp_path / "here")
    for file in (tmp_path / "here").iterdir():
        server.files[f"t/{file.name}"] = file.read_bytes()
    processor, found = tiny.processor(), {}
    for name in ("t.jsonl", "t-{0..1}.parquet", "t-{0..1}.tar"):
        for folder in (str(tmp_path / "here"), f"{server.url}/t"):
            remote = folder.startswith("http")
            loader, batch = batches(f"{folder}/{name}", processor, workers=2 if remote and "parquet" in name else 0)
            assert loader.samples_per_epoch == 5
            found[name, remote] = loader.fingerprint, batch
    like = found["t.jsonl", False][1].batch
    for (name, remote), (fingerprint, batch) in found.items():
        assert fingerprint == found[name, False][0], "what is resumed may move"
        assert torch.equal(batch.batch.input_ids, like.input_ids), (name, remote)
        assert torch.equal(batch.batch.pcm, like.pcm), (name, remote)


def test_a_signed_address_is_what_its_path_says(tmp_path, server):
    pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    written(tmp_path)
    processor = tiny.processor()
    for name, kind in (("t-0.tar", "tars"), ("t-0.parquet", "tables"), ("t.jsonl", "lines")):
        address = f"{server.url}/t/{name}?sig=a/b.jsonl%2B&x=1"
        assert (locate(address).kind, locate(address).folder) == (kind, f"{server.url}/t")
        server.files[f"t/{name}?sig=a/b.jsonl%2B&x=1"] = (tmp_path / name).read_bytes()
        if kind != "lines":
            there, here = batches(address, processor)[1], batches(str(tmp_path / name), processor)[1]
            assert torch.equal(there.batch.pcm, here.batch.pcm)
            assert [sample.id for sample in there.samples] == [sample.id for sample in here.samples]


def test_a_long_recording_in_storage_is_not_fetched_whole(tmp_path, server):
    for kind, first in (("WAV", 3), ("FLAC", 1)):
        long = clip(60, kind)
        server.files["a"] = long
        tar(tmp_path / "x.tar", {"short": b"x", "a": long})
        server.files["x.tar"] = (tmp_path / "x.tar").read_bytes()
        storage.forget()
        like = load(Audio(long, start=40, end=41))
        for name in ("a", "x.tar#a"):
            audio = Audio(f"{server.url}/{name}", start=40, end=41)
            open_archive(f"{server.url}/x.tar")
            server.since()
            assert measured_seconds(replace(audio, start=None, end=None)) == 60
            assert server.since() <= first * BLOCK, "its headers"
            assert torch.equal(load(audio), like)
            assert server.since() < 0.6 * len(long), "of the window and its surroundings"


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("share", [1, 0.5])
def test_windows_and_what_is_wrong_with_them_are_those_of_a_file_here(kind, share, tmp_path):
    """FFmpeg seeks in what lies in storage, and reads what lies here from its beginning."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec reads what lies in storage")
    data = clip(30, kind)
    data = data[: int(share * len(data))]
    (tmp_path / "a").write_bytes(data)
    fsspec.filesystem("memory").pipe_file("memory://window/a", data)
    places = [
        (12, 13),
        (10.5, 11),
        (14.5, None),
        (20, 21),
        (29.9, 30),
        (29, 30.005),
        (29, 30.5),
        (28, None),
        (60, None),
    ]
    for start, end in [*places, (30, None), (29.9995, None), (0, None)]:
        found = []
        for source in (tmp_path / "a", "memory://window/a"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found.append(load_audio(source, start=start, end=end, name="a").tolist())
            except ValueError as error:
                found.append(str(error))
        assert found[0] == found[1], (start, end)
    fsspec.filesystem("memory").store.clear()


def test_storage_that_gives_way_in_the_midst_of_a_recording_is_one_line(server, capfd, monkeypatch):
    monkeypatch.setattr(storage, "WAITS", ())
    for kind in ("WAV", "FLAC"):
        server.files["a"] = clip(60, kind)
        data = RemoteBytes(f"{server.url}/a", first=BLOCK)
        server.forbidden = {"a"}
        server.since()
        with pytest.raises(ValueError, match=r"^http://[\d.:]+/a: no access \([^\n]*403[^\n]*; it needs [^\n]*$"):
            load_audio(data)
        assert len(server.asked) == 1, "nothing more is asked for"
        server.forbidden = set()
    assert capfd.readouterr() == ("", ""), "FFmpeg says nothing of its own"


def test_an_index_of_what_may_no_longer_be_read_says_so_before_training(tmp_path, server):
    (tmp_path / "here").mkdir()
    tar(tmp_path / "here" / "t.tar", {"k.flac": CLIPS[0], "k.txt": b"One."})
    server.files["t.tar"] = (tmp_path / "here" / "t.tar").read_bytes()
    build(f"{server.url}/t.tar", check=check, measure=True)
    assert len(Corpus(f"{server.url}/t.tar")) == 1
    server.forbidden = {"t.tar"}
    for work in (Corpus, build):
        with pytest.raises(ValueError, match=r"t\.tar: no access \(.*403.*\); it needs") as error:
            work(f"{server.url}/t.tar")
        assert "\n" not in str(error.value)
