"""Digests of recordings: made once, made again where the bytes have changed, and kept whatever stops the process."""

import hashlib
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from afn_model.eval.running import clip_digests
from afn_model.eval.running.clip_digests import MISSING, ClipDigests
from tests.model.serve.serving import wav


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three recordings and one that is no sound; ``folder.made`` are those whose bytes were read."""
    made = []
    digest = ClipDigests._digest
    monkeypatch.setattr(
        ClipDigests, "_digest", lambda self, path: (made.append(os.path.basename(path)), digest(self, path))[1]
    )
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(wav(0.2 + 0.1 * number, number))
    (tmp_path / "3.wav").write_bytes(b"no sound")
    return tmp_path, made


def test_once_and_again_where_changed(folder):
    place, made = folder
    paths, keep = [str(place / f"{n}.wav") for n in range(4)], place / "out" / "clips.jsonl"
    digests = ClipDigests(keep)
    digests.read([*paths, *paths])
    assert made == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert [digests(path) for path in paths] == [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    assert [digests.seconds(path) for path in paths] == [0.2, 0.3, 0.4, 0.0]
    assert [digests.seconds(paths[2], *part) for part in ((0.1, None), (0.1, 0.3), (None, 9.0), (0.5, None))] == [
        *(0.3, 0.2, 0.4, 0.0)
    ]
    (place / "1.wav").write_bytes(wav(0.3, 9))
    os.utime(place / "1.wav", ns=(1, 1))
    made.clear()
    again = ClipDigests(keep)
    again.read(paths)
    assert made == ["1.wav"]
    assert again(paths[1]) != digests(paths[1])
    assert again(paths[0]) == digests(paths[0])


def test_a_recording_that_is_absent_or_goes(folder):
    place, made = folder
    keep, gone, never = place / "clips.jsonl", str(place / "0.wav"), str(place / "never.wav")
    digests = ClipDigests(keep)
    digests.read([gone, never])
    assert (digests(never), digests.seconds(never)) == (MISSING, 0.0)
    assert "No such file" in digests.problems.pop(never)
    assert digests.problems == {}
    os.remove(gone)
    again = ClipDigests(keep)
    again.read([gone, never])
    assert again(gone) == digests(gone), "scores need no recordings"
    assert sorted(again.problems) == [gone, never]
    (place / "never.wav").write_bytes(wav(0.2))
    made.clear()
    again.read([never])
    assert again(never) != MISSING
    assert made == ["never.wav"]


def test_a_killed_process_and_a_full_disk(folder, monkeypatch):
    place, made = folder
    paths, keep = [str(place / f"{n}.wav") for n in range(3)], place / "clips.jsonl"
    ClipDigests(keep).read(paths[:2])
    whole = keep.read_bytes()
    for cut in (whole[:-1], whole[:-9], whole + b'{"path": "', whole + b"no json\n\xff\n" + b'{"path": 1}\n'):
        keep.write_bytes(cut)
        ClipDigests(keep).read(paths)
        made.clear()
        found = ClipDigests(keep)
        found.read(paths)
        assert made == [], "the line after a torn one is whole"
        assert len(found.known) == 3
    keep.unlink()
    keep.mkdir()
    digests = ClipDigests(keep)
    digests.read(paths)
    assert digests(paths[0]) != MISSING
    shutil.rmtree(keep)
    monkeypatch.setattr(clip_digests, "append_row", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    digests = ClipDigests(keep)
    digests.read(paths)
    assert digests(paths[0]) != MISSING
    assert ClipDigests(keep).known == {}


def test_a_member_of_a_tar_file(folder):
    place, _ = folder
    odd = place / "a#b"
    odd.mkdir()
    with tarfile.open(odd / "x.tar", "w") as tar:
        tar.add(place / "1.wav", "1.wav")
    digests = ClipDigests(place / "clips.jsonl")
    path = f"{odd / 'x.tar'}#1.wav"
    digests.read([path])
    assert digests(path) == hashlib.sha256((place / "1.wav").read_bytes()).hexdigest()
    assert digests.known[path].state.startswith(f"{(odd / 'x.tar').stat().st_size} ")
