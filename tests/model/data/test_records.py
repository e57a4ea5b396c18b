"""Records: both formats become samples, and each thing wrong with one is said in a line."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from afn_model.audio.recording import Audio
from afn_model.data.records import audios_of, check, duration, measured_duration, parse_sample

ASK = {"role": "user", "content": "<sound>\nWhat is said?"}
TELL = {"role": "assistant", "content": "One."}
OURS = {"id": "a", "axis": "music", "audios": [{"path": "a.wav"}], "duration": 2.0, "messages": [ASK, TELL]}
PUBLIC = {
    "id": "p",
    "sound": ["a.wav", "b.wav"],
    "duration": [1, 0.5],
    "conversations": [
        {"from": "human", "value": "<sound-1> and <sound-2>, then <sound-1>"},
        {"from": "gpt", "value": "Two."},
    ],
}


def test_a_record_of_ours(tmp_path):
    record = OURS | {"task": "asr", "rewards": [{"kind": "format"}], "truth": {"words": 1}, "anything": object()}
    record["audios"] = [{"path": "shards/0.tar#a.wav", "start": 1, "end": 3.5}]
    found = parse_sample(record, tmp_path)
    (audio,) = audios_of(found)
    assert (audio.source, audio.start, audio.end) == (f"{tmp_path}/shards/0.tar#a.wav", 1, 3.5)
    assert [turn.role for turn in found.turns] == ["user", "assistant"]
    assert found.turns[0].parts == (audio, "What is said?")
    assert (found.id, found.axis, found.task, found.source, found.seconds) == ("a", "music", "asr", "", 2.0)
    assert (found.rewards, found.truth) == (({"kind": "format"},), {"words": 1})


def test_a_public_record(tmp_path):
    found = parse_sample(PUBLIC, tmp_path)
    audios = audios_of(found)
    assert [audio.source for audio in audios] == [f"{tmp_path}/{name}.wav" for name in "aba"]
    assert audios[0] is audios[2], "mentioned twice, decoded once"
    assert (found.seconds, found.axis, found.rewards) == (1.5, "", ())


def test_text_only_and_parts(tmp_path):
    found = parse_sample({"messages": [{"role": "user", "content": "Hi"}, TELL]}, tmp_path)
    assert (audios_of(found), found.seconds, found.id) == ([], 0.0, "")
    parts = [{"type": "audio", "path": "/else/a.wav"}, {"type": "text", "text": "?"}]
    found = parse_sample({"messages": [{"role": "user", "content": parts}, TELL]}, tmp_path)
    assert [audio.source for audio in audios_of(found)] == ["/else/a.wav"], "a full path stays"
    check({"messages": [ASK], "audios": [{"path": "a.wav"}], "rewards": [{"kind": "exact", "answer": "One."}]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audios": None}, "1 <sound> placeholders, but 0 audios"),
        ({"audios": [{"path": "a.wav"}, {"path": "b.wav"}]}, "1 <sound> placeholders, but 2 audios"),
        ({"audios": {"path": "a.wav"}}, "audios must be a list"),
        ({"sounds": ["b.wav"]}, "recordings both under 'audios' and under 'sounds'"),
        ({"duration": 10**400}, "duration is 1000.*, not a number of seconds up to 10⁶"),
        ({"duration": 1e39}, "duration is 1e.39"),
        ({"system": ["Listen."]}, "system must be text"),
        ({"messages": [{"content": "<sound>"}], "system": "Listen."}, "role None is none of system"),
        ({"audios": [{"path": "a.wav", "end": 10**400}]}, r"a\.wav: end is 1000"),
        ({"messages": [ASK, {"role": "assistant", "content": "\ud83d alone"}]}, "not Unicode text"),
        (
            {"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "\udcff"}]}]},
            "not Unicode text",
        ),
        ({"id": "\udfff"}, "id is not Unicode text"),
        ({"task": "a\ud800"}, "task is not Unicode text"),
        ({"truth": {"said": ["\ud800"]}}, "truth is not Unicode text"),
        ({"rewards": [{"kind": "exact", "answer": "\ud800"}]}, "rewards is not Unicode text"),
        ({"rewards": [{"kind": "exakt"}]}, "reward kind 'exakt' is none of"),
        ({"audios": [{"start": 1}]}, "an audio part needs"),
        ({"audios": [3]}, "a recording must be a path, bytes, an open file or an array, got 3"),
        ({"audios": [b"RIFF"]}, "an audio's path must be text, got b'RIFF'"),
        ({"audios": [{"path": "a.wav", "end": "9"}]}, r"a\.wav: end of a recording must be a number, got '9'"),
        ({"audios": [{"path": "a.wav", "start": -1}]}, r"a\.wav: start is -1"),
        ({"audios": [{"path": "a.wav", "end": float("nan")}]}, r"a\.wav: end is nan"),
        ({"audios": [{"path": "a.wav", "start": 2, "end": 1}]}, r"end 1 s is not after start 2 s"),
        ({"messages": []}, "no messages"),
        ({"messages": None}, "messages must be a list"),
        ({"messages": ["hello"]}, "messages must be a list of objects"),
        ({"messages": [ASK]}, "neither an assistant message nor rewards"),
        ({"messages": [ASK, {"role": "robot", "content": "x"}]}, "role 'robot' is none of"),
        ({"messages": [ASK, {"role": "assistant"}]}, "content must be text or a list of parts"),
        ({"messages": [ASK, {"role": "assistant", "content": "<|im_end|>"}]}, "only the prompt itself may"),
        ({"conversations": []}, "either 'messages' or 'conversations', not both"),
        ({"duration": -2}, "duration is -2"),
        ({"duration": float("inf")}, "duration is inf"),
        ({"duration": True}, "duration is True"),
        ({"duration": [1.0, 2.0]}, "2 durations for 1 audios"),
        ({"rewards": {"kind": "format"}}, "rewards must be a list of objects with a 'kind'"),
        ({"rewards": [{"name": "format"}]}, "rewards must be a list of objects with a 'kind'"),
        ({"messages": [ASK], "chosen": "a", "rejected": "b"}, None),
        ({"chosen": "a"}, r"chosen and rejected must be two texts, got \['a', ''\]"),
        ({"chosen": "a", "rejected": 3}, "must be two texts"),
        ({"chosen": "a", "rejected": "b<|im_end|>"}, "only the prompt itself may"),
        ({"chosen": "a <sound>", "rejected": "b"}, "placeholders"),
        ({"truth": []}, None),
        ({"truth": "x"}, "truth must be an object"),
        ({"events": "x"}, "events must be a list"),
        ({"axis": 3}, "axis is 3, not text"),
        ({"id": 1.5}, "id is 1.5"),
    ],
)
def test_what_is_wrong_is_said(changes, message):
    if message is None:
        check(OURS | changes)
        return
    with pytest.raises(ValueError, match=message) as error:
        check(OURS | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sound": "a.wav"}, "needs either 'messages' or 'conversations'"),
        (PUBLIC | {"sound": ["a.wav"]}, r"3 different|2 different placeholders \(<sound-1>, <sound-2>\), but 1 audios"),
        (PUBLIC | {"conversations": [{"from": "human", "value": None}]}, "value must be text, got None"),
        (PUBLIC | {"conversations": [{"from": "alien", "value": "<sound-1> <sound-2>"}]}, "role 'alien'"),
    ],
)
def test_what_is_wrong_with_a_public_record(record, message):
    with pytest.raises(ValueError, match=message):
        check(record)


def test_durations(tmp_path):
    assert duration({}) == 0
    assert duration({"duration": [1, 2.5]}) == 3.5
    assert duration({"audios": [{"path": "a", "start": 1, "end": 3}, {"path": "b", "start": 0, "end": 0.5}]}) == 2.5
    assert duration({"audios": [{"path": "a", "start": 1, "end": 3}, {"path": "b", "end": 2}]}) == 0
    soundfile.write(tmp_path / "a.wav", np.zeros(8_000), 16_000)
    soundfile.write(tmp_path / "b.mp3", np.zeros(44_100), 44_100)
    assert measured_duration(PUBLIC | {"sound": ["a.wav", "a.wav"]}, tmp_path) == 1.0
    assert measured_duration(PUBLIC | {"sound": ["a.wav", "b.mp3"]}, tmp_path) == pytest.approx(1.5, abs=0.05)
    part = OURS | {"audios": [{"path": "a.wav", "start": 0.1}]}
    assert measured_duration(part, tmp_path) == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"b\.wav: no such file"):
        measured_duration(PUBLIC, tmp_path)
    with pytest.raises(ValueError, match=r"start 3 s is outside the recording of 0\.500 s"):
        measured_duration(OURS | {"audios": [{"path": "a.wav", "start": 3}]}, tmp_path)
    assert isinstance(audios_of(parse_sample(part, tmp_path))[0], Audio)


OTHER_TOOLS = {
    "messages and audios": {"audios": ["a.wav"], "messages": [{"role": "user", "content": "<audio>What?"}, TELL]},
    "messages and audio": {"audio": ["a.wav"], "messages": [{"role": "user", "content": "<audio>What?"}, TELL]},
    "one audio": {"audio": "a.wav", "messages": [{"role": "user", "content": "<sound>What?"}, TELL]},
    "sounds": {"sounds": ["a.wav"], "messages": [{"role": "user", "content": "<audio>What?"}, TELL]},
    "a path and nothing": {
        "audio": {"path": "a.wav", "bytes": None},
        "messages": [ASK | {"content": "<audio>What?"}, TELL],
    },
    "conversations and audios": {
        "audios": ["a.wav"],
        "conversations": [{"from": "human", "value": "<audio>What?"}, {"from": "gpt", "value": "One."}],
    },
    "roles in conversations": {
        "audios": ["a.wav"],
        "conversations": [{"role": "user", "content": "<audio>What?"}, {"role": "assistant", "content": "One."}],
    },
    "from in messages": {
        "audios": ["a.wav"],
        "messages": [{"from": "human", "value": "<audio>What?"}, {"from": "gpt", "value": "One."}],
    },
    "parts": {
        "audios": ["a.wav"],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "<audio>What?"}]}, TELL],
    },
    "a path part": {
        "messages": [
            {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "What?"}]},
            TELL,
        ],
    },
}


@pytest.mark.parametrize("name", OTHER_TOOLS)
def test_other_tools_records_are_read(tmp_path, name):
    check(OTHER_TOOLS[name])
    found = parse_sample(OTHER_TOOLS[name], tmp_path)
    (audio,) = audios_of(found)
    assert audio.source == f"{tmp_path}/a.wav"
    assert found.turns[0].parts == (audio, "What?")
    assert found.turns[1].parts == ("One.",)


def test_a_system_text_comes_first(tmp_path):
    record = OTHER_TOOLS["conversations and audios"] | {"system": "Listen."}
    first = parse_sample(record, tmp_path).turns[0]
    assert (first.role, first.text) == ("system", "Listen.")
    own = OURS | {"system": "Not this.", "messages": [{"role": "system", "content": "This."}, ASK, TELL]}
    assert [turn.text for turn in parse_sample(own, tmp_path).turns] == ["This.", "<sound>What is said?", "One."]


def test_several_audio_placeholders_and_what_is_only_talked_about(tmp_path):
    two = {"audios": ["a.wav", "b.wav"], "messages": [{"role": "user", "content": "<audio> or <audio-2>?"}, TELL]}
    with pytest.raises(ValueError, match="but 2 audios"):
        check(two)
    two["messages"] = [{"role": "user", "content": "<audio> or <audio>?"}, TELL]
    assert [Path(audio.source).name for audio in audios_of(parse_sample(two, tmp_path))] == ["a.wav", "b.wav"]
    html = OURS | {"messages": [ASK, {"role": "assistant", "content": "The <audio> tag."}]}
    assert parse_sample(html, tmp_path).turns[1].text == "The <audio> tag."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages": [{"role": "user", "content": "<audio>What?"}, TELL]}, "1 <sound> placeholders, but 0 audios"),
        ({"audio": ["a.wav"]}, "0 <sound> placeholders, but 1 audios"),
        ({"sounds": ["a.wav"]}, "0 <sound> placeholders, but 1 audios"),
        ({"audio": {"bytes": "UklGRg=="}}, "an audio part needs 'audio', 'path' or 'url'"),
        ({"wav": "a.wav"}, "'wav' is not read; recordings stand under audios, audio, sounds, sound"),
        ({"audio_path": "a.wav"}, "'audio_path' is not read"),
        ({"videos": ["a.mp4"]}, "'videos' is not read"),
        ({"audio_filepath": "a.wav"}, "'audio_filepath' is not read"),
        ({"speech_files": ["a.wav"]}, "'speech_files' is not read"),
        ({"messages": [{"role": "user", "content": "<|AUDIO|>What?"}, TELL]}, r"<\|AUDIO\|> in a text without audio"),
        (
            {"messages": [{"role": "user", "content": "<|audio_bos|>?"}, TELL]},
            r"<\|audio_bos\|> in a text without audio",
        ),
    ],
)
def test_a_record_that_would_lose_its_audio_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check({"messages": [{"role": "user", "content": "What?"}, TELL]} | changes)


def test_keys_beside_the_audio_that_is_read_are_allowed():
    check(OURS | {"audio_path": "/elsewhere/a.wav", "speech": True})
    check({"messages": [{"role": "user", "content": "What?"}, TELL], "audio": [], "sound": "", "speech": True})
    with pytest.raises(ValueError, match="`afn data import` reads NeMo manifests"):
        check({"audio_filepath": "a.wav", "duration": 1, "text": "one"})
