import io
import json
from argparse import Namespace

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="recordings speak with espeakng-loader")

from afn_model.audio.decode import load_audio
from afn_model.cli.curate_benchmarks import curate_benchmarks
from afn_model.curate import benchmark_index as bench
from afn_model.curate.stage import Context, Dropped, Kept
from afn_model.curate.stages.decontaminate import Decontaminate, DecontaminateTexts
from afn_model.curate.stages.near_duplicates import Fingerprints
from afn_model.eval.copies import write_copies
from afn_model.eval.copies.sounds import Sounds, encoded
from afn_model.eval.table import chosen
from tests.model.curate.audio import CHANGES, SAMPLE_RATE, recordings, vorbis

SUITE = "audiocaps-captions,clotho-captions,mmar,librispeech,gtzan"
TALK = "nobody knows how the yellow train came over the mountain in the snow of that long winter night"


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Copies of benchmarks, and what the command says of their index."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_copies(chosen(SUITE.split(",")), folder / "data")
    args = Namespace(data=str(folder / "data"), suite=SUITE, out=str(folder / "index"), json=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", said := io.StringIO())
        code = curate_benchmarks(args)
    return folder / "index", code, json.loads(said.getvalue())


def rows_of(context, given):
    """Rows with fingerprints of {name: (bytes, fields)}."""
    rows = []
    (context.out / "recordings").mkdir(exist_ok=True)
    for name, (data, told) in given.items():
        (context.out / "recordings" / name).write_bytes(data)
        rows.append({"id": name, "file": f"recordings/{name}", "source_id": name, "url": name, "about": {}, **told})
    made = Fingerprints().run(rows, context)
    return [row | kept.fields for row, kept in zip(rows, made, strict=True)]


def test_copies_of_benchmarks_are_found_and_nothing_else(copies, tmp_path):
    folder, code, said = copies
    index, context = bench.read_index(folder), Context(tmp_path)
    assert code == 0
    assert said["items"] == len(index.items) > 20
    assert said["missing"] == [] == list(said["problems"])
    around, sounds = recordings(seed=50), Sounds(51)
    clean = dict(around)
    clean |= {f"words {variant}": sounds.speech(TALK, variant=variant) for variant in ("m1", "m3", "f2")}
    clean |= {name: sounds.sound(name, 4.0) for name in ("bell", "clapping", "rain", "siren")}
    clean = {name: (encoded(one), {}) for name, one in clean.items()}
    planted = {}
    silent, paths = set(said["silent"]), clips(folder.parent / "data")
    for number, one in enumerate(index.of_clip.values()):
        name = f"{one['benchmark']}/{one['item']}"
        if name in silent:
            continue
        clip = load_audio(paths[name]).numpy()
        change = CHANGES[("mp3", "vorbis", "quieter", "8 kHz")[number % 4]]
        begin = 777 + 31 * number  # of a crop
        inside = np.concatenate([around["noise"][: 2 * SAMPLE_RATE], change(clip)[begin:], around["rain 1"]])
        planted[f"planted {number}"] = (encoded(inside), {"item": name})
    assert len(planted) > 15
    given = rows_of(context, clean | planted)
    found = Decontaminate(benchmarks=str(folder)).run(given, context)
    dropped = {row["id"]: one for row, one in zip(given, found, strict=True) if isinstance(one, Dropped)}
    assert set(dropped) == set(planted)  # precision and recall are 1
    marked = Decontaminate(benchmarks=str(folder), action="mark").run(given, context)
    for row, one in zip(given, marked, strict=True):
        spans = one.fields["contaminated"]
        assert bool(spans) == (row["id"] in planted)
        if spans:  # the clip begins after two seconds
            own = [span for span in spans if f"{span['benchmark']}/{span['item']}" == row["item"]]
            assert own
            assert all(span["start"] > 1.5 and span["by"] == "sound" for span in own)


def clips(data):
    """benchmark/item -> path"""
    from afn_model.cli.curate_benchmarks import benchmark_items

    items = benchmark_items(chosen(SUITE.split(",")), str(data), {})
    return {f"{one.benchmark}/{one.item}": one.audio for one in items}


def test_a_long_stretch_of_a_longer_item_counts(tmp_path):
    pcm, context = recordings(), Context(tmp_path)
    (tmp_path / "item.wav").write_bytes(encoded(np.concatenate([pcm["speech 0"], pcm["rain 0"], pcm["noise"]])))
    bench.build([bench.BenchmarkItem("b", "1", str(tmp_path / "item.wav"))], tmp_path / "index")
    part = np.concatenate([pcm["speech 2"], pcm["rain 0"], pcm["dog 1"]])
    rows = rows_of(context, {"part": (encoded(part), {})})
    for seconds, reason in ((2.0, "benchmark sound"), (10.0, None)):
        (one,) = Decontaminate(benchmarks=str(tmp_path / "index"), seconds=seconds).run(rows, context)
        assert getattr(one, "reason", None) == reason


def test_a_video_is_found_by_its_id_and_time(copies, tmp_path):
    folder, context = copies[0], Context(tmp_path)
    quiet = vorbis(np.zeros(SAMPLE_RATE, np.float32))
    item = bench.read_index(folder).videos["-video_0003"][0]
    assert (item["benchmark"], item["start"], item["end"]) == ("audiocaps-captions", 30.0, 40.0)
    url = {"url": "https://www.youtube.com/watch?v=-video_0003"}
    given = {
        "whole": url,
        "before": url | {"about": {"start": 0, "end": 30.0}},
        "within": url | {"about": {"start": 25.0, "end": 31.0}},
        "by id": {"about": {"youtube_id": "-video_0003"}},
        "another": {"about": {"youtube_id": "-video_9999"}},
    }
    rows = rows_of(context, {name: (quiet, told) for name, told in given.items()})
    found = dict(zip(given, Decontaminate(benchmarks=str(folder)).run(rows, context), strict=True))
    assert {name for name, one in found.items() if isinstance(one, Dropped)} == {"whole", "within", "by id"}
    assert found["whole"] == Dropped("benchmark video", "audiocaps-captions/-video_0003_30 by video at 30 s")
    marked = Decontaminate(benchmarks=str(folder), action="mark").run(rows, context)[2]
    (span,) = marked.fields["contaminated"]
    assert (span["start"], span["end"]) == (5.0, 6.0)  # of the recording


def test_words_of_benchmarks_are_found(tmp_path):
    bench.build([bench.BenchmarkItem("b", "7", texts=(f"What is told? {TALK}",))], tmp_path / "index")
    words, context = TALK.split(), Context(tmp_path)
    rows = [
        {"id": "0", "transcript": " ".join(words[-12:]), "questions": []},
        {"id": "1", "transcript": "He said: " + TALK.upper(), "questions": []},
        {"id": "2", "transcript": None, "questions": [{"question": "Is it told that", "answer": TALK}]},
        {"id": "3", "transcript": "", "questions": [{"question": TALK[:20], "answer": "no"}]},
    ]
    stage = DecontaminateTexts(benchmarks=str(tmp_path / "index"), texts=("transcript", "questions"))
    assert stage.reads == ("transcript", "questions")
    found = stage.run(rows, context)
    assert [isinstance(one, Dropped) for one in found] == [False, True, True, False]
    assert found[1].detail == f"b/7: {' '.join(words[:13])}"
    marked = DecontaminateTexts(benchmarks=str(tmp_path / "index"), action="mark").run(rows[:2], context)
    assert marked[0] == Kept({"contaminated_texts": []})
    assert marked[1].fields["contaminated_texts"][0]["item"] == "7"


def test_a_stage_depends_on_the_index(tmp_path):
    stages = [kind(benchmarks=str(tmp_path)) for kind in (Decontaminate, DecontaminateTexts)]
    with pytest.raises(ValueError, match="no index of benchmarks; afn curate benchmarks makes one"):
        stages[0].depends()
    told = []
    for text in ("one", "two"):
        bench.build([bench.BenchmarkItem("b", "1", texts=(text,))], tmp_path)
        told.append([stage.depends() for stage in stages])
        assert told[-1][0] == told[-1][1] == {"benchmarks": bench.index_hash(tmp_path)}
    assert told[0] != told[1]
    with pytest.raises(ValueError, match="afn curate benchmarks makes it"):
        Decontaminate()
    with pytest.raises(ValueError, match="action is drop or mark"):
        DecontaminateTexts(benchmarks="b", action="keep")
