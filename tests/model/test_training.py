"""Training stages: what is frozen stays frozen to the byte, budgets end stages, and the demo runs end to end."""

import json
import math

import pytest
import torch
from torch import nn

from afn_model import AFNext, AFNextProcessor
from afn_model.demo import PARTS, Trainee, build, run
from afn_model.demo.lessons import Lessons, dialogue, heard
from afn_model.eval.answers import accuracy, normalise, onset_errors, onset_summary, seconds_in
from afn_model.model import next_labels
from afn_model.train.sft import Stage, learning_rate, select, train_stage

pytest.importorskip("espeakng_loader", reason="the demo's voices are an optional extra")


def bytes_of(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_trains_what_it_names_and_nothing_else(part):
    model, processor = build(0)
    trainee = Trainee(model)
    before = bytes_of(trainee)
    lessons = iter(Lessons(part.lessons, processor, 0))
    stage = Stage(part.name, part.trains, steps=2, lr=1e-2)
    train_stage(trainee, stage, lambda: trainee.losses(next(lessons), part), lambda row: None)
    changed = {name for name, value in bytes_of(trainee).items() if value != before[name]}
    assert changed
    assert all(name.startswith(part.trains) for name in changed)
    assert "model.encoder.embed_positions.weight" not in changed
    for prefix in part.trains:
        assert any(name.startswith(prefix) for name in changed), prefix


def test_training_is_reproducible():
    def losses():
        model, processor = build(3)
        trainee, rows = Trainee(model), []
        part = PARTS[-1]
        lessons = iter(Lessons(part.lessons, processor, 3))
        stage = Stage(part.name, part.trains, steps=3)
        train_stage(trainee, stage, lambda: trainee.losses(next(lessons), part), rows.append)
        return [row.losses for row in rows]

    assert losses() == losses()


def test_lessons_do_not_depend_on_who_makes_them():
    _, processor = build(0)
    for kind in ("medley", "written", "spoken"):
        here, there = iter(Lessons(kind, processor, 5)), Lessons(kind, processor, 5).feed()
        for _ in range(2):
            a, b = next(here), next(there)
            assert torch.equal(a.heard, b.heard)
            assert torch.equal(a.batch.input_ids, b.batch.input_ids)


def test_written_lessons_name_what_is_heard():
    _, processor = build(0)
    spoken, written = (next(iter(Lessons(kind, processor, 0))) for kind in ("spoken", "written"))
    rows = spoken.batch.input_ids == processor.sound_id
    assert int(rows.sum()) == len(spoken.heard)
    assert not (written.batch.input_ids == processor.sound_id).any()
    assert torch.equal(written.batch.input_ids[~rows], spoken.batch.input_ids[~rows])
    events = spoken.heard.bool()
    silence = processor.tokenizer.encode(".").ids[0]
    names = written.batch.input_ids[rows]
    assert (names[~events] == silence).float().mean() > 0.8
    assert (names[events] != silence).float().mean() > 0.8


def test_a_dialogue_answers_every_question_about_a_clip():
    import random

    from afn_model.data.scenes import example

    for index in range(20):
        clip = example(0, "train", index)
        turns = dialogue(clip, random.Random(0))
        assert turns[0] == (clip.question, clip.answer)
        assert len(turns) == 2 * len(clip.events)
        assert len(heard([clip])) == (math.ceil(len(clip.pcm) / 160) + 1) // 2 // 2


def test_learning_rate_warms_up_and_decays():
    stage = Stage("s", (), steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(stage, step / 100) for step in range(101)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 10
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_a_stage_ends_with_its_budget_of_seconds():
    model = nn.Linear(2, 1)
    rows = []
    stage = Stage("s", ("",), seconds=0.2, steps=math.inf)
    train_stage(model, stage, lambda: {"loss": model(torch.ones(1, 2)).square().sum()}, rows.append)
    assert rows
    assert rows[-1].progress < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Stage("s", ()), "neither a number of seconds nor of steps"),
        (lambda: select(nn.Linear(1, 1), ("encoder",)), "no submodule encoder"),
    ],
)
def test_bad_stages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_that_is_not_finite_stops_the_run():
    model = nn.Linear(2, 1)
    stage = Stage("s", ("",), steps=3)
    with pytest.raises(ValueError, match="stage s, step 0"):
        train_stage(model, stage, lambda: {"loss": model(torch.full((1, 2), math.nan)).sum()}, lambda row: None)


def test_labels_are_shifted_within_each_conversation():
    labels = torch.tensor([-100, 5, 6, 7, -100, 8])
    cu = torch.tensor([0, 3, 3, 6], dtype=torch.int32)
    assert next_labels(labels, cu).tolist() == [5, 6, -100, -100, 8, -100]


def test_scores_of_answers():
    assert normalise(" Dog. ") == "dog"
    assert seconds_in("It starts at 1.3 s.") == 1.3
    assert seconds_in("never") is None
    assert accuracy(["Seven", "dog"], ["seven", "cat"]) == 0.5
    errors = onset_errors(["1.0 s", "no idea"], [1.2, 0.5], worst=4.0)
    assert errors == pytest.approx([0.2, 4.0])
    assert onset_summary(errors) == {"median_error_s": pytest.approx(2.1), "within_0.3_s": 0.5}


def test_the_whole_demo_in_short(tmp_path):
    report = run(tmp_path, seconds=math.inf, steps=3, heldout=12, say=lambda line: None)
    assert report["steps"] == {part.name: 3 for part in PARTS}
    assert json.loads((tmp_path / "results.json").read_text()) == report
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3 * len(PARTS)
    for answerer in ("trained", "untrained", "majority answer"):
        assert set(report["results"][answerer]) == {"speech", "sound", "onset"}
    model, processor = AFNext.from_pretrained(tmp_path), AFNextProcessor.from_pretrained(tmp_path)
    assert model.config.audio_token_id == processor.token_id("<sound>")
    clip = next(iter((tmp_path / "corpus" / "heldout").glob("*.flac")))
    batch = processor(
        [{"role": "user", "content": [{"type": "audio", "path": str(clip)}, {"type": "text", "text": "?"}]}]
    )
    assert len(model.generate(batch, max_new_tokens=3)) == 1
