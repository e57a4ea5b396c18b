import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="recordings speak with espeakng-loader")

from afn_model.curate.plan import stage_class
from afn_model.curate.stage import Context, Dropped, Failed, Kept
from afn_model.curate.stages.near_duplicates import Clusters, Fingerprints, NearDuplicates
from tests.model.curate.audio import SAMPLE_RATE, mp3, noisy, recordings, vorbis

FREE, TRAIN = ({"train": True, "annotations": True, "audio": audio} for audio in (True, False))


@pytest.fixture(scope="module")
def pcm():
    return recordings()


def prepared(folder, given):
    """Rows (name, bytes, uses, rate) with fingerprints, and the context."""
    context = Context(folder)
    rows = []
    (folder / "recordings").mkdir(exist_ok=True)
    for name, data, uses, rate in given:
        file = f"recordings/{name}.ogg"
        (folder / file).write_bytes(data)
        rows.append({"id": name, "file": file, "source_id": name, "uses": uses, "rate": rate, "seconds": len(data)})
    made = Fingerprints().run(rows, context)
    return [row | kept.fields for row, kept in zip(rows, made, strict=True)], context


def test_one_of_each_stays_and_the_others_say_why(pcm, tmp_path):
    whole = np.concatenate([pcm["rain 0"], pcm["speech 0"], pcm["bell 0"], pcm["noise"]])
    begin = len(pcm["rain 0"])
    given = [
        ("a", mp3(pcm["speech 0"]), FREE, 16_000),  # the better licence: it stays though it is in c
        ("b", vorbis(noisy(pcm["speech 0"], 50)[2_345:]), TRAIN, 44_100),
        ("c", vorbis(whole), TRAIN, 16_000),
        ("d", mp3(0.3 * whole[-3 * SAMPLE_RATE :]), TRAIN, 16_000),
        ("e", mp3(pcm["rain 1"]), TRAIN, 16_000),
        ("f", vorbis(np.zeros(SAMPLE_RATE, np.float32)), TRAIN, 16_000),
        ("g", vorbis(np.zeros(SAMPLE_RATE, np.float32)), TRAIN, 16_000),  # silence is no copy of silence
    ]
    rows, context = prepared(tmp_path, given)
    found = dict(zip("abcdefg", NearDuplicates().run(rows, context), strict=True))
    assert {name for name, one in found.items() if isinstance(one, Dropped)} == {"b", "d"}
    assert found["b"].reason == "near duplicate"
    assert "of it is in a: 0 to" in found["b"].detail
    assert "from 0.1" in found["b"].detail  # where 2,345 samples are
    assert "of it is in c" in found["d"].detail
    assert {name: one.fields["cluster"] for name, one in found.items() if isinstance(one, Kept)} == {
        "a": "a",
        "c": "a",
        "e": "e",
        "f": "f",
        "g": "g",
    }
    assert all(not found[name].fields["overlaps"] for name in "aefg")
    (overlap,) = found["c"].fields["overlaps"]
    assert overlap["with"] == "a"
    assert overlap["start"] - overlap["there"] == pytest.approx(begin / SAMPLE_RATE, abs=0.06)  # MP3 begins late
    assert NearDuplicates().run(rows[::-1], context) == list(found.values())[::-1]  # whatever the order


def test_a_compilation_goes_where_its_parts_are(pcm, tmp_path):
    parts = ("speech 0", "rain 0", "noise")
    given = [(name[0], vorbis(pcm[name]), FREE, 16_000) for name in parts]
    given.append(("x", vorbis(np.concatenate([pcm[name] for name in parts])), TRAIN, 16_000))
    rows, context = prepared(tmp_path, given)
    *kept, dropped = NearDuplicates().run(rows, context)
    assert all(isinstance(one, Kept) and one.fields["cluster"] == "n" for one in kept)
    assert isinstance(dropped, Dropped)
    assert " and 2 more" in dropped.detail


def test_a_fingerprint_is_made_once_and_a_bad_file_fails(pcm, tmp_path):
    rows, context = prepared(tmp_path, [("a", vorbis(pcm["bell 0"]), FREE, 16_000)])
    (tmp_path / rows[0]["file"]).unlink()
    assert Fingerprints().run(rows, context) == [Kept({"fingerprint": rows[0]["fingerprint"]})]
    (tmp_path / "recordings" / "bad.ogg").write_bytes(b"nothing")
    bad = {"id": "b", "file": "recordings/bad.ogg", "source_id": "b"}
    (outcome,) = Fingerprints().run([bad], context)
    assert isinstance(outcome, Failed)
    assert not outcome.retryable
    assert "not audio" in outcome.error


def test_clusters_are_named_by_their_smallest():
    clusters = Clusters()
    for one, two in (("d", "e"), ("b", "c"), ("e", "c"), ("x", "y")):
        clusters.join(one, two)
    assert [clusters.of(name) for name in "abcdexy"] == ["a", "b", "b", "b", "b", "x", "x"]


def test_plans_know_the_stages():
    for name in ("fingerprints", "near-duplicates", "near-texts", "decontaminate", "decontaminate-texts"):
        assert stage_class(name).name == name


@pytest.mark.parametrize("wrong", [{"share": 0}, {"score": "high"}])
def test_parameters_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NearDuplicates(**wrong)
