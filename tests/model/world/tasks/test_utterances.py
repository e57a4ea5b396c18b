"""Utterances for speech recognition: when words are said, who says them, and what is held out."""

from itertools import pairwise

import numpy as np
import pytest

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.data import records
from afn_model.prompt.speech_task import SPEAKER, SpeechTask
from afn_model.world import vocabulary
from afn_model.world.build import UTTERANCES, make
from afn_model.world.tasks import utterances
from afn_model.world.vocabulary import ACCENT, ENROLMENT, VOCABULARY, speakers_of, talkers_of

pytest.importorskip("espeakng_loader", reason="speech synthesis (the demo extra) is not installed")
MANY = 40


@pytest.fixture(scope="module")
def made():
    return {axis: [make(axis, 3, "heldout", i) for i in range(MANY)] for axis in UTTERANCES}


@pytest.fixture
def few_speakers(monkeypatch):
    """A training split of two speakers, so that its words are quickly said."""
    monkeypatch.setattr(vocabulary, "_BANKS", {})
    few = {voice: talkers_of("train", voice)[:1] for voice in ("man", "woman")}
    for module in (vocabulary, utterances):
        monkeypatch.setattr(module, "talkers_of", lambda split, voice: few[voice])


def reply(each):
    return each.record["messages"][-1]["content"]


def words(each, audio):
    return [event for event in each.record["events"] if event.get("audio", 0) == audio and event["kind"] == "word"]


def test_the_vocabulary_is_aligned_and_its_splits_are_apart():
    assert {len(own) for own in VOCABULARY.values()} == {16}
    assert all(len(set(own)) == len(own) and not set(own) & set(ENROLMENT) for own in VOCABULARY.values())
    assert VOCABULARY.keys() == ACCENT.keys()
    known, new = (
        {(voice, speaker.variant) for voice in ("man", "woman") for speaker in speakers_of(split, "en")}
        for split in ("train", "heldout")
    )
    assert not known & new
    for voice in ("man", "woman"):
        assert len(talkers_of("train", voice)) >= 15
        assert len(talkers_of("heldout", voice)) >= 5


def test_records_are_well_formed_and_a_function_of_their_place(made):
    for axis, several in made.items():
        for place, each in enumerate(several[:5]):
            records.check(each.record)
            again = make(axis, 3, "heldout", place)
            assert again.record == each.record
            assert all(np.array_equal(a, b) for a, b in zip(again.pcm, each.pcm, strict=True))
    with pytest.raises(ValueError, match="phrases is as long as what is said"):
        make("phrases", 3, "heldout", 0, (2.0, 3.0))


def test_words_are_heard_when_the_record_says(made):
    for axis in ("single", "phrases", "interpreted"):
        for each in made[axis]:
            (pcm,), said = each.pcm, words(each, 0)
            assert 1 <= len(said) <= 5
            quiet = np.ones(len(pcm), bool)
            for event in said:
                first, end = (round(event[key] * SAMPLE_RATE) for key in ("start", "end"))
                quiet[first:end] = False
                at_edges = [np.abs(pcm[a:b].astype(float)).max() for a, b in ((first, first + 800), (end - 800, end))]
                assert min(at_edges) > 0.01 * np.abs(pcm[first:end]).max()
            assert all(a["end"] < b["start"] for a, b in pairwise(said))
            loud, silent = (np.mean(pcm[where].astype(float) ** 2) for where in (~quiet, quiet))
            assert loud > 3 * silent


def test_texts_are_what_is_said(made):
    for each in made["phrases"]:
        assert reply(each).split() == [event["label"] for event in words(each, 0)]
        assert 2 <= len(reply(each).split()) <= 5
    for each in made["interpreted"]:
        source, into = each.record["truth"]["language"], SpeechTask.read(each.record["messages"][0]["content"]).language
        places = [VOCABULARY[source].index(event["label"]) for event in words(each, 0)]
        assert source != into
        assert reply(each).split() == [VOCABULARY[into][place] for place in places]
    for each in made["captions"]:
        assert reply(each).split() == [event["label"] for event in each.record["events"]]


def test_talkers_overlap_and_come_in_order_of_first_appearance(made):
    for axis, audio in (("overlaps", 0), ("target", 1)):
        for each in made[axis]:
            by_voice = {}
            for event in words(each, audio):
                by_voice.setdefault(event["voice"], []).append(event)
            first, second = by_voice.values()
            assert first[0]["start"] < second[0]["start"] < first[-1]["end"]
            texts = [" ".join(event["label"] for event in talker) for talker in (first, second)]
            assert sorted(texts) == sorted(each.record["truth"]["texts"])
            if axis == "overlaps":
                assert reply(each) == f" {SPEAKER} ".join(texts)
                continue
            enrolled = words(each, 0)
            assert {event["label"] for event in enrolled} <= set(ENROLMENT)
            (speaker,) = {event["speaker"] for event in enrolled}
            meant = first if first[0]["speaker"] == speaker else second
            assert {event["speaker"] for event in meant} == {speaker}
            assert reply(each) == " ".join(event["label"] for event in meant)


def test_sequences_of_words_are_held_out(made, few_speakers):
    train = [make("phrases", 3, "train", i) for i in range(MANY)]
    assert not any(utterances.held_out(reply(each).split()) for each in train)
    assert all(utterances.held_out(reply(each).split()) for each in made["phrases"])
