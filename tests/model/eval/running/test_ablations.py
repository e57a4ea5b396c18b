"""Items changed on purpose, and what the order of options changes in a score."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from afn_model.eval.items import AnsweredItem, Item, ItemClip
from afn_model.eval.rules.choices import choices
from afn_model.eval.running import ablations
from afn_model.eval.running.ablations import ablate, rotations
from afn_model.eval.running.asks import asks_of
from afn_model.eval.running.clip_digests import ClipDigests
from afn_model.eval.score import Tools
from tests.model.eval.running.scripted import ASKING, ROW, items
from tests.model.serve.serving import wav


def test_names(tmp_path):
    made, digests = items(3), ClipDigests(tmp_path / "clips.jsonl")
    assert ablate("", made, tmp_path, digests) == made
    with pytest.raises(ValueError, match="nothing: no such ablation; there are no-audio, noise, wrong-audio, rotate"):
        ablate("nothing", made, tmp_path, digests)


def test_no_audio(tmp_path):
    item = Item("a", "Is <sound-2> like\n<audio>?", (ItemClip("1.wav"), ItemClip("2.wav")), ("yes", "no"))
    (found,) = ablate("no-audio", [item], tmp_path, ClipDigests(tmp_path / "clips.jsonl"))
    assert found == replace(item, clips=(), question="Is  like\n?")
    (ask,) = asks_of(ROW, [found], ASKING, str)
    assert [part["type"] for part in ask.messages[0]["content"]] == ["text"]
    assert ask.problem == ""


def test_noise_tells_nothing_but_the_length(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "SHORT", 10)
    monkeypatch.setattr(ablations, "LONGEST", 20)
    data = [tmp_path / f"{n}.wav" for n in range(3)]
    for path, seconds in zip(data, (0.5, 0.5, 12.0), strict=True):
        path.write_bytes(wav(seconds))
    clips = [ItemClip(str(data[0])), ItemClip(str(data[1])), ItemClip(str(data[0]), 0.1, 0.3), ItemClip(str(data[2]))]
    clips += [ItemClip(str(tmp_path / "no.wav")), ItemClip(str(data[0]), 0.6)]
    made = [Item("two", "?", tuple(clips[:2])), *(Item(str(n), "?", (clip,)) for n, clip in enumerate(clips))]
    out, digests = tmp_path / "out", ClipDigests(tmp_path / "clips.jsonl")
    two, *found = ablate("noise", made, out, digests, seed=3)
    (one, other, part, long, absent, beyond) = [item.clips[0] for item in found]
    assert two.clips == (one, other)
    assert one == other == ItemClip(str(out / "noise" / "white-3-10.wav"), 0.0, 0.5)
    assert (part.path, part.end) == (one.path, 0.2)
    assert long == ItemClip(str(out / "noise" / "white-3-20.wav"), 0.0, 12.0)
    assert [absent, beyond] == clips[4:], "errors that the run names"
    pcm, rate = soundfile.read(one.path)
    assert (len(pcm), rate) == (160_000, 16_000)
    # 160,000 independent samples: the estimate's own deviation is 1 / sqrt(2 n) of the level, 1 / sqrt(n) of a
    # correlation; six of them.
    level, bound = np.sqrt((pcm**2).mean()), 6 / math.sqrt(2 * len(pcm))
    assert abs(level / ablations.NOISE_RMS - 1) < bound
    assert abs((pcm[1:] * pcm[:-1]).mean() / level**2) < 6 / math.sqrt(len(pcm))
    whole = {path.name: path.read_bytes() for path in (out / "noise").iterdir()}
    assert set(whole) == {"white-3-10.wav", "white-3-20.wav"}
    ablate("noise", made, tmp_path / "again", digests, seed=3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "again" / "noise").iterdir()} == whole
    ablate("noise", made[:2], out, digests, seed=4)
    assert (out / "noise" / "white-4-10.wav").read_bytes() != whole["white-3-10.wav"]


def test_wrong_audio(tmp_path):
    made, digests = items(20, shared=2), ClipDigests(tmp_path / "clips.jsonl")
    made += [Item("pair", "?", (ItemClip("a.wav", 1.0), ItemClip("a.wav", 2.0))), Item("text", "?")]
    found = ablate("wrong-audio", made, tmp_path, digests)
    assert [replace(one, clips=()) for one in found] == [replace(one, clips=()) for one in made]
    before, after = ([clip for item in some for clip in item.clips] for some in (made, found))
    turned = dict(zip(before, after, strict=True))
    assert all(clip != other for clip, other in turned.items())
    assert set(turned) == set(turned.values()), "each recording in one other's place"
    assert [len(item.clips) for item in found] == [*[1] * 20, 2, 0]
    assert found[0].clips == found[1].clips, "questions about one recording hear the same other one"
    assert ablate("wrong-audio", made, tmp_path, digests) == found
    assert ablate("wrong-audio", made, tmp_path, digests, seed=1) != found
    with pytest.raises(ValueError, match="two different recordings are needed, there are 1"):
        ablate("wrong-audio", items(2), tmp_path, digests)


def rotated(tmp_path, made) -> list[Item]:
    return ablate("rotate-options", made, tmp_path, ClipDigests(tmp_path / "clips.jsonl"))


def test_rotated_options(tmp_path):
    made = [Item("a", "?", (), ("x", "y", "z"), "y", groups={"task": "t"}), Item("b", "?", (), ("u", "v"), "u")]
    found = rotated(tmp_path, [*made, Item("c", "?")])
    assert [(one.id, one.choices, one.answer, one.groups["rotation"]) for one in found] == [
        ("a@r0", ("x", "y", "z"), "y", "0"),
        ("a@r1", ("y", "z", "x"), "y", "1"),
        ("a@r2", ("z", "x", "y"), "y", "2"),
        ("b@r0", ("u", "v"), "u", "0"),
        ("b@r1", ("v", "u"), "u", "1"),
        ("c@r0", (), None, "0"),
    ]
    assert found[0].groups["task"] == "t"
    with pytest.raises(ValueError, match="rotate-options: no item has options"):
        rotated(tmp_path, [Item("c", "?")])


def test_the_mean_the_worst_and_what_is_always_right(tmp_path):
    """Who always takes the first option is right once in every rotation; who knows is right in all."""
    made = [Item(f"i{n}", "?", (), ("x", "y", "z"), "xyz"[n % 3]) for n in range(6)]
    made += [Item("two", "?", (), ("x", "y"), "x"), Item("hidden", "?", (), ("x", "y"))]
    items = rotated(tmp_path, made)

    def of(answer):
        answered = [AnsweredItem(item, answer(item)) for item in items]
        return rotations(answered, choices(answered, Tools()))

    first = of(lambda item: item.choices[0])
    assert first.each == pytest.approx((100 * 3 / 7, 100 * 2 / 7, 100 * 3 / 7), rel=1e-12)
    assert (first.worst, first.always) == pytest.approx((100 * 2 / 7, 0.0), rel=1e-12)
    assert first.mean == pytest.approx(sum(first.each) / 3, rel=1e-12)
    knows = of(lambda item: item.answer or "x")
    assert (knows.each, knows.mean, knows.worst, knows.always) == ((100.0,) * 3, 100.0, 100.0, 100.0)
    half = of(lambda item: item.answer if item.extra["rotation of"] in ("i0", "two") else "none of these")
    assert half.mean == half.always == pytest.approx(100 * 2 / 7, rel=1e-12)
    nothing = of(lambda item: None)
    assert (nothing.mean, nothing.always) == (0.0, 0.0)
    answered = [AnsweredItem(item, None) for item in rotated(tmp_path, made[-1:])]
    empty = rotations(answered, choices(answered, Tools()))
    assert empty.each == ()
    assert math.isnan(empty.mean)
    lower = [AnsweredItem(item, item.choices[0]) for item in items]
    assert rotations(lower, choices(lower, Tools()), lower=True).worst == max(first.each)


def test_noise_of_a_folder_that_is_named_from_here(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "SHORT", 10)
    monkeypatch.chdir(tmp_path)
    recording = tmp_path / "a.wav"
    recording.write_bytes(wav(1))
    item = Item("a", "?", (ItemClip(str(recording)),))
    (found,) = ablate("noise", [item], Path("out"), ClipDigests(Path("clips.jsonl")))
    assert found.clips[0].path == str(tmp_path / "out/noise/white-0-10.wav")
