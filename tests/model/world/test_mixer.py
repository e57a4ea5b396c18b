"""Sounds and scenes: repeatable, exact, balanced, and without a way to guess the answer."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from afn_model.world.mixer import LABELS, QUESTIONS, Recipe, example, frame_labels, outline
from afn_model.world.sounds import SAMPLE_RATE, SOUNDS, coloured_noise, sound
from afn_model.world.words import PITCHES, RATES, SPLITS, VARIANTS, WORDS, speakers

pytest.importorskip("espeakng_loader")
QUIET = Recipe(snr_db=None, kinds=("onset",), distractor=0)


@pytest.fixture(scope="module")
def clips():
    return [example(3, "heldout", index) for index in range(2400)]


def draw(name, seed, n=SAMPLE_RATE):
    return sound(name, np.random.default_rng(seed), n)


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_are_fresh_scaled_and_audible_at_once(name):
    for seed in range(50):
        wave = draw(name, seed)
        assert wave.dtype == np.float32
        assert wave.shape == (SAMPLE_RATE,)
        assert np.abs(wave).max() == pytest.approx(1)
        assert np.sqrt(np.mean(wave[:320] ** 2)) > 0.25 * np.sqrt(np.mean(wave**2))
    spectra = [np.abs(np.fft.rfft(draw(name, seed))) for seed in range(6)]
    for i in range(6):
        for j in range(i):
            assert np.corrcoef(spectra[i], spectra[j])[0, 1] < 0.95
    np.testing.assert_array_equal(draw(name, 1), draw(name, 1))
    assert len(draw(name, 2, 800)) == 800


def test_sounds_refuse_what_they_cannot_make():
    with pytest.raises(ValueError, match="unknown sound 'cat'"):
        draw("cat", 0)
    with pytest.raises(ValueError, match="got 100"):
        draw("bell", 0, 100)


@pytest.mark.parametrize("slope", [0, -1, -2])
def test_noise_has_the_slope_it_is_given(slope):
    power = np.abs(np.fft.rfft(coloured_noise(np.random.default_rng(0), 1 << 18, slope=slope))) ** 2
    frequency = np.fft.rfftfreq(1 << 18, 1 / SAMPLE_RATE)
    octaves = [power[(frequency >= low) & (frequency < 2 * low)].mean() for low in (125, 250, 500, 1000, 2000)]
    assert np.polyfit(range(5), np.log2(octaves), 1)[0] == pytest.approx(slope, abs=0.1)


def test_an_example_depends_on_seed_split_and_index_alone():
    forward = [example(5, "heldout", index) for index in range(30)]
    for index in reversed(range(30)):
        again = example(5, "heldout", index)
        assert torch.equal(again.pcm, forward[index].pcm)
        assert (again.question, again.answer, again.events) == (
            forward[index].question,
            forward[index].answer,
            forward[index].events,
        )
    pcm = forward[0].pcm
    for other in (example(6, "heldout", 0), example(5, "train", 0), example(5, "heldout", 1)):
        assert other.pcm.shape != pcm.shape or not torch.equal(other.pcm, pcm)


def test_outline_tells_kind_and_length_beforehand(clips):
    for index in range(100):
        assert outline(3, "heldout", index) == (clips[index].kind, len(clips[index].pcm))


def test_clips_are_finite_within_range_and_as_long_as_asked(clips):
    for clip in clips:
        assert clip.pcm.dtype == torch.float32
        assert np.isfinite(clip.pcm.numpy()).all()
        assert 0.09 < np.abs(clip.pcm.numpy()).max() <= 1
        assert 1 <= clip.seconds <= 4
        assert clip.kind == "onset" or all(event.end <= clip.seconds for event in clip.events)


def test_the_event_starts_at_the_very_sample():
    for index in range(300):
        clip = example(0, "heldout", index, recipe=QUIET)
        pcm, at = clip.pcm.numpy(), round(clip.onset * SAMPLE_RATE)
        assert clip.onset == at / SAMPLE_RATE
        assert not pcm[:at].any()
        # Sounds fade in over 2 ms; a word's first sample is already above -40 dB of its peak.
        assert np.abs(pcm[at : at + 64]).max() > 0.005 * np.abs(pcm).max()
        assert not pcm[round(clip.events[0].end * SAMPLE_RATE) :].any()
        assert clip.answer == f"{clip.onset:.1f} s"


def test_a_distractor_is_another_event_and_the_question_names_its_target():
    recipe, seen = Recipe(kinds=("onset",), distractor=1.0), Counter()
    for index in range(200):
        asked, other = (clip := example(0, "heldout", index, recipe=recipe)).events
        assert asked.label != other.label
        assert asked.kind != other.kind
        name = "word" if asked.kind == "word" else asked.label
        assert clip.question in {template.format(name) for template in QUESTIONS["onset"]}
        seen[asked.kind] += 1
    assert min(seen.values()) > 70


def test_the_background_lies_at_the_ratio_asked_for():
    recipe, ratios = Recipe(snr_db=(20, 20), kinds=("sound",)), []
    for index in range(200):
        clip = example(0, "heldout", index, recipe=recipe)
        at, end = (round(t * SAMPLE_RATE) for t in (clip.events[0].start, clip.events[0].end))
        if at > SAMPLE_RATE // 2:
            pcm = clip.pcm.numpy()
            ratios.append(10 * np.log10(np.mean(pcm[at:end] ** 2) / np.mean(pcm[:at] ** 2)))
    assert len(ratios) > 30
    assert np.median(ratios) == pytest.approx(20, abs=1)


def test_no_speaker_of_training_is_held_out(clips):
    for table in (VARIANTS, RATES, PITCHES):
        assert not set(table["train"]) & set(table["heldout"])
    for language in WORDS:
        assert not set(speakers("train", language)) & set(speakers("heldout", language))
    heard = {event.speaker for clip in clips for event in clip.events if event.kind == "word"}
    known = {event.speaker for index in range(300) for event in example(3, "train", index).events}
    assert len(heard) > 30
    assert not (heard & known) - {""}


def test_kinds_and_answers_are_balanced(clips):
    kinds = Counter(clip.kind for clip in clips)
    assert all(abs(kinds[kind] / len(clips) - 1 / 3) < 0.04 for kind in ("speech", "sound", "onset"))
    for kind, labels in (("speech", [w for words in WORDS.values() for w in words]), ("sound", list(SOUNDS))):
        counts = Counter(clip.answer for clip in clips if clip.kind == kind)
        assert set(counts) == set(labels)
        # Five standard deviations of a fair draw.
        fair = kinds[kind] / len(labels)
        assert all(abs(count - fair) < 5 * fair**0.5 for count in counts.values())


def test_clip_length_question_and_neighbours_say_nothing_about_the_answer(clips):
    onset = [clip for clip in clips if clip.kind == "onset"]
    assert abs(np.corrcoef([clip.seconds for clip in onset], [clip.onset for clip in onset])[0, 1]) < 0.1
    for kind in ("speech", "sound"):
        some = [clip for clip in clips if clip.kind == kind]
        for view in (lambda clip: clip.seconds, lambda clip: QUESTIONS[clip.kind].index(clip.question)):
            # Share of variance that labels explain; (labels - 1) / clips is what chance explains.
            groups = defaultdict(list)
            for clip in some:
                groups[clip.answer].append(view(clip))
            values = np.array([view(clip) for clip in some], float)
            between = sum(len(group) * (np.mean(group) - values.mean()) ** 2 for group in groups.values())
            assert between / ((values - values.mean()) ** 2).sum() < 2.2 * (len(groups) - 1) / len(some)
        repeats = sum(a.answer == b.answer for a, b in itertools.pairwise(some)) / len(some)
        assert repeats < 2 / len(set(clip.answer for clip in some))


def test_answers_fit_the_voice(clips):
    language = {word: name for name, words in WORDS.items() for word in words}
    for clip in clips:
        if clip.kind == "speech":
            assert clip.events[0].speaker.startswith(language[clip.answer])


def test_long_clips_keep_their_background():
    recipe = Recipe(seconds=(60, 60), kinds=("onset",))
    clip = example(0, "heldout", 1, recipe=recipe)
    assert clip.seconds == 60
    seconds = clip.pcm.numpy().reshape(60, SAMPLE_RATE)
    assert (np.abs(seconds).max(1) > 1e-4).all()


@pytest.mark.parametrize("wrong", [{"seconds": (0.2, 4)}, {"seconds": (1, 2000)}, {"seconds": (1, 1.5)}, {"kinds": ()}])
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_unknown_splits_and_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="unknown split 'test'"):
        example(0, "test", 0)
    with pytest.raises(ValueError, match="negative"):
        example(0, "heldout", -1)
    assert SPLITS == ("train", "heldout")


def test_frame_labels_follow_the_events():
    for index in range(50):
        clip = example(0, "heldout", index, recipe=QUIET)
        frames = int(clip.seconds / 0.04)
        labels = frame_labels(clip, frames)
        heard = [0.04 * (i + 0.5) for i in range(frames) if labels[i]]
        assert heard[0] == pytest.approx(clip.onset, abs=0.04)
        assert heard[-1] == pytest.approx(clip.events[0].end, abs=0.04)
        assert {LABELS[label - 1] for label in labels.tolist() if label} == {clip.label}
