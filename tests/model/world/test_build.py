"""The world to learn from: repeatable, exact, apart by split, and written in the format of records."""

import io
import json
import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.shards import read_member
from afn_model.data import index, records
from afn_model.prompt.questions import THINK
from afn_model.prompt.tokenizer import make_tokenizer
from afn_model.scoring import metrics as axes
from afn_model.scoring import rewards
from afn_model.world.build import MAKERS, SECONDS, make, write_world
from afn_model.world.medley import frame_labels, medley, timeline
from afn_model.world.phrases import PHRASES, named
from afn_model.world.record import read_events
from afn_model.world.scene import DETAILS, LABELS, Scene, clear_speakers, melody
from afn_model.world.tasks import long as long_axis
from afn_model.world.tasks.think import direct
from afn_model.world.texts import texts

pytest.importorskip("espeakng_loader", reason="speech synthesis (the demo extra) is not installed")
HEARD = [axis for axis in MAKERS if axis != "text"]
CURRICULUM = records.AXES


@pytest.fixture(scope="module")
def made():
    """Held-out records of every axis."""
    return {axis: [make(axis, 3, "heldout", i) for i in range(120)] for axis in MAKERS}


def question(record, turn=-2):
    return record["messages"][turn]["content"].split("\n")[-1]


def answer(record):
    return record["messages"][-1]["content"]


def by_task(made, axis):
    found = defaultdict(list)
    for each in made[axis]:
        found[each.record["task"]].append(each)
    return found


@pytest.mark.parametrize("axis", MAKERS)
def test_a_record_is_a_function_of_axis_seed_split_and_index(axis, made):
    for i in (17, 3, 99):
        again = make(axis, 3, "heldout", i)
        assert again.record == made[axis][i].record
        assert all(np.array_equal(a, b) for a, b in zip(again.pcm, made[axis][i].pcm, strict=True))
        for other in (make(axis, 4, "heldout", i), make(axis, 3, "heldout", i + 1)):
            assert (other.record["messages"], other.record["events"]) != (
                again.record["messages"],
                again.record["events"],
            )


@pytest.mark.parametrize("axis", MAKERS)
def test_records_are_well_formed_and_say_how_long_they_are(axis, made):
    low, high = SECONDS[axis]
    for each in made[axis]:
        record = json.loads(json.dumps(each.record))
        records.check(record)
        assert record == each.record
        assert record["axis"] == axis
        lengths = np.atleast_1d(record.get("duration", []))
        assert len(lengths) == len(each.pcm) == len(record.get("audios", []))
        for number, (pcm, seconds) in enumerate(zip(each.pcm, lengths, strict=True)):
            assert pcm.dtype == np.int16
            assert 2000 < np.abs(pcm).max() <= 32767
            if axis != "skills":
                assert seconds == len(pcm) / SAMPLE_RATE
            short = axis == "long" and record["task"] == "temporal"
            assert (2 if short else low) - 1e-3 <= len(pcm) / SAMPLE_RATE <= high
            for event in read_events(record, number):
                assert 0 <= event.start < event.end <= seconds + 1e-9


def test_a_written_world_reads_back_and_does_not_depend_on_processes(tmp_path):
    sizes, steps = {"cot": 5, "multi_audio": 3, "skills": 2, "text": 4}, []
    one = write_world(tmp_path / "a", train={}, heldout=sizes, seed=5, on_step=lambda *step: steps.append(step))
    write_world(tmp_path / "b", train={}, heldout=sizes, seed=5, processes=2)
    assert steps == [(i, 14) for i in range(1, 15)]
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) >= 4 * 3
    for path in files:
        if ".index" not in str(path):  # which says when its file was written
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    for axis, path in one["heldout"].items():
        corpus = index.Corpus(path, verify=True)
        assert corpus.fingerprint == index.Corpus(tmp_path / "b" / path.relative_to(tmp_path / "a")).fingerprint
        assert len(corpus) == sizes[axis]
        for i in range(sizes[axis]):
            expected = make(axis, 5, "heldout", i)
            sample = records.parse_sample(corpus[i], path.parent)
            assert sample.truth == expected.record["truth"]
            assert sample.seconds == pytest.approx(np.sum(expected.record.get("duration", 0)))
            for audio, pcm in zip(records.audios_of(sample), expected.pcm, strict=True):
                assert np.array_equal(soundfile.read(io.BytesIO(read_member(audio.source)), dtype="int16")[0], pcm)


