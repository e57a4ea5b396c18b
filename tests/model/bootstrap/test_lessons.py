"""Lessons of a base model: what each part learns from, and that nothing else is trained."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from afn_model.afwhisper import AFWhisper
from afn_model.bootstrap.fit import Part, Trainee, fit
from afn_model.bootstrap.lessons import Lessons, silent, split_sounds
from afn_model.bootstrap.tiny import build
from afn_model.config import SpeechConfig, preset
from afn_model.demo import BASE
from afn_model.world.build import make, write_world
from afn_model.world.medley import timeline
from afn_model.world.record import BASICS
from afn_model.world.scene import BASIC

pytest.importorskip("espeakng_loader", reason="the voices are an optional extra")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return [*write_world(folder, train=dict.fromkeys(BASICS, 10), heldout={}, seed=0)["train"].values()]


def lessons(kind, processor, seed, corpora):
    return Lessons(kind, processor, seed, corpora, style=BASIC, records=16)


def bytes_of(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in module.state_dict().items()}


def fitted(kind: str, trains: tuple[str, ...], corpora, seed: int = 0) -> tuple[Trainee, list[float]]:
    model, processor = build(seed)
    trainee, losses = Trainee(model, (len(BASIC.labels),)), []
    part = Part(kind, trains, 1e-2, steps=2)
    fit(trainee, part, iter(lessons(kind, processor, seed, corpora)), lambda progress, loss: losses.append(loss))
    return trainee, losses


@pytest.mark.parametrize(("part", "kind"), [*zip(BASE, ("medley", "written"), strict=True)], ids=("encoder", "text"))
def test_a_part_of_the_base_trains_what_it_names_and_nothing_else(part, kind, corpora):
    _, trains, _, _ = part
    torch.manual_seed(0)
    before = bytes_of(Trainee(build(0)[0], (len(BASIC.labels),)))
    trainee, _ = fitted(kind, trains, corpora)
    changed = {name for name, value in bytes_of(trainee).items() if value != before[name]}
    changed = {name for name in changed if not name.startswith("labels") or "labels" in trains}
    assert changed
    assert all(name.startswith(trains) for name in changed)
    assert "model.encoder.embed_positions.weight" not in changed
    for prefix in trains:
        assert any(name.startswith(prefix) for name in changed), prefix


def test_the_base_is_reproducible(corpora):
    trains = ("model.encoder", "labels")
    assert fitted("medley", trains, corpora, 3)[1] == fitted("medley", trains, corpora, 3)[1]


@pytest.mark.parametrize("kind", ["medley", "written"])
def test_lessons_do_not_depend_on_who_makes_them(kind, corpora):
    _, processor = build(0)
    here, there = iter(lessons(kind, processor, 5, corpora)), lessons(kind, processor, 5, corpora).batches()
    for _ in range(2):
        a, b = next(here), next(there)
        assert torch.equal(a.heard, b.heard)
        assert torch.equal(a.batch.input_ids, b.batch.input_ids)


def test_written_lessons_name_what_is_heard(corpora):
    _, processor = build(0)
    lesson = next(iter(lessons("written", processor, 0, corpora)))
    ids = {processor.tokenizer.encode(label).ids[0]: 1 + i for i, label in enumerate(BASIC.labels)}
    ids[processor.tokenizer.encode(".").ids[0]] = 0
    assert not (lesson.batch.input_ids == processor.sound_id).any()
    before, after = (processor.token_id(f"<|sound_{end}|>") for end in ("bos", "eos"))
    named, inside = [], False
    for token in lesson.batch.input_ids.tolist():
        inside = token != after if inside else token == before
        if inside and token != before:
            named.append(ids.get(token, -1))
    assert len(named) == len(lesson.heard)
    right = torch.tensor(named) == lesson.heard[:, 0]
    assert 0.85 < right.float().mean() < 0.97


def test_a_silent_record_keeps_its_words_and_the_names_of_its_audio_tokens():
    record = make("multi_audio", 0, "train", 0).record
    messages, names = silent(record)
    parts = [part for message in messages for part in message["content"]]
    lengths = [len(part["audio"]) for part in parts if part["type"] == "audio"]
    assert [n / 16_000 for n in lengths] == record["duration"]
    tokens = [(math.ceil(n / 160) + 1) // 2 // 2 for n in lengths]
    assert names == [name for i, n in enumerate(tokens) for name in timeline(record, audio=i, frames=n)]
    assert split_sounds("<sound-1><sound-2>What?") == ["", "", "What?"]
    assert split_sounds("<sound>\nWhat?") == ["", "What?"]


def test_the_encoder_of_another_model_is_taken_over():
    heard = AFWhisper(SpeechConfig(replace(preset("tiny").audio, heads=4), vocab_size=20, width=32, layers=1, heads=2))
    model, _ = build(0, heard)
    assert model.config.audio == heard.config.audio
    assert bytes_of(model.encoder) == bytes_of(heard.encoder)
    assert bytes_of(model.language_model) == bytes_of(build(0)[0].language_model)
    with pytest.raises(ValueError, match="the encoder is 32 wide; 128 is expected"):
        build(0, AFWhisper(replace(heard.config, audio=replace(heard.config.audio, width=32, heads=2))))
