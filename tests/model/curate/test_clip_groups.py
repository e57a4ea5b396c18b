"""Groups of clips: partners by turns, clips that texts name, and where they stand in a question."""

from afn_model.curate.clip_groups import clips_there, group, heard_in, numbers_in, partners, placed
from afn_model.curate.questions import Question
from tests.model.curate.pooled import clip, pool


def test_groups_take_turns_and_their_order_is_that_of_a_hash():
    clips = [clip(name, f"A {name}.") for name in "abcdefgh"]
    assert partners(pool(clips[0], clips[1:3], clips[3:7])) == [clips[n] for n in (1, 3, 2, 4, 5, 6)]
    assert group(clips[0], clips[1:4]) == group(clips[0], clips[3:0:-1])
    first = [group(one, [other]).index(one) for one in clips for other in clips if one is not other]
    assert 15 < sum(first) < 41
    heard = heard_in([clip("x", "A dog.", "A cat."), clip("y", "A horn.")])
    assert heard.seconds == (20.0, 10.0)
    assert heard.said().splitlines()[1:] == ["clip 1, 10.0 to 20.0 s: A cat.", "clip 2, 0.0 to 10.0 s: A horn."]
    assert len(heard.annotations) == 2


def test_clips_that_a_text_names():
    for text, wanted in (
        ("In Clip 2, but not in clip three?", {2, 3}),
        ("Do clips 1, 2 and 4 agree?", {1, 2, 4}),
        ("What do clip 1 and clip #2 share?", {1, 2}),
        ("What do these clips share with one another?", set()),
        ("After 3 seconds of the eclipse 4 dogs bark.", set()),
    ):
        assert numbers_in(text) == wanted, text
    heard = heard_in([clip("x", "A dog."), clip("y", "A horn.")])
    for text, wrong in (
        ("Is clip 2 louder?", ""),
        ("Is clip 3 louder?", "a clip that does not exist"),
        ("Is clip 0 louder?", "a clip that does not exist"),
    ):
        assert clips_there(Question("compare", text, "clip 1"), heard) == wrong


def test_clips_stand_before_after_or_within_a_question():
    made = {placed(f"Is clip 1 louder than clip 2 by {n} dB?\n(A) clip 1\n(B) clip 2", 2) for n in range(20)}
    inside = {text for text in made if text.startswith("Is clip 1 <sound-1> louder than clip 2 <sound-2> by")}
    before = {text for text in made if text.startswith("Clip 1: <sound-1>\nClip 2: <sound-2>\nIs clip 1 louder")}
    assert inside
    assert before
    assert inside | before == made
    assert all(text.endswith("?\n(A) clip 1\n(B) clip 2") for text in made)
    vague = {placed(f"Which is louder, {n}?", 3) for n in range(20)}
    assert {text.splitlines()[0] for text in vague if text.startswith("Clip")} == {"Clip 1: <sound-1>"}
    assert any(text.endswith("Clip 2: <sound-2>\nClip 3: <sound-3>") for text in vague)
