"""A stage of method talker: what it logs, its loss against the talker's own, and the same bits after a stop."""

import shutil

import pytest
import torch

from afn_model.data.micro_batch import GlobalBatch, MicroBatch
from afn_model.data.plan import Position
from afn_model.files import fingerprint
from afn_model.speech.talker import TalkerBatch
from afn_model.speech.voice import AFVoice
from afn_model.train.heard import HeardSpeech
from afn_model.train.prepare import DONE
from afn_model.train.talker import TalkerSettings, TalkerTraining
from tests.model.train.voices import FRAME, corpus, curriculum, go, save_voice


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talker")
    save_voice(folder / "base")
    corpus(folder / "voice.jsonl")
    return folder


def test_a_run_goes_on_with_the_same_bits(folder, tmp_path):
    plan = curriculum(folder, "talker", eval={"share": 0.3, "every": 2})
    rows = go(plan, folder, tmp_path / "run")
    names = ("loss", "loss_frames", "loss_end", "loss_first", "grad_norm")
    losses = [tuple(row[name] for name in names) for row in rows if "loss" in row]
    assert len(losses) == 4
    assert all(loss == pytest.approx(sum(parts)) and parts[2] > 0 for loss, *parts, _ in losses)
    held = [(row["eval_loss"], row["eval_frames"], row["eval_end"]) for row in rows if "eval_loss" in row]
    assert len(held) == 2
    home = tmp_path / "run" / "one"
    whole = fingerprint(home / "model" / "model.safetensors")
    base, model = AFVoice.from_pretrained(folder / "base"), AFVoice.from_pretrained(home / "model")
    same = {name.partition(".")[0] for name, x in model.state_dict().items() if x.equal(base.state_dict()[name])}
    assert same == {"codec"}
    for left in (DONE, "model", "checkpoints/step-00000004"):
        path = home / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = go(plan, folder, tmp_path / "run")
    assert [tuple(row[name] for name in names) for row in again if "loss" in row] == losses
    assert fingerprint(home / "model" / "model.safetensors") == whole


def heard(seed: int, frames: int, tokens: int, prompt: int) -> HeardSpeech:
    draw = torch.Generator().manual_seed(seed)
    clips = [torch.randint(-9000, 9000, (FRAME * n,), generator=draw, dtype=torch.int16) for n in (frames, prompt) if n]
    return HeardSpeech(torch.randint(1, 300, (tokens,), generator=draw), None, clips, seed=seed)


def step(*each: HeardSpeech) -> GlobalBatch:
    return GlobalBatch([MicroBatch(None, [], [], prepared=list(each))], Position(), len(each))


def test_passes_and_company_change_nothing(folder):
    """Draws belong to a sample: in passes of its own or beside others its part of the loss is the same."""
    voice = AFVoice.from_pretrained(folder / "base").train()
    voice.codec.eval()
    each = [heard(1, 9, 5, 0), heard(2, 20, 3, 7), heard(3, 6, 5, 3)]
    options = {"noise": 0.3, "dropout": 0.3, "draws": 2}
    found = []
    for budget, number in ((None, 1), (1, 3), (66, 2)):
        method = TalkerTraining(voice, TalkerSettings(pass_tokens=budget, **options))
        (losses,) = method.updates(step(*each))
        assert len(losses) == number
        found.append(float(sum(loss().detach() for loss in losses)))
        assert method.sums[:2].tolist() == [3, 35]
    torch.testing.assert_close(torch.tensor(found), torch.full((3,), found[0]), rtol=1e-5, atol=0)
    samples = method.samples(step(*each))
    batch, books = TalkerBatch.pack([sample for sample, _ in samples]), voice.codec.quantizer.codebooks
    other = voice.talker.loss(batch, 35, books, generator=torch.Generator().manual_seed(5), **options).loss
    assert float(other.detach()) != pytest.approx(found[0], rel=1e-4)
    clip = each[1].clips[0][None].float() / 32768
    assert samples[1][0].codes.equal(voice.codec.codes(clip)[0])


def test_held_out_recordings_are_measured_as_training_does_without_noise(folder):
    voice = AFVoice.from_pretrained(folder / "base").eval()
    batch, clean = step(heard(1, 9, 5, 0), heard(2, 20, 3, 7)), TalkerTraining(voice, TalkerSettings(draws=3))
    (losses,) = clean.updates(batch)
    found = float(sum(loss().detach() for loss in losses))
    noisy = TalkerTraining(voice, TalkerSettings(draws=3, noise=0.9, dropout=0.9))
    assert noisy.means(noisy.measure(batch))["loss"] == pytest.approx(found, rel=1e-5)


def test_nothing_that_is_said_is_no_step(folder):
    method = TalkerTraining(AFVoice.from_pretrained(folder / "base"), TalkerSettings())
    assert list(method.updates(step())) == []
    assert method.metrics() == {}


@pytest.mark.parametrize(
    "settings", [{"prompt_share": 2}, {"prompt_seconds": 0}, {"noise": -1}, {"dropout": 1}, {"draws": 0}, {"first": -1}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=r"expected|must be"):
        TalkerSettings(**settings)
