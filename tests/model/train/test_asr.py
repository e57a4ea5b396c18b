"""ASR stages: masks of SpecAugment, CTC, and a run that is stopped and goes on to the same weights."""

import json

import pytest
import torch

from afn_model.afwhisper import AFWhisper
from afn_model.bootstrap.tiny import build
from afn_model.data import index, records
from afn_model.train.asr import ASRSettings, masked
from afn_model.train.curriculum import Stage, read_curriculum
from afn_model.train.held_records import held_out
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from afn_model.train.validate import MODEL, check_changes
from afn_model.world.build import write_world
from tests.model.af_whisper import speech_model

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
LAYOUT = RunLayout(workers=0, log_every=1, checkpoint_every=2)
CURRICULUM = """
datasets:
  words: data/train/word.jsonl
  held: data/heldout/word.jsonl
  noises: data/train/word.jsonl
  fast: {path: data/train/word.jsonl, speed: 1.1}
stages:
  first:
    method: asr
    trains: [encoder, decoder]
    context: 512
    batch_tokens: 512
    steps: 4
    lr: 2.0e-3
    layer_decay: 0.8
    blend: {words: 1}
    asr: {label_smoothing: 0.1, frequency_masks: 2, time_masks: 2, ctc: 0.3, noise: {data: noises}, rooms: {share: 0.5}}
    eval: {data: held, every: 2, metrics: [wer]}
  second:
    method: asr
    trains: [decoder]
    start: first
    context: 512
    batch_tokens: 512
    steps: 2
    blend: {words: 1}
"""


def test_masks_are_bands_and_stretches_of_what_counts():
    generator = torch.Generator().manual_seed(0)
    settings = ASRSettings(frequency_masks=2, frequency_width=10, time_masks=3, time_share=0.1)
    mel, frames = torch.ones(200, 40, 300), [300] * 100 + [50] * 100
    found = masked(mel, frames, settings, generator)
    bins, places = (found.sum(2) == 0).sum(1), (found.sum(1) == 0).sum(1)
    assert bins.max() <= 20
    assert bins.float().mean() == pytest.approx(10, abs=1.5)  # two bands of 5 on average, which may overlap
    assert places[:100].max() <= 90
    assert places[:100].float().mean() == pytest.approx(44, abs=4)
    assert places[100:].max() <= 15
    assert (found[100:, :, 50:].sum(1) > 0).all()  # nothing is left out where nothing counts
    assert torch.equal(masked(mel, frames, ASRSettings(), generator), mel)


def test_settings_out_of_range():
    for wrong in (
        {"label_smoothing": 1.0},
        {"time_share": -0.1},
        {"frequency_masks": 1.5},
        {"time_masks": -1},
        {"ctc": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ASRSettings(**wrong)
    with pytest.raises(ValueError, match=r"ctc_without is '<\|caption\|>'; a list of tokens is expected"):
        ASRSettings(ctc_without="<|caption|>")
    with pytest.raises(ValueError, match="cache_encoder is for SFT with a frozen encoder"):
        Stage("first", ("decoder",), {"words": 1.0}, "asr", batch_tokens=8192, cache_encoder=True)
    for wrong in ({"noise": {"snr": [0, 5]}}, {"noise": [5, 20]}, {"rooms": {"t60": [1]}}, {"rooms": {"size": 3}}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}(:| has) "):
            ASRSettings(**wrong)


def checked(curriculum, stage):
    check_changes(curriculum, stage)
    held_out(curriculum, stage)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("data: noises", "data: hum", "noise: data 'hum' is none of white, pink, words, held, noises, fast"),
        ("data: noises", "data: fast", "noise: dataset fast has a speed, which recordings of noise cannot have"),
        (
            "data: held, every",
            "data: fast, every",
            "eval: dataset fast has a speed, but held-out recordings are heard as they are",
        ),
        (
            "eval: {data: held",
            "blend: {noises: 1}\n    eval: {share: 0.2",
            "a share of dataset noises is held back, and would be heard as noise",
        ),
    ],
)
def test_what_cannot_be_changed_is_said_before_anything_is_read(tmp_path, before, after, message):
    assert before in CURRICULUM
    text = CURRICULUM.replace(before, after, 1)
    if "noises: 1}\n    eval" in text:
        text = text.replace("    blend: {words: 1}\n", "", 1)
    (tmp_path / "c.yaml").write_text(text)
    curriculum = read_curriculum(tmp_path / "c.yaml")
    with pytest.raises(ValueError, match=f"^stage first: .*{message}$"):
        checked(curriculum, curriculum["first"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asr")
    write_world(folder / "data", train={"word": 40}, heldout={"word": 4}, seed=0)
    words = folder / "data/train/word.jsonl"  # with one answer each, as CTC wants it
    rows = [json.loads(line) for line in words.read_text().splitlines()]
    words.write_text("".join(json.dumps(row | {"messages": row["messages"][:2]}) + "\n" for row in rows))
    index.build(words, check=records.check, measure=True)
    model, processor = speech_model(pooled=True)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    changing = "blend: {words: 1, fast: 1}\n    reblend: {rule: doremi, every: 2, held: {words: held, fast: held}, "
    changing += "reference: {words: 0.1, fast: 0.5}}\n    asr"
    (folder / "curriculum.yaml").write_text(CURRICULUM.replace("blend: {words: 1}\n    asr", changing, 1))
    return folder


class Stop(Exception):
    pass


def run(folder, out, stop_at=None):
    def on_row(row):
        if stop_at is not None and "loss" in row and (row["stage"], row["step"]) == stop_at:
            raise Stop

    options = Options(show=False, tensorboard=False, on_row=on_row)
    train(read_curriculum(folder / "curriculum.yaml"), folder / "base", out, layout=LAYOUT, options=options)


def test_a_run_that_goes_on_has_the_same_weights(world, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(world, whole)
    with pytest.raises(Stop):
        run(world, parts, stop_at=("first", 2))
    run(world, parts)
    for stage in ("first", "second"):
        expected, found = (AFWhisper.from_pretrained(out / stage / MODEL).state_dict() for out in (whole, parts))
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    rows = [json.loads(line) for line in (whole / "first/log.jsonl").read_text().splitlines()]
    assert [row["eval_wer"] for row in rows if "eval_wer" in row]
    first, second = (AFWhisper.from_pretrained(whole / stage / MODEL) for stage in ("first", "second"))
    losses = [row["loss_ctc"] for row in rows if "loss_ctc" in row]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert [row["blend"] != row["blend_before"] for row in rows if "blend" in row] == [True, False]
    assert all(row["ctc_texts"] > 0 and row["ctc_short"] == 0 for row in rows if "loss" in row)
    assert first.ctc_head.weight.abs().max() > 0  # the base had none
    assert torch.equal(second.ctc_head.weight, first.ctc_head.weight)  # kept where a stage has no CTC
    assert not any("loss_ctc" in line for line in (whole / "second/log.jsonl").read_text().splitlines())
    assert torch.equal(second.encoder.conv1.weight, first.encoder.conv1.weight)  # it does not train in the second
    for part in ("layers.0.fc1.weight", "embed_positions.weight"):
        assert not torch.equal(second.decoder.get_parameter(part), first.decoder.get_parameter(part))


def test_the_model_and_the_method_belong_together(world, tmp_path):
    whole, processor = build(0)
    whole.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    curriculum, options = read_curriculum(world / "curriculum.yaml"), Options(show=False, tensorboard=False)
    with pytest.raises(ValueError, match=r"method asr, and .* has no such decoder"):
        train(curriculum, tmp_path / "base", tmp_path / "out", layout=LAYOUT, options=options)
