"""Records held back stay with all of their recordings, and what training holds is found under any name."""

import json
import shutil
import tarfile

import numpy as np
import pytest

from afn_model.data import heldout, index
from afn_model.data.heldout import check_apart, evenly, split
from afn_model.data.index import Corpus
from tests.tiny import record


def corpus(folder, name, recordings):
    """A corpus whose records have these recordings each."""
    lines = []
    for number, some in enumerate(recordings):
        asked = {"role": "user", "content": "<sound>" * len(some) + "?"}
        talk = [asked, {"role": "assistant", "content": "x"}]
        lines.append({"id": str(number), "audios": [{"path": path} for path in some], "messages": talk})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index.build(folder / f"{name}.jsonl")
    return Corpus(folder / f"{name}.jsonl")


def test_records_of_the_same_recording_stay_together(tmp_path):
    # Recordings 2 k and 2 k + 1 are joined by a record; so are their records.
    pairs = [[f"{n}.wav"] for n in range(40)] + [[f"{2 * k}.wav", f"{2 * k + 1}.wav"] for k in range(20)]
    found = corpus(tmp_path, "talks", pairs)
    training, held = split(found, 0.1, seed=0)
    assert sorted([*training, *held]) == list(range(60))
    assert len(held) == 6
    group = np.array([n // 2 for n in range(40)] + list(range(20)))
    assert not set(group[training]) & set(group[held])
    assert set(split(found, 0.1, seed=1)[1]) != set(held)
    with pytest.raises(ValueError, match=r"no 1 of them can be held back; give eval its own data"):
        split(corpus(tmp_path, "one", [["a.wav"], ["a.wav"]]), 0.1, seed=0)


def test_a_corpus_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "MOST", 1)
    with pytest.raises(ValueError, match="2 records are too many to hold a share of them back"):
        split(corpus(tmp_path, "talks", [["a.wav"], ["b.wav"]]), 0.1, seed=0)


def test_what_training_holds_is_found_by_path_and_by_content(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        record(tmp_path / f"{name}.wav", 0.1, seed=ord(name))
    shutil.copy(tmp_path / "b.wav", tmp_path / "copy.wav")
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(tmp_path / "c.wav", "of-c.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "d.wav")
    training = {"talks": corpus(tmp_path, "talks", [["a.wav"], ["copy.wav"], ["some.tar#of-c.wav"], ["link.wav"]])}
    check_apart(training, corpus(tmp_path, "apart", [["e.wav"], []]))
    with pytest.raises(ValueError, match=r"4 held-out recordings are trained on: .*; and 1 more$") as error:
        check_apart(training, corpus(tmp_path, "held", [["e.wav"], ["a.wav"], ["b.wav"], ["c.wav"], ["d.wav"]]))
    for number, name in enumerate("abc"):
        assert f"record {number + 1} ({tmp_path.resolve() / name}.wav) is in talks[{number}]" in str(error.value)
    assert "\n" not in str(error.value)


def test_evenly():
    numbers = np.arange(100)
    some = evenly(numbers, 10)
    assert len(set(some)) == 10
    assert sorted(some) == list(some)
    assert evenly(numbers, 100) is numbers
