"""A stage of method codec: two optimiser steps a batch, what it logs, and the same bits after a stop."""

import shutil

import pytest
import torch

from afn_distributed.process import Process
from afn_model.data.micro_batch import GlobalBatch, MicroBatch
from afn_model.data.plan import Position
from afn_model.files import fingerprint
from afn_model.speech.voice import AFVoice
from afn_model.train.codec import CodecSettings, CodecTraining
from afn_model.train.curriculum import Stage
from afn_model.train.heard import HeardSpeech
from afn_model.train.prepare import DONE
from afn_model.train.run_layout import RunLayout
from afn_model.train.voice_model import voice_stage_model
from tests.model.train.voices import CODEC, FRAME, corpus, curriculum, go, save_voice

TIMES = ("seconds", "left_s", "tokens_per_s", "audio_hours_per_s", "data_wait", "memory_gb", "eval_seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    save_voice(folder / "base")
    corpus(folder / "voice.jsonl")
    return folder


@pytest.mark.parametrize("start", [1, 2])
def test_a_run_goes_on_with_the_same_bits(folder, tmp_path, start):
    """From step 2, when the discriminators have had a step, or none yet."""
    settings = CODEC | {"adversarial_start": start}
    plan = curriculum(folder, "codec", codec=settings, eval={"share": 0.3, "every": 2})
    rows = go(plan, folder, tmp_path / "run")
    steps = [row for row in rows if "loss" in row]
    always = {"loss_mel", "loss_commitment", "loss_codebook", "codes_used"}
    judged = {"loss_discriminators", "loss_adversarial", "loss_feature"}
    found = [{name for name in row if name.startswith(("loss_", "codes_"))} for row in steps]
    assert found == [*[always] * start, *[always | judged] * (4 - start)]
    assert all(row["tokens"] % 13 == 0 < row["tokens"] for row in steps)  # of crops of 0.1 s
    assert [row["step"] for row in rows if "eval_mel_distance" in row] == [1, 3]
    home = tmp_path / "run" / "one"
    whole = fingerprint(home / "model" / "model.safetensors")
    last = home / "checkpoints" / "step-00000004"
    state = {file.name: fingerprint(file) for file in last.glob("__*")}
    for left in (DONE, "model", "checkpoints/step-00000004"):
        path = home / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = go(plan, folder, tmp_path / "run")
    assert [{k: v for k, v in row.items() if k not in TIMES} for row in again] == [
        {k: v for k, v in row.items() if k not in TIMES} for row in rows
    ]
    assert fingerprint(home / "model" / "model.safetensors") == whole
    assert {file.name: fingerprint(file) for file in last.glob("__*")} == state


def test_nobody_to_judge_and_what_a_step_trains(folder):
    """Without discriminators there are none; a step of theirs leaves the codec alone, and one of it leaves them."""
    sure = CodecSettings(**CODEC | {"adversarial_start": 0.5})
    assert [sure.adversarial(step, share) for step, share in ((9, 0.49), (0, 0.5))] == [False, True]
    later = CodecSettings(**CODEC | {"adversarial_start": 3})
    assert [later.adversarial(step, 0.9) for step in (2, 3)] == [False, True]
    alone = Process(0, 1, 0, torch.device("cpu"), group=False)
    for start in (None, 0.0):
        voice, settings = (
            AFVoice.from_pretrained(folder / "base"),
            CodecSettings(**CODEC | {"adversarial_start": start}),
        )
        stage = Stage("one", ("codec",), {"voice": 1}, method="codec", batch_prompts=1, lr=1e-2)
        made = voice_stage_model(voice, stage, RunLayout(), alone, settings=settings)
        assert hasattr(voice, "discriminators") == (start is not None)
        training, found = CodecTraining(voice, settings), []
        crop = torch.randint(-9000, 9000, (13 * FRAME,), dtype=torch.int16)
        batch = GlobalBatch(
            [MicroBatch(None, [], [], prepared=[HeardSpeech(crop[:0], None, [crop], seed=1)])], Position(), 1
        )
        books = voice.codec.quantizer.codebooks.clone()
        for losses in training.updates(batch):
            for loss in losses:
                loss().backward()
            found.append({name.partition(".")[0] for name, p in voice.named_parameters() if p.grad is not None})
            made.optimiser.zero_grad()
        assert found == [{"discriminators"}, {"codec"}][start is None :]
        assert not books.equal(voice.codec.quantizer.codebooks)


def test_recordings_pass_through_some_levels_by_their_seed(folder):
    training = CodecTraining(AFVoice.from_pretrained(folder / "base"), CodecSettings(**CODEC))
    levels = training.levels(range(400), torch.zeros(400, 2 * FRAME))
    assert levels.equal(training.levels(range(400), torch.zeros(400, 2 * FRAME)))
    assert levels[:, 0].equal(levels[:, 1])
    counts = torch.bincount(levels[:, 0], minlength=5)
    assert counts[0] == 0
    assert counts[1:4].min() > 25, "one eighth of 400 each"
    assert 215 < counts[4] < 285, "half, and one eighth of the rest"


def test_a_rank_without_recordings_takes_part(folder):
    training = CodecTraining(
        AFVoice.from_pretrained(folder / "base").train(), CodecSettings(**CODEC), gather=lambda x: x + 1
    )
    training.collect = lambda value: [value, True if value is False else ["mel"]]  # the other rank has one
    steps = [float(loss()) for losses in training.updates(GlobalBatch([], Position(), 0)) for loss in losses]
    assert steps == [0.0, 0.0]
    assert training.metrics()["codes_used"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 0}, "crop is 0; a number of seconds above 0 is expected"),
        ({"adversarial_start": -1}, "adversarial_start is -1; a number from 0 is expected"),
        ({"all_levels": 2}, "all_levels is 2; a share from 0 to 1 is expected"),
        ({"loss": {"mell": 1}}, "loss has no mell"),
        ({"discriminators": {"periods": ["a"]}}, "discriminators: periods must be a whole number"),
        ({"discriminators": {"windows": [2]}}, "discriminators: windows must be a whole number from 4"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        CodecSettings(**settings)
    assert "\n" not in str(error.value)