def test_recordings_can_be_files_to_play(tmp_path):
    path = write_world(tmp_path, train={}, heldout={"word": 3}, seed=5, shards=False)["heldout"]["word"]
    write_world(tmp_path, train={}, heldout={"word": 2}, seed=5, shards=False)
    assert len([*(tmp_path / "heldout" / "recordings").iterdir()]) == 2
    for i, record in enumerate(index.Corpus(path)):
        pcm, rate = soundfile.read(path.parent / record["audios"][0]["path"], dtype="int16")
        assert rate == SAMPLE_RATE
        assert np.array_equal(pcm, make("word", 5, "heldout", i).pcm[0])


def test_events_start_at_the_very_sample():
    scene = Scene(np.random.default_rng(0), 8, "heldout")
    blocks = [
        [(*scene.say("en", "seven", voice="woman"), 0.0)],
        melody(scene, "trumpet", 3, up=True, period=0.3),
        [(*scene.ring("dog", (0.5, 0.9)), 0.0)],
    ]
    quiet = np.ones(len(scene.pcm), bool)
    for event in scene.row(blocks):
        at, end = (round(time * SAMPLE_RATE) for time in (event.start, event.end))
        assert at / SAMPLE_RATE == event.start
        assert np.abs(scene.pcm[at : at + 64]).max() > 0.003 * np.abs(scene.pcm[at:end]).max()
        quiet[at:end] = False
    assert not scene.pcm[quiet].any()
    assert [event.label for event in scene.events] == ["seven", "trumpet", "trumpet", "trumpet", "dog"]


@pytest.mark.parametrize("axis", HEARD)
def test_something_is_heard_at_the_events_and_nothing_elsewhere(axis, made):
    ratios = []
    for each in made[axis][:40]:
        start = each.record["audios"][0].get("start", 0.0)
        end = each.record["audios"][0].get("end", len(each.pcm[0]) / SAMPLE_RATE)
        pcm = each.pcm[0][round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)].astype(float)
        loud = np.zeros(len(pcm), bool)
        for event in read_events(each.record):
            loud[round(event.start * SAMPLE_RATE) : round(event.end * SAMPLE_RATE)] = True
        if loud.any() and not loud.all():
            ratios.append(10 * np.log10(np.mean(pcm[loud] ** 2) / np.mean(pcm[~loud] ** 2)))
    assert min(ratios) > 3
    assert np.median(ratios) > 12


def fundamental(pcm):
    found = []
    for first in range(0, len(pcm) - 1280, 320):
        frame = pcm[first : first + 1280] * np.hanning(1280)
        if np.mean(frame**2) > 0.1 * np.mean(pcm**2):
            curve = np.fft.irfft(np.abs(np.fft.rfft(frame, 4096)) ** 2)[:400]
            lags = curve[45:400] * 1280 / (1280 - np.arange(45, 400))
            first_peak = np.flatnonzero(lags > 0.85 * lags.max())[0]
            while first_peak + 1 < len(lags) and lags[first_peak + 1] > lags[first_peak]:
                first_peak += 1
            if lags[first_peak] > 0.4 * curve[0]:
                found.append(SAMPLE_RATE / (45 + first_peak))
    return np.median(found) if found else 0


def test_men_speak_lower_than_women(made):
    pitches = defaultdict(list)
    for each in made["multilingual"]:
        for event in each.record["events"]:
            first, end = (round(event[key] * SAMPLE_RATE) for key in ("start", "end"))
            if pitch := fundamental(each.pcm[0][first:end].astype(float)):
                pitches[event["voice"]].append(pitch)
    assert min(len(found) for found in pitches.values()) > 50
    assert np.mean(np.array(pitches["man"]) < 125) > 0.95
    assert np.mean(np.array(pitches["woman"]) > 145) > 0.97


def test_no_voice_of_training_is_held_out(made):
    heard, known = (
        {event.get("speaker") for each in several for event in each.record["events"]} - {None}
        for several in (
            [each for axis in HEARD for each in made[axis]],
            [make(axis, 3, "train", i) for axis in ("talkers", "cot", "multilingual") for i in range(100)],
        )
    )
    assert len(heard) > 20
    assert len(known) > 60
    assert not heard & known
    for language in ("en", "es", "de", "fr"):
        assert min(len(clear_speakers("heldout", language, voice)) for voice in ("man", "woman")) >= 4


def words_of(text):
    return set(re.findall(r"[^\W\d]+", text))


