"""A voice on two ranks: the gradients of one rank with the whole batch, and the same weights and codes on both."""

from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_model.data.micro_batch import GlobalBatch, MicroBatch
from afn_model.data.plan import Position
from afn_model.speech.voice import AFVoice
from afn_model.train.curriculum import Stage
from afn_model.train.heard import HeardSpeech
from afn_model.train.method_of import method_of, method_settings
from afn_model.train.optimiser import FiniteCheck
from afn_model.train.run_layout import RunLayout, for_stage
from afn_model.train.update import update
from afn_model.train.voice_model import export_voice, voice_stage_model
from tests.distributed.ranks import run
from tests.model.train.voices import CODEC, FRAME, STAGES, save_voice
from tests.tiny import processor


def stage(method: str) -> Stage:
    given = STAGES[method] if method == "talker" else {"codec": CODEC | {"adversarial_start": 1}}
    return Stage("one", (method,), {"voice": 1}, method=method, batch_prompts=4, lr=1e-2, **given)


def heard(seed: int, method: str) -> HeardSpeech:
    draw = torch.Generator().manual_seed(seed)
    frames = [13] if method == "codec" else [9 + seed, seed % 3] if seed % 3 else [9 + seed]
    clips = [torch.randint(-9000, 9000, (FRAME * n,), generator=draw, dtype=torch.int16) for n in frames]
    return HeardSpeech(torch.arange(1, 5), None, clips, seed=seed)


def trained(process: Process, folder: Path, method: str, dtype: str = "float32") -> dict:
    """Three steps of 3, 3 and 1 recordings, dealt out: rows, first moments after the first step, the last state."""
    voice = AFVoice.from_pretrained(folder, dtype=torch.float32)
    of, settings = stage(method), method_settings(stage(method))
    given = voice, of, RunLayout(dtype=dtype), process
    made = voice_stage_model(*given, settings=settings)
    training = method_of(of, settings, made, processor(), process, seed=0)
    rows, moments = [], {}
    for step, numbers in enumerate(((1, 2, 3), (4, 5, 6), (7,))):
        own = [heard(number, method) for number in numbers[process.rank :: process.world_size]]
        batch = GlobalBatch([MicroBatch(None, [], [], prepared=own)], Position(), 0)
        batch.step = step
        options = {"rate": 1e-2, "clip": 1e9, "finite": FiniteCheck("one"), "step": step, "detailed": True}
        rows.append(update(made, training, batch, **options))
        if not moments:
            for name, parameter in voice.named_parameters():
                if parameter.requires_grad and "exp_avg" in made.optimiser.state.get(parameter, {}):
                    moment = made.optimiser.state[parameter]["exp_avg"]
                    moments[name] = moment.full_tensor() if isinstance(moment, DTensor) else moment.clone()
    state = {} if made.sharded else voice.state_dict()
    export_voice(voice, folder.parent / f"{method}-{process.world_size}-{dtype}")
    return {"rows": rows, "moments": moments, "state": state}


def on_two(process: Process, folder: Path, out: Path) -> None:
    for method, dtype in (("codec", "float32"), ("talker", "float32"), ("talker", "bfloat16")):
        everyone = processes.gather_objects(trained(process, folder, method, dtype))
        if process.rank == 0:
            torch.save(everyone, out / f"{method}-{dtype}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save_voice(folder / "base")
    run(2, on_two, folder / "base", folder)
    return folder


ALONE = Process(0, 1, 0, torch.device("cpu"), group=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["codec", "talker"])
def test_two_ranks_have_the_gradients_of_one(two, method):
    first, second = torch.load(two / f"{method}-float32.pt")
    whole = trained(ALONE, two / "base", method)
    for row, one in zip(first["rows"][:1], whole["rows"], strict=False):
        assert row == pytest.approx(one, rel=1e-4)
    assert first["moments"].keys() == whole["moments"].keys()
    largest = max(float(x.abs().max()) for x in whole["moments"].values())
    for name, moment in whole["moments"].items():
        torch.testing.assert_close(first["moments"][name], moment, rtol=1e-3, atol=1e-5 * largest, msg=name)
    assert first["rows"] == second["rows"]
    assert all(x.equal(second["state"][name]) for name, x in first["state"].items())
    if method == "codec":  # its discriminators began with the second step, and are not written
        assert "loss_discriminators" in first["rows"][1]
        assert not any(name.startswith("discriminators") for name in whole["moments"])
        assert any(name.startswith("discriminators") for name in first["state"])
        written = AFVoice.from_pretrained(two / "codec-2-float32")
        assert all(x.equal(first["state"][name]) for name, x in written.state_dict().items())


@pytest.mark.slow
def test_a_talker_in_bfloat16_is_near_that_in_float32_and_its_codec_the_same(two):
    rough, fine = (torch.load(two / f"talker-{dtype}.pt")[0] for dtype in ("bfloat16", "float32"))
    assert rough["rows"][0]["loss"] == pytest.approx(fine["rows"][0]["loss"], rel=0.02)
    assert rough["rows"] != fine["rows"]
    base, written = (AFVoice.from_pretrained(two / name).codec.state_dict() for name in ("base", "talker-2-bfloat16"))
    assert all(x.equal(base[name]) for name, x in written.items())


@pytest.mark.parametrize(
    ("method", "layout", "message"),
    [
        (
            "codec",
            {"dtype": "bfloat16"},
            "codec computes in float32 and keeps its activations, not with dtype bfloat16",
        ),
        ("codec", {"recompute": "full"}, "not with dtype float32 and recompute full; give the stage layout: "),
        ("talker", {"compile": True}, "talker is trained without compile; layout: {compile: false} is expected"),
        ("talker", {"offload_optimiser": True}, "method talker is trained without offload_optimiser"),
    ],
)
def test_layouts_that_cannot_run(method, layout, message):
    with pytest.raises(ValueError, match=message) as error:
        for_stage(RunLayout(**layout), stage(method))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputing_changes_no_gradient(tmp_path, mode):
    save_voice(tmp_path)
    found = []
    for recompute in ("none", mode):
        voice = AFVoice.from_pretrained(tmp_path)
        of = stage("talker")
        settings = method_settings(of)
        made = voice_stage_model(voice, of, RunLayout(recompute=recompute), ALONE, settings=settings)
        batch = GlobalBatch([MicroBatch(None, [], [], prepared=[heard(1, "talker")])], Position(), 0)
        (losses,) = method_of(of, settings, made, processor(), ALONE, seed=0).updates(batch)
        losses[0]().backward()
        found.append({name: p.grad for name, p in voice.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(x.equal(found[1][name]) for name, x in found[0].items())
