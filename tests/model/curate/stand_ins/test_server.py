"""The server of stand-ins: faults by what is asked, and recordings known by their samples."""

import base64

import numpy as np
import pytest

from afn_model.audio.encode import flac, wav
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.stand_ins.rules import RULES
from afn_model.curate.stand_ins.server import BUSY, KnownSamples, answers_from, by_hash, name_of, samples_of
from tests.model.curate.stages.heard import row


def test_faults_are_of_what_is_asked():
    bodies = [{"messages": [{"role": "user", "content": f"Question {n}?"}]} for n in range(300)]
    fault = by_hash(3)
    told = [fault(body, 0) for body in bodies]
    assert told == [fault(body, 0) for body in bodies]
    assert len(set(told)) == 11
    assert 60 < sum(map(bool, told)) < 140  # of 100 that are expected, five deviations away
    again = [fault(body, 1) for body in bodies]
    assert again == ["" if kind in BUSY else kind for kind in told]
    repairs = [{"messages": body["messages"] * 2} for body in bodies]
    assert not any(fault(body, 0) for body in repairs)
    assert {by_hash(1)({"file": bytes([n])}, 0) for n in range(99)} == set(BUSY)


def test_recordings_are_known_by_their_samples(tmp_path):
    import torch

    from afn_model.audio.decode import load_audio

    one = row(tmp_path)
    row(tmp_path, events=(("sound", "horn", 1.0, 2.0, "", ""),), name="y")
    answer = answers_from(str(tmp_path / "truth.jsonl"), tmp_path / "recordings")
    pcm = load_audio(tmp_path / one["file"], start=9.5, end=13.0, dtype=torch.int16)
    assert samples_of(wav(pcm)) == samples_of(flac(pcm)) == pcm.numpy().tobytes()
    words = answer({"file": flac(pcm)})["words"]
    assert words == [{"word": "yes", "start": 0.2, "end": 1.0}, {"word": "no", "start": 2.5, "end": 2.9}]
    sent = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(pcm)).decode()}}
    asked = {"type": "text", "text": prompt_file("caption").text}
    body = {"messages": [{"role": "user", "content": [sent, asked]}]}
    assert answer(body) == "A woman speaks, then a man speaks."
    with pytest.raises(KeyError, match="this recording"):
        answer({"file": flac(pcm.flip(0))})


def test_prompts_are_known_by_their_instructions():
    filled = prompt_file("merge").fill(annotations="sound: caption")
    assert name_of(filled) == "merge"
    assert {name_of(prompt_file(name).text) for name in RULES} == set(RULES)
    with pytest.raises(KeyError, match="a prompt like"):
        name_of("What is this?")


def test_a_part_of_a_recording_is_found_where_it_is():
    rng = np.random.default_rng(0)
    first, other = (rng.integers(-99, 99, 32_000).astype("<i2") for _ in range(2))
    other[4_000:20_000] = 0
    known = KnownSamples()
    known.add("first", first.tobytes())
    known.add("other", other.tobytes())
    assert known.find(first[1_234:30_001].tobytes()) == ("first", 1_234)
    assert known.find(other[777:8_777].tobytes()) == ("other", 777)
    assert known.find(first[100:700].tobytes()) == ("first", 100)
    assert known.find(first[100:110].tobytes()) is None
    assert known.find(first[::-1].tobytes()) is None