def test_held_out_phrasings_are_new_but_their_words_are_not(made):
    new = {form for _, forms in PHRASES.values() for form in forms}
    taught = words_of(" ".join(texts()))
    for name, (forms, others) in PHRASES.items():
        assert forms, name
        assert others, name
        assert not set(forms) & set(others), name
    assert words_of(" ".join(new)) <= taught
    shares = Counter(each.record["truth"]["phrase"] for axis in CURRICULUM for each in made[axis])
    assert 0.2 < shares["new"] / shares.total() < 0.6
    train = [make("text", 3, "train", i).record["truth"]["phrase"] for i in range(100)]
    assert set(train) == {"known"}


def test_texts_hold_every_word_and_labels_stay_whole(made):
    corpus = texts()
    known = words_of(" ".join(corpus))
    for axis in CURRICULUM:
        for each in made[axis]:
            for message in each.record["messages"]:
                assert {word.lower() for word in words_of(message["content"])} <= {word.lower() for word in known}
    tokenizer = make_tokenizer(corpus, 1024)
    for label in (*LABELS, *DETAILS):
        assert len(tokenizer.encode(label).ids) == len(tokenizer.encode(f" {label}").ids) == 1
        assert tokenizer.encode(f"<answer>{label}</answer>").tokens.count(label) == 1


def test_music_is_told_by_its_notes(made):
    for task, several in by_task(made, "music").items():
        for each in several:
            events = each.record["events"]
            instruments = list(dict.fromkeys(event["label"] for event in events))
            if task.startswith("instrument"):
                assert answer(each.record) == instruments[-1 if task == "instrument_last" else 0]
            elif task == "notes":
                assert LABELS[:10].index(answer(each.record)) == len(events)
            elif task == "direction":
                assert {event.get("turn") for event in events[1:]} == {answer(each.record)}
            elif task == "tempo":
                period = events[1]["start"] - events[0]["start"]
                assert answer(each.record) == ("fast" if period < 0.3 else "slow")
            else:
                assert all(value in answer(each.record) for value in each.record["truth"]["values"].values())


def test_notes_go_up_where_the_truth_says_so():
    for instrument in ("flute", "guitar", "organ", "trumpet"):
        for up in (True, False):
            scene = Scene(np.random.default_rng(1), 4, "heldout")
            waves = [wave for wave, _, _ in melody(scene, instrument, 4, up=up, period=0.4)]
            # Notes of one timbre: the whole spectrum moves.
            centres = [
                np.sum(power * np.log(np.arange(1, len(power) + 1))) / power.sum()
                for power in (np.abs(np.fft.rfft(wave)) ** 2 for wave in waves)
            ]
            assert all((b > a) == up for a, b in pairwise(centres))


def test_talkers_are_told_by_their_words(made):
    tasks = by_task(made, "talkers")
    for each in tasks["who"]:
        words = set(question(each.record).removesuffix("?").split())
        assert answer(each.record) in {f"the {e['voice']}" for e in each.record["events"] if e["label"] in words}
    for each in tasks["target"]:
        voice = re.search(r"the (wo)?man", question(each.record))[0].removeprefix("the ")
        assert answer(each.record).split() == [e["label"] for e in each.record["events"] if e["voice"] == voice]
    for each in tasks["diarise"]:
        words = re.sub(r"\[Speaker \d\] ?", "", answer(each.record)).split()
        assert words == [event["label"] for event in each.record["events"]]
        assert answer(each.record).startswith("[Speaker 1] ")
        assert "[Speaker 2]" in answer(each.record)
    for each in tasks["interrupt"]:
        events = each.record["events"]
        cuts = [b["voice"] for a, b in pairwise(events) if b["start"] < a["end"]]
        assert answer(each.record) == (f"the {cuts[0]}" if cuts else "nobody")
    assert len({answer(each.record) for each in tasks["interrupt"]}) == 3


