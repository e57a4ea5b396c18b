"""The trainer: the same twice, the same after a stop, what is frozen stays, and what is wrong is said before damage."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from afn_model import AFNext
from afn_model.data import index
from afn_model.network.device_batch import DeviceBatch
from afn_model.train import stage_run
from afn_model.train.curriculum import Start, read_curriculum
from afn_model.train.log import RunLog
from afn_model.train.prepare import DONE
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.stopping import Stopped
from afn_model.train.trainer import train
from afn_model.train.validate import MODEL, data_config
from bench.resume import prepare
from tests.budget import assert_same_but_rounding, assert_within
from tests.orders import in_orders

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
LAYOUT = RunLayout(workers=0, log_every=1, checkpoint_every=4)
STEPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    prepare(folder)
    return folder


def curriculum(folder: Path, **changes):
    found = read_curriculum(folder / "tones.yaml")
    return replace(found, stages=(replace(found.stages[0], **{"steps": STEPS, **changes}),))


def go(folder: Path, run: Path, on_row=None, layout=LAYOUT, stages=None, more=None, **changes):
    options = Options(show=False, tensorboard=False, on_row=on_row)
    plan = curriculum(folder, **changes) if stages is None else replace(curriculum(folder), stages=stages)
    train(plan, folder / "base", run, layout=layout, options=options, **more or {})
    return rows(run, plan.stages[-1].name)


def rows(run: Path, stage: str = "all"):
    keys = ("step", "loss", "grad_norm", "losses", "lr", "cut", "dropped")
    lines = (run / stage / "log.jsonl").read_text().splitlines()
    return [{key: row[key] for key in keys} for row in map(json.loads, lines)]


def weights(run: Path, stage: str = "all") -> dict[str, torch.Tensor]:
    return load_file(run / stage / MODEL / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def reference(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "reference"
    return go(folder, run), weights(run)


def test_the_same_run_twice_and_with_workers(folder, tmp_path, reference):
    found, after = reference
    assert [row["step"] for row in found] == list(range(STEPS))
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    assert go(folder, tmp_path / "again", layout=replace(LAYOUT, workers=2)) == found
    assert same(weights(tmp_path / "again"), after)


@pytest.mark.parametrize("crash", [3, 4, 7])
def test_a_crash_changes_nothing(folder, tmp_path, reference, crash):
    def fail(row):
        if row["step"] == crash:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        go(folder, tmp_path, on_row=fail)
    assert not (tmp_path / "all" / DONE).exists()
    assert go(folder, tmp_path) == reference[0]
    assert same(weights(tmp_path), reference[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_writes_a_checkpoint_first(folder, tmp_path, reference, number):
    handler = signal.getsignal(number)
    with pytest.raises(Stopped, match="after step 7"):
        go(folder, tmp_path, on_row=lambda row: row["step"] == 5 and os.kill(os.getpid(), number))
    assert signal.getsignal(number) == handler
    assert [path.name for path in sorted((tmp_path / "all" / "checkpoints").glob("step-*"))][-1] == "step-00000007"
    assert go(folder, tmp_path) == reference[0]


def test_a_finished_stage_is_not_done_again(folder, tmp_path):
    first = go(folder, tmp_path, steps=2)
    assert go(folder, tmp_path, steps=2, on_row=lambda row: pytest.fail("trained again")) == first
    with pytest.raises(ValueError, match="all: finished with other settings: steps was 2, is 1; --allow-changes steps"):
        go(folder, tmp_path, steps=1)


def test_a_finished_stage_is_made_longer(folder, tmp_path):
    """The rate is that of the share done: half of the cosine again, where all of it was behind."""
    first = go(folder, tmp_path, steps=2, warmup=0.0)
    again = go(folder, tmp_path, steps=4, warmup=0.0, release_name="Instruct")
    assert again[:2] == first
    assert [row["step"] for row in again] == [0, 1, 2, 3]
    assert again[2]["lr"] == pytest.approx(1e-3 * 0.5)
    assert json.loads((tmp_path / "all" / DONE).read_text())["stage"]["steps"] == 4
    kept = tmp_path / "all" / "checkpoints"
    assert [path.name for path in kept.iterdir()] == ["step-00000004"]
    go(
        folder,
        tmp_path,
        layout=replace(LAYOUT, keep_finished=0),
        steps=5,
        lr=1e-4,
        warmup=0.0,
        more={"allow_changes": ("lr",)},
    )
    assert not list(kept.iterdir())
    with pytest.raises(ValueError, match=r"steps was 5, is 6\), and there is no checkpoint to go on from"):
        go(folder, tmp_path, steps=6, lr=1e-4, warmup=0.0)


def test_a_run_folder_is_one_runs(folder, tmp_path):
    """The second is refused before it removes what the first is writing."""
    refused = []

    def second(row):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
            go(folder, tmp_path, lr=5e-4)
        refused.append(row["step"])

    found = go(folder, tmp_path, steps=2, on_row=second)
    assert refused == [0, 1]
    assert len(found) == 2
    assert not (tmp_path / ".lock").exists()


def test_a_dry_run_leaves_nothing(folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        go(folder, tmp_path / "run", more={"dry_run": True})
    assert not (tmp_path / "run").exists()


def test_an_epoch_ends_where_the_corpus_ends(folder, tmp_path):
    """One step is larger than the corpus of 48, and an epoch has a step of its own all the same."""
    found = go(folder, tmp_path, batch_tokens=192 * 40, chunk=4096, steps=None, epochs=2.0)
    assert [row["step"] for row in found] == [0, 1]
    assert json.loads((tmp_path / "all" / DONE).read_text())["seen"] == 96


def test_what_is_cut_or_left_out_is_counted(folder, tmp_path):
    longer = sum(json.loads(line)["duration"] > 1.5 for line in (folder / "tones.jsonl").read_text().splitlines())
    change = {"max_audio": 1.5, "steps": None, "epochs": 1.0}
    with pytest.warns(UserWarning, match=f"{longer} records .* are longer than max_audio 1.5 s and are cut to it"):
        cut = go(folder, tmp_path / "cut", **change)
    assert (sum(row["cut"] for row in cut), sum(row["dropped"] for row in cut)) == (longer, 0)
    with pytest.warns(UserWarning, match="are left out"):
        dropped = go(folder, tmp_path / "drop", on_long="drop", **change)
    assert (sum(row["cut"] for row in dropped), sum(row["dropped"] for row in dropped)) == (0, longer)
    with pytest.warns(UserWarning, match="end the run"), pytest.raises(ValueError, match="is longer than max_audio"):
        go(folder, tmp_path / "error", on_long="error", **change)


@pytest.mark.parametrize("trains", [("adaptor",), ("adaptor", "encoder"), ("language_model",)])
def test_frozen_parts_keep_their_bytes(folder, tmp_path, trains):
    before = load_file(folder / "base" / "model.safetensors")
    go(folder, tmp_path, steps=2, trains=trains)
    after = weights(tmp_path)
    names = {"adaptor": "multi_modal_projector", "encoder": "audio_tower", "language_model": "language_model|lm_head"}
    prefixes = [p for part in trains for p in names[part].split("|")]
    for name, value in before.items():
        trained = any(f"model.{p}" in name or name.startswith(p) for p in prefixes)
        frozen = not trained or "embed_positions" in name
        assert torch.equal(after[name], value) == frozen, name
    saved = json.loads(next((tmp_path / "all" / DONE).parent.glob(DONE)).read_text())
    assert saved["stage"]["trains"] == list(trains)


def test_a_stage_starts_from_half_of_another(folder, tmp_path):
    one = curriculum(folder).stages[0]
    two = replace(one, name="next", start=Start("all", 0.5), steps=1, lr=1e-9)
    go(folder, tmp_path, stages=(one, two))
    half, end = (load_file(tmp_path / "all" / name / "model.safetensors") for name in (f"{MODEL}-at-0.5", MODEL))
    key = "lm_head.weight"
    begun = weights(tmp_path, "next")[key]
    # The first step of AdamW moves a weight by the learning rate at most, and rounds it.
    assert_within(begun, half[key], 2e-9 + torch.finfo(torch.float32).eps * half[key].abs())
    assert not torch.allclose(begun, end[key], atol=1e-4)


def test_a_step_that_jumps_over_a_milestone_leaves_its_model(folder, tmp_path):
    one = replace(curriculum(folder).stages[0], steps=1)
    two = replace(one, name="next", start=Start("all", 0.5))
    assert len(go(folder, tmp_path, stages=(one, two))) == 1


def test_losses_by_axis_add_up(folder, tmp_path):
    for row in go(folder, tmp_path, steps=2):
        assert list(row["losses"]) == ["all"]
        bound = 4 * torch.finfo(torch.float32).eps * row["loss"]
        assert_within(torch.tensor(row["losses"]["all"]), torch.tensor(row["loss"]), bound)


def test_accumulating_bins_gives_the_whole_batch(folder, tmp_path, reference):
    """Four bins of 192 tokens and one bin of 768 hold other samples, but a bin alone is what its step says."""
    first = go(folder, tmp_path, batch_tokens=192, steps=1)
    assert first[0]["loss"] != reference[0][0]["loss"]
    assert first[0]["loss"] == pytest.approx(reference[0][0]["loss"], rel=0.2)


def broken(folder: Path, tmp_path: Path) -> Path:
    base = tmp_path / "broken"
    base.mkdir()
    for file in (folder / "base").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"][0] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
    options = Options(show=False, tensorboard=False)
    with pytest.raises(ValueError, match="stage all, step 0: loss nan"):
        train(curriculum(folder), broken(folder, tmp_path), tmp_path / "run", layout=LAYOUT, options=options)
    assert not list((tmp_path / "run" / "all" / "checkpoints").glob("step-*"))


def stop_at(step):
    def stop(row):
        if row["step"] == step:
            raise RuntimeError("crash")

    return stop


def test_what_changed_since_the_checkpoint(folder, tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        go(folder, tmp_path, on_row=stop_at(6))
    with pytest.raises(
        ValueError, match=r"step-00000004: the settings changed since: lr was 0\.001, is 0\.01; --allow"
    ):
        go(folder, tmp_path, lr=0.01)
    with pytest.raises(ValueError, match=r"changed since: context was 192, is 96; take another run folder"):
        go(folder, tmp_path, context=96, more={"allow_changes": ("lr",)})
    lines = (folder / "tones.jsonl").read_text()
    try:
        (folder / "tones.jsonl").write_text(lines.replace("a low tone", "a loud tone"))
        with pytest.raises(ValueError, match="it has changed"):
            go(folder, tmp_path)
        index.build(folder / "tones.jsonl")
        with pytest.raises(ValueError, match="the datasets changed since: tones was"):
            go(folder, tmp_path)
    finally:
        (folder / "tones.jsonl").write_text(lines)
        index.build(folder / "tones.jsonl")
    assert [row["step"] for row in go(folder, tmp_path)] == list(range(STEPS))


def test_a_lower_rate_after_a_checkpoint(folder, tmp_path, reference):
    with pytest.raises(RuntimeError, match="crash"):
        go(folder, tmp_path, on_row=stop_at(6))
    found = go(folder, tmp_path, lr=1e-4, more={"allow_changes": ("lr",)})
    assert found[:4] == reference[0][:4]
    assert found[4]["loss"] == reference[0][4]["loss"], "the weights are those of the checkpoint"
    assert [row["lr"] for row in found[4:]] == [pytest.approx(0.1 * row["lr"]) for row in reference[0][4:]]


def test_weights_of_another_run(folder, tmp_path, reference):
    go(folder, tmp_path / "first", steps=2)
    source = tmp_path / "first" / "all" / "checkpoints"
    whole = weights(tmp_path / "first")
    go(folder, tmp_path / "next", steps=1, lr=1e-9, more={"init_from": source / "step-00000002"})
    for name, begun in weights(tmp_path / "next").items():
        # The first step of AdamW moves a weight by the learning rate at most, and rounds it.
        assert_within(begun, whole[name], 2e-9 + torch.finfo(torch.float32).eps * whole[name].abs())
    assert not same(whole, load_file(folder / "base" / "model.safetensors"))
    with pytest.raises(ValueError, match=r"base: no checkpoint, as .* is one; a model folder is given with --base"):
        go(folder, tmp_path / "other", steps=1, more={"init_from": folder / "base"})


def test_weights_that_a_run_kept_frozen_must_be_the_bases(folder, tmp_path):
    go(folder, tmp_path / "first", steps=1, trains=("adaptor",))
    more = {"init_from": tmp_path / "first" / "all"}
    go(folder, tmp_path / "next", steps=1, trains=("adaptor",), more=more)
    base = tmp_path / "base"
    base.mkdir()
    for file in (folder / "base").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    options = Options(show=False, tensorboard=False)
    with pytest.raises(ValueError, match=r"was trained from another model, and has not the \d+ weights"):
        train(curriculum(folder, steps=1), base, tmp_path / "other", layout=LAYOUT, options=options, **more)


def test_another_base_is_noticed_and_a_refused_run_leaves_no_trace(folder, tmp_path):
    run, base = tmp_path / "run", broken(folder, tmp_path)
    with pytest.raises(RuntimeError, match="crash"):
        go(folder, run, on_row=stop_at(6))
    said = (run / "curriculum.yaml").read_text()
    with pytest.raises(ValueError, match="step-00000004: the model it started from changed since"):
        train(curriculum(folder), base, run, layout=LAYOUT, options=Options(show=False, tensorboard=False))
    with pytest.raises(ValueError, match="the settings changed since"):
        go(folder, run, lr=0.5)
    assert (run / "curriculum.yaml").read_text() == said


def test_a_signal_in_the_last_step_ends_the_run(folder, tmp_path):
    one = replace(curriculum(folder).stages[0], steps=2)
    stages = (one, replace(one, name="next", start=Start("all")))
    with pytest.raises(Stopped, match="all: stopped after its last step"):
        go(
            folder,
            tmp_path,
            stages=stages,
            on_row=lambda row: row["step"] == 1 and os.kill(os.getpid(), signal.SIGTERM),
        )
    assert (tmp_path / "all" / DONE).exists()
    assert not (tmp_path / "next").exists()
    assert len(go(folder, tmp_path, stages=stages)) == 2


def test_a_later_stage_is_checked_before_the_first(folder, tmp_path):
    """Settings of GRPO that do not exist, a data set without an index, steps that ranks cannot share."""
    one = curriculum(folder).stages[0]
    wrong = {"method": "grpo", "batch_prompts": 2, "name": "next"}
    for change, message in (
        ({"grpo": {"grup": 3}}, "stage next: grpo has no grup; it takes group"),
        ({"grpo": {"group": 1}}, "stage next: grpo: out of range"),
        ({"grpo": {"judge": {"uri": "x"}}}, "stage next: judge has no uri; it takes url"),
        ({"blend": {"tones": 0.0}}, "tones"),
    ):
        with pytest.raises(ValueError, match=message):
            go(folder, tmp_path, stages=(one, replace(one, **wrong, **change)))
    with pytest.raises(ValueError, match="stage next: 1 ranks cannot be cut into groups of 2 that share the weights"):
        go(folder, tmp_path, stages=(one, replace(one, name="next", layout={"dtype": "bfloat16", "shard": 2})))
    assert not tmp_path.joinpath("all").exists()


def test_prompts_may_have_shorter_audio_than_the_stage(folder):
    """The loader reads them, so it must know."""
    plan = curriculum(folder)
    stage = replace(plan.stages[0], max_audio=20.0, batch_prompts=2)
    for method, own, most in (("grpo", 5, 5), ("dpo", "1e1", 10), ("dpo", 60, 20), ("grpo", None, 20), ("sft", 5, 20)):
        one = replace(stage, method=method, grpo={"max_seconds": own}, dpo={"max_seconds": own})
        assert data_config(plan, one).max_seconds == most


def test_grpo_without_a_usable_prompt_ends(folder, tmp_path):
    """The records have no rewards: nothing could be learnt, and the stage must not be called done."""
    change = {"method": "grpo", "batch_prompts": 2, "grpo": {"group": 2, "max_new_tokens": 2, "kl": 0}}
    with pytest.raises(ValueError, match=r"10 of 10 records are bad, more than 1\.00%: .*: no rewards"):
        go(folder, tmp_path, steps=20, **change)
    assert not (tmp_path / "all" / DONE).exists()


def test_a_full_disk_leaves_the_checkpoint_before(folder, tmp_path, monkeypatch):
    import torch.distributed.checkpoint as dcp

    whole = dcp.FileSystemWriter.write_data

    def full(self, plan, planner):
        if "00000008" in str(self.path):
            raise OSError(28, "No space left on device")
        return whole(self, plan, planner)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full)
    with pytest.raises(OSError, match=r"checkpoint at step 8 could not be written: No space left on device; .* step 4"):
        go(folder, tmp_path)
    monkeypatch.undo()
    assert [row["step"] for row in go(folder, tmp_path)] == list(range(STEPS))


def test_a_failed_checkpoint_is_noticed_in_the_next_step(folder, tmp_path, monkeypatch):
    import torch.distributed.checkpoint as dcp

    def full(self, plan, planner):
        raise OSError(28, "No space left on device")

    seen = []

    def wait(row):
        seen.append(row["step"])
        until = time.monotonic() + 30
        while row["step"] == 4 and time.monotonic() < until and list(tmp_path.glob("all/checkpoints/.step-*")):
            time.sleep(0.02)
        time.sleep(0.3 * (row["step"] == 4))

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full)
    with pytest.raises(OSError, match="checkpoint at step 4 could not be written: No space left on device"):
        go(folder, tmp_path, on_row=wait)
    assert seen[-1] in (4, 5), "the next checkpoint would be that of step 8"


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_a_model_that_cannot_be_written_costs_no_step(folder, tmp_path, monkeypatch, lora):
    def full(*_):
        raise OSError(28, "No space left on device", "model.safetensors")

    change = {"steps": 3, "trains": ("language_model",), "lora": lora}
    monkeypatch.setattr(stage_run, "export_model", full)
    with pytest.raises(OSError, match="No space left"):
        go(folder, tmp_path, **change)
    assert [path.name for path in (tmp_path / "all" / "checkpoints").iterdir()] == ["step-00000003"]
    assert (tmp_path / "all" / "adapter" / "adapter_model.safetensors").exists() == (lora is not None)
    monkeypatch.undo()
    assert len(go(folder, tmp_path, on_row=lambda row: pytest.fail("trained again"), **change)) == 3
    assert (tmp_path / "all" / DONE).exists()


def test_a_log_that_cannot_be_written_is_named(folder, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "bad.jsonl").symlink_to("/dev/full")
    log = RunLog(tmp_path, stage="all", show=False)
    with pytest.raises(OSError, match="No space left on device") as caught:
        log.bad([("a.wav", "no such file")])
    assert caught.value.filename == str(tmp_path / "all" / "bad.jsonl")
    log.close()


def test_lora_leaves_an_adapter_and_a_whole_model(folder, tmp_path):
    from afn_model.train import lora

    before = load_file(folder / "base" / "model.safetensors")
    go(folder, tmp_path, trains=("adaptor", "language_model"), lora={"rank": 4, "alpha": 8}, steps=3)
    after = weights(tmp_path)
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert all("self_attn" in name or "mlp" in name or "projector" in name for name in changed), changed
    model = AFNext.from_pretrained(folder / "base")
    lora.load(model, tmp_path / "all" / "adapter")
    lora.merge(model)
    merged = dict(model.state_dict())["language_model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(merged, after["model.language_model.layers.0.self_attn.q_proj.weight"])


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_changes_no_loss(folder, tmp_path, reference, recompute):
    assert go(folder, tmp_path, layout=replace(LAYOUT, recompute=recompute)) == reference[0]


def test_bfloat16_keeps_float32_masters(folder, tmp_path, reference):
    found = go(folder, tmp_path, layout=replace(LAYOUT, dtype="bfloat16"))
    for row, exact in zip(found, reference[0], strict=False):
        assert row["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert weights(tmp_path)["lm_head.weight"].dtype == torch.bfloat16
    assert found[-1]["loss"] < found[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_features_change_no_loss(folder, tmp_path, dtype, monkeypatch):
    """The recordings come again and again; the encoder computes each once."""
    encode, calls = AFNext.encode_batch, []

    def counted(self, batch):
        audio = batch.audio if isinstance(batch, DeviceBatch) else batch
        calls.append(0 if audio is None else len(audio.samples))
        return encode(self, batch)

    monkeypatch.setattr(AFNext, "encode_batch", counted)
    layout = replace(LAYOUT, dtype=dtype)
    change = {"trains": ("adaptor",), "steps": 6}

    def losses(name, **more):
        return torch.tensor([row["loss"] for row in go(folder, tmp_path / name, layout=layout, **change, **more)])

    kept = losses("kept", cache_encoder=True)
    kept_calls, _ = sum(calls), calls.clear()
    names = iter(range(99))
    plain = in_orders(lambda: losses(str(next(names))), 4)
    windows = sum(calls) / len(plain)
    for step in range(1, len(kept) + 1):  # an error of one step moves all later ones
        assert_same_but_rounding(kept[:step], [one[:step] for one in plain])
    assert 0 < kept_calls < 0.8 * windows


def test_features_of_an_encoder_that_trains_are_not_kept(folder, tmp_path):
    with pytest.raises(ValueError, match="stage all: cache_encoder is for SFT with a frozen encoder"):
        go(folder, tmp_path, cache_encoder=True)
