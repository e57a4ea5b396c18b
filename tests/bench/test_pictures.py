"""Every results file has a picture of its figures as they are now, or a reason why it has none."""

import json

import pytest

from bench import pictures

FOLDERS = sorted(x for x in pictures.RESULTS.iterdir() if x.is_dir())
DATA = sorted(x for folder in FOLDERS for x in folder.iterdir() if x.suffix in (".json", ".jsonl"))
REDRAW = "draw it: python -m bench.pictures"


@pytest.mark.parametrize("file", DATA, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_a_results_file_has_a_picture_or_a_reason(file):
    if file.name in pictures.NO_PICTURE:
        assert len(pictures.NO_PICTURE[file.name]) > 20
        return
    if file.name in pictures.DRAWN_ELSEWHERE:
        assert file.with_name(pictures.DRAWN_ELSEWHERE[file.name][0]).is_file()
        return
    names = [n for n, p in pictures.PICTURES.items() if any(file.match(pattern) for pattern in p.files)]
    assert names, f"{file.name} has neither a picture in bench/pictures.py nor a reason there"
    for name in names:
        path = file.with_name(name)
        assert path.is_file(), REDRAW
        files = pictures.found(file.parent, pictures.PICTURES[name])
        assert pictures.stamped(path) == pictures.digest(files), f"{path} is not of these figures; {REDRAW}"


def test_what_only_a_gpu_measures_is_drawn_too(tmp_path):
    pytest.importorskip("matplotlib")
    common = {"gpu": "NVIDIA H200", "date": "2000-01-01"}
    step = {"case": "pre-1", "text_layers": 28, "absent": None, "tokens_per_s": 1e4} | common
    steps = [step | {"variant": "ours"}, step | {"variant": "liger", "tokens_per_s": 9e3}, step | {"absent": "x"}]
    ring = [
        {"clips": clips, "tokens": 96, "backward": backward, "ranks": ranks, "over_plain": 1 + ranks / 10}
        for clips in ("one", "mix")
        for backward in (False, True)
        for ranks in (1, 2, 4)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(x) + "\n" for x in steps))
    (tmp_path / "virtual_ranks.jsonl").write_text(json.dumps({"rows": ring} | common) + "\n")
    assert {x.name for x in pictures.draw(tmp_path)} == {"train.png", "virtual_ranks.png"}


def test_what_is_there_is_drawn_and_stamped(tmp_path):
    imread = pytest.importorskip("matplotlib.image").imread
    record = {"microseconds": {"eager": 2.0, "compiled": 3.0}, "threads": 1, "date": "2000-01-01"}
    (tmp_path / "boundary.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "other.jsonl").write_text("{}\n")
    assert pictures.draw(tmp_path) == [tmp_path / "boundary.png"]
    found = pictures.digest([[tmp_path / "boundary.jsonl"]])
    assert pictures.stamped(tmp_path / "boundary.png") == found
    assert imread(tmp_path / "boundary.png").ndim == 3, "still a PNG"
