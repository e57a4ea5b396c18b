"""The basic tasks: exact, balanced, and without a way to guess the answer."""

import itertools
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.world import record as world_record
from afn_model.world.build import make
from afn_model.world.medley import frame_labels
from afn_model.world.phrases import BASIC_PHRASES
from afn_model.world.record import BASICS, read_events
from afn_model.world.scene import BASIC
from afn_model.world.sounds import SOUNDS
from afn_model.world.tasks import basics
from afn_model.world.texts import basic_texts
from afn_model.world.words import WORDS

pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def made():
    return {task: [make(task, 3, "heldout", index) for index in range(800)] for task in BASICS}


@pytest.fixture
def quiet(monkeypatch):
    """No background and no second event."""
    monkeypatch.setattr(world_record, "BASIC", replace(BASIC, snr_db=None))
    monkeypatch.setattr(basics, "DISTRACTOR", 0.0)


def question(record, turn=0):
    return record["messages"][2 * turn]["content"].removeprefix("<sound>\n")


def answer(record, turn=0):
    return record["messages"][2 * turn + 1]["content"]


def asked_event(record):
    """The event that an onset question names."""
    name = question(record).rstrip("?").split(" the ")[1].split()[0]
    return next(e for e in read_events(record) if name == ("word" if e.kind == "word" else e.label))


def test_recordings_are_as_long_as_asked_and_hold_their_event(made):
    for task, (low, high) in {"word": (1, 2.2), "sound": (1, 3.1), "onset": (3.55, 4)}.items():
        for each in made[task]:
            assert low - 1e-3 <= each.record["duration"] <= high
            assert np.abs(each.pcm[0]).max() > 0.09 * 32767
            if task != "onset":
                (event,) = read_events(each.record)
                assert (event.kind, event.label) == (task, answer(each.record))


def test_the_event_starts_at_the_very_sample(quiet):
    for index in range(100):
        each = make("onset", 0, "heldout", index)
        (event,) = read_events(each.record)
        pcm, at = each.pcm[0].astype(int), round(event.start * SAMPLE_RATE)
        assert event.start == at / SAMPLE_RATE
        assert not pcm[:at].any()
        # Sounds fade in over 2 ms; a word's first sample is already above -40 dB of its peak.
        assert np.abs(pcm[at : at + 64]).max() > 0.004 * np.abs(pcm).max()
        assert not pcm[round(event.end * SAMPLE_RATE) :].any()
        assert answer(each.record) == f"{event.start:.1f} s"
        frames = int(each.record["duration"] / 0.04)
        labels = frame_labels([event], frames, labels=BASIC.labels)[0]
        heard = labels.nonzero().flatten() * 0.04 + 0.02
        assert heard[0] == pytest.approx(event.start, abs=0.04)
        assert heard[-1] == pytest.approx(event.end, abs=0.04)
        assert {BASIC.labels[label - 1] for label in labels.tolist() if label} == {event.label}


def test_a_distractor_is_another_event_and_the_question_names_its_target(monkeypatch):
    monkeypatch.setattr(basics, "DISTRACTOR", 1.0)
    seen = Counter()
    for index in range(200):
        record = make("onset", 0, "heldout", index).record
        one, other = read_events(record)
        assert one.kind != other.kind
        event = asked_event(record)
        assert record["truth"]["seconds"] == event.start
        assert answer(record) == f"{event.start:.1f} s"
        seen[event.kind] += 1
    assert min(seen.values()) > 70


def test_the_background_lies_at_the_ratio_asked_for(monkeypatch):
    monkeypatch.setattr(world_record, "BASIC", replace(BASIC, snr_db=(20, 20)))
    ratios = []
    for index in range(200):
        each = make("sound", 0, "heldout", index)
        (event,) = read_events(each.record)
        at, end = (round(t * SAMPLE_RATE) for t in (event.start, event.end))
        if at > SAMPLE_RATE // 2:
            pcm = each.pcm[0].astype(float)
            ratios.append(10 * np.log10(np.mean(pcm[at:end] ** 2) / np.mean(pcm[:at] ** 2)))
    assert len(ratios) > 30
    assert np.median(ratios) == pytest.approx(20, abs=1)


def test_answers_are_balanced_and_fit_the_voice(made):
    language = {word: name for name, words in WORDS.items() for word in words}
    for task, labels in (("word", list(language)), ("sound", list(SOUNDS))):
        counts = Counter(answer(each.record) for each in made[task])
        assert set(counts) == set(labels)
        # Five standard deviations of a fair draw.
        fair = len(made[task]) / len(labels)
        assert all(abs(count - fair) < 5 * fair**0.5 for count in counts.values())
    for each in made["word"]:
        assert read_events(each.record)[0].speaker.startswith(language[answer(each.record)])


def test_length_question_and_neighbours_say_nothing_about_the_answer(made):
    onsets = [each.record for each in made["onset"]]
    starts = [record["truth"]["seconds"] for record in onsets]
    assert abs(np.corrcoef([record["duration"] for record in onsets], starts)[0, 1]) < 0.12
    for task in ("word", "sound"):
        some = [each.record for each in made[task]]
        for view in (lambda r: r["duration"], lambda r: BASIC_PHRASES[r["axis"]].index(question(r))):
            # Share of variance that labels explain; (labels - 1) / records is what chance explains.
            groups = defaultdict(list)
            for record in some:
                groups[answer(record)].append(view(record))
            values = np.array([view(record) for record in some], float)
            between = sum(len(group) * (np.mean(group) - values.mean()) ** 2 for group in groups.values())
            assert between / ((values - values.mean()) ** 2).sum() < 2.2 * (len(groups) - 1) / len(some)
        repeats = sum(answer(a) == answer(b) for a, b in itertools.pairwise(some)) / len(some)
        assert repeats < 2 / len({answer(record) for record in some})


def test_training_asks_everything_about_a_recording():
    for task in BASICS:
        for index in range(30):
            record = make(task, 0, "train", index).record
            events, turns = read_events(record), len(record["messages"]) // 2
            assert turns == 2 * len(events)
            assert question(record) in {form.format(n) for form in BASIC_PHRASES[task] for n in ("word", *SOUNDS)}
            said = Counter(answer(record, turn) for turn in range(turns))
            expected = Counter(text for event in events for text in (event.label, f"{event.start:.1f} s"))
            assert said == expected
            assert record["truth"]["answer"] == answer(record, turns - 1)


def test_texts_hold_every_question_and_answer(made):
    known = set(basic_texts())
    for several in made.values():
        for each in several:
            assert question(each.record) in known
            assert answer(each.record) in known


def test_a_longer_recording_keeps_its_background():
    each = make("onset", 0, "heldout", 1, seconds=(60, 60))
    assert each.record["duration"] == 60
    assert (np.abs(each.pcm[0].reshape(60, SAMPLE_RATE)).max(1) > 3).all()