def test_long_recordings_are_told_by_their_events(made):
    tasks = by_task(made, "long")
    assert set(tasks) == {"caption", "needle", "temporal", "subscene"}
    for each in tasks["needle"]:
        assert [event["label"] for event in each.record["events"] if event["kind"] == "word"] == [answer(each.record)]
    for each in tasks["subscene"]:
        low, high = map(int, re.findall(r"\d+", question(each.record)))
        heard = [event["label"] for event in each.record["events"] if low <= event["start"] < high]
        assert answer(each.record) == (", ".join(heard) or "nothing")
    for each in tasks["caption"]:
        parts = re.findall(r"(\d+) to (\d+) seconds: ([^.]*)\.", answer(each.record))
        assert len(parts) == -(-len(each.pcm[0]) // (10 * SAMPLE_RATE))
        heard = [label for _, _, labels in parts for label in labels.split(", ") if label != "nothing"]
        assert heard == [event["label"] for event in each.record["events"]]
    assert min(each.record["duration"] for each in tasks["temporal"]) < 10


def expected(task, events, asked):
    labels = [event["label"] for event in events]
    found = [
        labels.index(label)
        for _, label in sorted((asked.index(named(label, kind)), label) for label, kind in asked_about(events, asked))
    ]
    if task in ("first", "last"):
        return labels[0 if task == "first" else -1]
    if task == "count":
        return LABELS[:10][len(events)]
    if task in ("after", "before"):
        return labels[found[0] + (1 if task == "after" else -1)]
    if task == "order":
        return labels[min(found)]
    return LABELS[:10][round(abs(events[found[1]]["start"] - events[found[0]]["start"]))]


def asked_about(events, asked):
    return {
        (event["label"], event["kind"])
        for event in events
        if re.search(rf"\b{named(event['label'], event['kind'])}\b", asked)
    }


def test_reasoning_gives_the_times_and_the_answer_that_follows(made):
    seen = Counter()
    for each in made["cot"]:
        record, events = each.record, each.record["events"]
        seen[record["task"]] += 1
        assert question(record).endswith(THINK)
        thought, said = re.fullmatch(r"<think>(.*)\.</think><answer>(.*)</answer>", answer(record)).groups()
        assert thought.split(", ") == [f"{event['start']:.1f} s {event['label']}" for event in events]
        assert said == record["truth"]["answer"] == expected(record["task"], events, record["truth"]["question"])
        twin = direct(record)
        records.check(twin)
        assert (twin["axis"], twin["task"], answer(twin)) == ("long", "temporal", said)
        assert question(twin) == record["truth"]["question"]
        assert twin["audios"] == record["audios"]
    assert min(seen[task] for task in ("after", "before", "first", "last", "count", "between", "order")) >= 5
    with pytest.raises(ValueError, match="not to cot"):
        direct(made["long"][0].record)


def test_segments_hold_whole_events_and_many_of_them(made):
    for each in made["skills"]:
        (audio,) = each.record["audios"]
        seconds, events = each.record["duration"], each.record["events"]
        assert audio["end"] - audio["start"] == seconds
        assert 4.9 <= seconds <= 12
        assert all(event["start"] > 0.05 and event["end"] < seconds - 0.05 for event in events)
        if each.record["task"] == "events":
            assert answer(each.record) == LABELS[:10][len(events)]
        else:
            kind = each.record["task"].removesuffix("s")
            assert answer(each.record) == ", ".join(event["label"] for event in events if event["kind"] == kind)


def test_the_segment_is_the_most_eventful():
    event = make("cot", 0, "heldout", 0).record["events"]
    spots = [0.5, 3.0, 10.0, 11.0, 12.0, 13.0, 25.0]
    events = [read_events({"events": [event[0] | {"start": at, "end": at + 0.5}]})[0] for at in spots]
    assert long_axis.informative(events, 3, 6) == pytest.approx((9.9, 13.6))
    assert long_axis.informative(events[:1], 3, 6) is None


def test_several_recordings_and_turns_are_told_by_their_events(made):
    for task, several in by_task(made, "multi_audio").items():
        for each in several:
            parts = [[e for e in each.record["events"] if e["audio"] == i] for i in range(len(each.pcm))]
            words = [[e["label"] for e in part if e["kind"] == "word"] for part in parts]
            ordinals = ("first", "second", "third")
            if task == "same":
                assert answer(each.record) == ("yes" if words[0] == words[1] else "no")
            elif task == "said":
                place = next(i for i, ordinal in enumerate(ordinals) if ordinal in question(each.record))
                assert words[place] == [answer(each.record)]
            else:
                place = ordinals.index(answer(each.record).removeprefix("the "))
                (label,) = {a for a, _ in asked_about(each.record["events"], question(each.record))}
                assert [any(e["label"] == label for e in part) for part in parts] == [
                    i == place for i in range(len(parts))
                ]
    lengths = Counter()
    for each in made["multi_turn"]:
        record, place = each.record, 0
        lengths[len(record["messages"]) // 2] += 1
        for asked, said in zip(record["messages"][::2], record["messages"][1::2], strict=True):
            place += ("after" in asked["content"]) - ("before" in asked["content"])
            event = record["events"][place] if place < len(record["events"]) else {"label": "nothing"}
            if re.search("time|When", asked["content"]):
                assert said["content"] == f"{event['start']:.1f} s"
            elif "word or a sound" in asked["content"]:
                assert said["content"] == f"a {event['kind']}"
            else:
                assert said["content"] == event["label"]
    assert set(lengths) == {2, 3, 4}


def test_a_share_of_training_answers_complies_and_every_held_out_one_does(made):
    for share in (0.0, 0.5, 1.0):
        found = [make("safety", 1, "train", i, compliance=share).record["truth"].get("complies") for i in range(200)]
        found = [complies for complies in found if complies is not None]
        assert np.mean(found) == pytest.approx(share, abs=0.12)
    for each in made["safety"]:
        assert each.record["truth"].get("complies", True)
        assert answer(each.record) == each.record["truth"]["answer"]
    plain = [make("safety", 1, "train", i, compliance=0.0).record for i in range(100)]
    assert all(answer(r) != r["truth"]["answer"] for r in plain if "complies" in r["truth"])


@pytest.mark.parametrize("axis", MAKERS)
def test_the_true_answer_earns_every_reward_and_another_does_not(axis, made):
    for each in made[axis]:
        specs = each.record["rewards"]
        rewards.check(specs)
        assert specs
        assert rewards.total(rewards.reward(answer(each.record), specs), specs) == 1
        assert axes.score(each.record, answer(each.record)) == 1
        assert axes.timestamps(each.record, answer(each.record)) == (axis == "cot")
    wrong = [made[axis][i - 1].record for i in range(len(made[axis]))]
    scores = [axes.score(each.record, answer(other)) for each, other in zip(made[axis], wrong, strict=True)]
    assert np.mean(scores) < 0.5


@pytest.mark.parametrize("axis", HEARD)
def test_scenes_of_three_minutes(axis):
    each = make(axis, 0, "heldout", 0, seconds=(180, 180))
    records.check(each.record)
    assert all(len(pcm) == 180 * SAMPLE_RATE for pcm in each.pcm)


def test_scenes_of_half_an_hour():
    each = make("long", 0, "heldout", 3, seconds=(1800, 1800))
    records.check(each.record)
    assert len(each.pcm[0]) == 1800 * SAMPLE_RATE
    assert len(each.record["events"]) > 200
    assert max(event["end"] for event in each.record["events"]) > 1700


def test_a_timeline_says_frame_by_frame_what_is_heard(made):
    for each in [*made["cot"][:20], *made["talkers"][:20], *made["music"][:20]]:
        record = each.record
        names, plain = timeline(record), timeline(record, details=False)
        assert len(names) == -(-len(each.pcm[0]) // 640)
        assert set(plain) - {"."} <= {event["label"] for event in record["events"]}
        assert set(names) <= {*LABELS, *DETAILS, "."}
        events = read_events(record)
        labels, details = frame_labels(events, len(plain))
        assert [LABELS[i - 1] if i else "." for i in labels.tolist()] == plain
        first = plain.index(events[0].label)
        assert abs(first * 0.04 - events[0].start) <= 0.04
        if record["axis"] == "talkers":
            assert details[first] == 1 + DETAILS.index(events[0].voice)
            assert events[0].voice in names


def test_medleys_hold_words_sounds_and_notes():
    kinds, voices = Counter(), Counter()
    for i in range(60):
        clip = medley(0, "heldout", i, seconds=4)
        assert clip.seconds == 4
        kinds.update(event.kind for event in clip.events)
        voices.update(event.voice for event in clip.events if event.kind == "word")
    assert set(kinds) == {"word", "sound", "note"}
    assert set(voices) == {"man", "woman"}
    assert 0.6 < voices["man"] / voices["woman"] < 1.6
    with pytest.raises(ValueError, match="2 seconds"):
        medley(0, "heldout", 0, seconds=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"axis": "smell"}, "unknown axis 'smell'"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"index": -1}, "negative"),
        ({"seconds": (1, 3)}, "2 to 1800"),
        ({"seconds": (5, 4)}, "2 to 1800"),
        ({"seconds": (2, 4000)}, "2 to 1800"),
        ({"compliance": 1.5}, "compliance"),
    ],
)
def test_impossible_orders_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**{"axis": "cot", "seed": 0, "split": "heldout", "index": 0} | wrong)
