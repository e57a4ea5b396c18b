"""The demo: what it learns from, what each part of its base trains, and the whole of it in short."""

import json
import math
import random

import pytest
import torch
from torch import nn

from afn_model import AFNext, AFNextProcessor
from afn_model.bootstrap.fit import Part, Trainee, fit
from afn_model.bootstrap.lessons import Lessons, heard
from afn_model.demo import BASE, STAGES, build, run
from afn_model.scoring.answers import accuracy, normalise, onset_errors, onset_summary, seconds_in
from afn_model.train.optimiser import learning_rate
from afn_model.train.sft import select
from afn_model.world.corpus import dialogue
from afn_model.world.mixer import LABELS, example

pytest.importorskip("espeakng_loader", reason="the demo's voices are an optional extra")


def bytes_of(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in module.state_dict().items()}


def fitted(kind: str, trains: tuple[str, ...], seed: int = 0) -> tuple[Trainee, list[float]]:
    model, processor = build(seed)
    trainee, losses = Trainee(model, (len(LABELS),)), []
    part = Part(kind, trains, 1e-2, steps=2)
    fit(trainee, part, iter(Lessons(kind, processor, seed)), lambda progress, loss: losses.append(loss))
    return trainee, losses


@pytest.mark.slow
@pytest.mark.parametrize(("part", "kind"), [*zip(BASE, ("medley", "written"), strict=True)], ids=("encoder", "text"))
def test_a_part_of_the_base_trains_what_it_names_and_nothing_else(part, kind):
    _, trains, _, _ = part
    torch.manual_seed(0)
    before = bytes_of(Trainee(build(0)[0], (len(LABELS),)))
    trainee, _ = fitted(kind, trains)
    changed = {name for name, value in bytes_of(trainee).items() if value != before[name]}
    changed = {name for name in changed if not name.startswith("labels") or "labels" in trains}
    assert changed
    assert all(name.startswith(trains) for name in changed)
    assert "model.encoder.embed_positions.weight" not in changed
    for prefix in trains:
        assert any(name.startswith(prefix) for name in changed), prefix


def test_the_base_is_reproducible():
    assert fitted("medley", ("model.encoder", "labels"), 3)[1] == fitted("medley", ("model.encoder", "labels"), 3)[1]


def test_lessons_do_not_depend_on_who_makes_them():
    _, processor = build(0)
    for kind in ("medley", "written"):
        here, there = iter(Lessons(kind, processor, 5)), Lessons(kind, processor, 5).feed()
        for _ in range(2):
            a, b = next(here), next(there)
            assert torch.equal(a.heard, b.heard)
            assert torch.equal(a.batch.input_ids, b.batch.input_ids)


def test_written_lessons_name_what_is_heard():
    _, processor = build(0)
    lesson = next(iter(Lessons("written", processor, 0)))
    ids = {processor.tokenizer.encode(label).ids[0]: 1 + i for i, label in enumerate(LABELS)}
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


def test_a_dialogue_answers_every_question_about_a_clip():
    for index in range(20):
        clip = example(0, "train", index)
        turns = dialogue(clip, random.Random(0))
        assert turns[0] == (clip.question, clip.answer)
        assert len(turns) == 2 * len(clip.events)
        assert len(heard([clip])) == (math.ceil(len(clip.pcm) / 160) + 1) // 2 // 2


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(1.0, 0.1, "cosine", step / 100) for step in range(101)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 10
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_a_name_that_is_no_part():
    with pytest.raises(ValueError, match="no submodule encoder"):
        select(nn.Linear(1, 1), ("encoder",))


def test_scores_of_answers():
    assert normalise(" Dog. ") == "dog"
    assert seconds_in("It starts at 1.3 s.") == 1.3
    assert seconds_in("never") is None
    assert accuracy(["Seven", "dog"], ["seven", "cat"]) == 0.5
    errors = onset_errors(["1.0 s", "no idea"], [1.2, 0.5], worst=4.0)
    assert errors == pytest.approx([0.2, 4.0])
    assert onset_summary(errors) == {"median_error_s": pytest.approx(2.1), "within_0.3_s": 0.5}


@pytest.mark.slow
def test_the_whole_demo_in_short(tmp_path):
    report = run(tmp_path, seconds=math.inf, steps=3, heldout=12, clips=60, say=lambda line: None)
    assert report["steps"] == dict.fromkeys([name for name, *_ in (*BASE, *STAGES)], 3)
    assert json.loads((tmp_path / "results.json").read_text()) == report
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    for name, *_ in STAGES:
        assert (tmp_path / "run" / name / "log.jsonl").read_text()
    for answerer in ("trained", "untrained", "majority answer"):
        assert set(report["results"][answerer]) == {"speech", "sound", "onset"}
    model, processor = AFNext.from_pretrained(tmp_path), AFNextProcessor.from_pretrained(tmp_path)
    assert model.config.audio_token_id == processor.token_id("<sound>")
    clip = next(iter((tmp_path / "corpus" / "heldout").glob("*.flac")))
    batch = processor(
        [{"role": "user", "content": [{"type": "audio", "path": str(clip)}, {"type": "text", "text": "?"}]}]
    )
    assert len(model.generate(batch, max_new_tokens=3)) == 1
