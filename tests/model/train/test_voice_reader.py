"""What a stage of a voice reads of a record, and which records it cannot use."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from afn_model.data.loader import Loader
from afn_model.data.records import parse_sample
from afn_model.train.curriculum import Stage
from afn_model.train.validate import data_config
from afn_model.train.voice_reader import VoiceReader, cropped
from tests.model.train.voices import FRAME, RATE, STAGES, corpus, curriculum, go, one, save_voice
from tests.tiny import noise, record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    save_voice(folder / "base")
    corpus(folder / "voice.jsonl")
    soundfile.write(folder / "silent.wav", np.full(RATE, 1e-5), RATE)
    soundfile.write(folder / "short.wav", noise(0.0245, rate=RATE), RATE)  # at a low rate more than one of its frames
    record(folder / "high.wav", 0.5, rate=44_100)
    return folder


def reader(folder: Path, method: str, context: int = 1024, **settings) -> VoiceReader:
    given = {method: STAGES[method][method] | settings}
    stage = Stage("one", (method,), {"voice": 1}, method=method, batch_prompts=4, context=context, **given)
    return VoiceReader.of_stage(folder / "base", stage)


def read(folder: Path, of: VoiceReader, record: dict, seed: int = 1):
    return of.read_sample(parse_sample(record, folder), 30.0, seed)


def test_a_crop_is_of_the_last_recording_and_of_the_seed(folder):
    codec, found = reader(folder, "codec"), []
    whole = codec.heard(parse_sample(one("a", "high.wav"), folder).turns[0].audios[0], 30.0)
    assert len(whole) == RATE // 2  # read at the codec's rate
    for seed in (1, 1, 2):
        (crop,) = read(folder, codec, one("a", "0.wav", "high.wav"), seed).clips
        assert crop.shape == (13 * FRAME,)
        assert crop.dtype == torch.int16
        assert any(crop.equal(whole[first : first + len(crop)]) for first in range(len(whole) - len(crop) + 1))
        found.append(crop)
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])
    assert [cropped(torch.arange(1, 4), 5, 0.9).tolist(), cropped(torch.arange(4), 2, 0.99).tolist()] == [
        [1, 2, 3, 0, 0],
        [2, 3],
    ]


def test_text_and_prompt_of_a_talkers_sample(folder):
    heard = read(folder, reader(folder, "talker", prompt_share=1.0), one("a", "0.wav", "1.wav", said="**one** two\n"))
    assert reader(folder, "talker").tokenizer.decode(heard.ids.tolist()) == "one two"
    said, prompt = heard.clips
    assert len(said) == FRAME * (RATE * 25 // 100 // FRAME + 1)  # whole frames
    assert len(prompt) == 12 * FRAME  # 0.1 s to the nearest
    assert len(read(folder, reader(folder, "talker", prompt_share=0.0), one("a", "0.wav", "1.wav")).clips) == 1
    alone = read(folder, reader(folder, "talker"), one("a", "1.wav"))
    assert len(alone.clips) == 1
    long = read(folder, reader(folder, "talker"), one("a", "short.wav", said="one two"))
    assert len(long.clips[0]) == FRAME * max(4, len(long.ids) + 1)  # silence until the text is over


TALKERS = [
    (one("a", said="one"), {}, "^no recording$"),
    (one("a", "silent.wav"), {}, "^silence$"),
    (one("a", "silent.wav", "0.wav"), {"prompt_share": 1.0}, "^the speaker prompt: silence$"),
    (one("a", "0.wav", said="*** ..."), {}, "^there is nothing to say"),
    (one("a", "short.wav", said="one two three " * 9), {}, r"^text too long: \d+ tokens for 4 audio frames$"),
    (one("a", "0.wav"), {"needs_prompt": True}, "^no speaker prompt: "),
    (one("a", "7.wav"), {"context": 100}, r"^too long: 138 positions of prompt, text and sound in a context of 100$"),
]


@pytest.mark.parametrize(("record", "settings", "message"), TALKERS)
def test_records_that_a_talker_cannot_use(folder, record, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        read(folder, reader(folder, "talker", **settings), record)
    assert "\n" not in str(error.value)


def test_less_than_a_frame_and_a_context_beyond_the_talkers_positions(folder):
    short = reader(folder, "codec")
    short.codec = replace(short.codec, strides=(64,))
    with pytest.raises(ValueError, match=r"^0.025 s of sound, shorter than an audio frame of 0.032 s$"):
        read(folder, short, one("a", "short.wav"))
    with pytest.raises(ValueError, match=r"^stage one: context 4096 is more than the talker's 2048 positions$"):
        reader(folder, "talker", context=4096)


def test_a_tokenizer_with_more_tokens_than_the_talker(folder, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text())
    config["talker"]["text"]["vocab_size"] = 9
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^stage one: .* has a tokenizer of \d+ tokens, its talker 9$"):
        reader(tmp_path, "talker")


def test_bad_records_are_counted_by_name_and_workers_change_nothing(folder, tmp_path):
    records = [one(str(n), f"{n}.wav") for n in range(6)] + [one("hush", "silent.wav"), one("none", said="one")]
    corpus(folder / "some.jsonl", records)
    plan = curriculum(folder, "codec", blend={"voice": 1}, steps=2, bad_share=1.0)
    plan = type(plan)(plan.name, plan.stages, {"voice": folder / "some.jsonl"}, plan.seed)
    (stage,) = plan.stages
    of, crops = VoiceReader.of_stage(folder / "base", stage), []
    for workers in (0, 1):
        batches = iter(Loader(data_config(plan, stage), of, workers=workers))
        crops.append([one.clips[0] for _ in range(3) for micro in next(batches) for one in micro.prepared or ()])
        batches.close()
    assert len(crops[0]) > 6
    assert all(a.equal(b) for a, b in zip(*crops, strict=True))
    rows = go(plan, folder, tmp_path / "run")
    bad = [json.loads(line) for line in (tmp_path / "run" / "one" / "bad.jsonl").read_text().splitlines()]
    assert {(found["name"], found["reason"]) for found in bad} == {
        ("voice[6]", "silence"),
        ("voice[7]", "no recording"),
    }
    assert rows[-1]["bad"] == 2
