"""What a stage trains, what it asks for a reference, on two ranks, and a block through torch.compile."""

import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from afn_model import AFNext
from afn_model.afwhisper import AFWhisper
from afn_model.config import AudioConfig
from afn_model.train import lora
from afn_model.train.adapt import load_base
from afn_model.train.curriculum import Stage
from afn_model.train.quantise import quantise
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_model import StageModel, stage_model
from afn_model.weights import slices
from bench import memory
from bench.resume import prepare
from tests import tiny
from tests.budget import assert_same_but_rounding
from tests.distributed.ranks import run
from tests.model.af_whisper import CONFIG
from tests.model.train.test_adapt import LAYOUT, go
from tests.orders import in_orders

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")

LORA = {"rank": 2, "alpha": 4, "targets": ["q_proj"], "dropout": 0.1, "base": "int8"}
ANSWERS = [[[20, 30, 40], [50, 60]]]


@cache
def base() -> tuple[AFNext, object]:
    processor = tiny.processor()
    torch.manual_seed(0)
    return AFNext(tiny.config(processor, layers=2, audio=AudioConfig(width=32, layers=9, heads=2, ffn=64))), processor


def fresh() -> AFNext:
    model = AFNext(base()[0].config)
    model.load_state_dict(base()[0].state_dict())
    return model


def stage(**changes) -> Stage:
    return Stage("rl", ("adaptor", "language_model"), {"a": 1.0}, "grpo", batch_prompts=2, **changes)


def asked(of: AFNext) -> torch.Tensor:
    batch = base()[1]([tiny.conversation("dog?", tiny.noise(0.5))])
    return of.answer_logprobs(batch, ANSWERS)


def gradients(found: StageModel, *, ask: bool) -> list[torch.Tensor]:
    """Of the trained weights; with ``ask`` the reference comes between the forward and the backward."""
    found.model.zero_grad()
    logprobs = asked(found.model)
    if ask:
        with torch.no_grad(), found.reference_context() as reference:
            asked(reference)
    logprobs.sum().backward()
    return [p.grad.full_tensor() for p in found.model.parameters() if p.requires_grad]


def change(model: AFNext) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)


def references(here):
    """Both kinds of reference, with frozen weights whole and sharded."""
    before = asked(fresh().requires_grad_(False))
    for frozen in ("auto", "sharded"):
        layout = RunLayout(frozen=frozen, recompute="full")
        model = fresh()
        loaded = [weakref.ref(p) for name, p in model.named_parameters() if not name.startswith("encoder")]
        full = stage_model(model, stage(), layout, here, reference=True)
        assert not any(parameter() is not None for parameter in loaded), "weights that stay whole beside their shards"
        for name, parameter in full.reference.named_parameters():
            shared = frozen == "auto" and name.startswith("encoder")
            assert isinstance(parameter, DTensor) != shared, name
            assert (parameter is full.model.get_parameter(name)) == shared, name
        adapted = stage_model(fresh(), stage(lora={"rank": 2, "alpha": 4}), layout, here, reference=True)
        assert adapted.reference is adapted.model
        for name, parameter in adapted.model.named_parameters():
            assert isinstance(parameter, DTensor) == (frozen == "sharded" or parameter.requires_grad), name
        for found in (full, adapted):
            trained = [name for name, p in found.model.named_parameters() if p.requires_grad]
            change(found.model)
            with torch.no_grad():
                after = asked(found.model)
                with found.reference_context() as reference:
                    assert torch.equal(asked(reference), before)
                assert torch.equal(asked(found.model), after)
                assert not torch.equal(after, before)
            assert [name for name, p in found.model.named_parameters() if p.requires_grad] == trained
            once = gradients(found, ask=False)
            assert all(torch.equal(a, b) for a, b in zip(gradients(found, ask=True), once, strict=True))
            assert any(gradient.any() for gradient in once)
        assert not lora.adapters(full.model)


@pytest.mark.slow
def test_the_reference_is_what_the_policy_was_and_sharded_as_it_is():
    run(2, references)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parts(found: StageModel) -> dict[str, torch.Tensor]:
    """Every tensor of a stage's models, by its name, once."""
    models = {"": found.model, **{f"original {name} ": module for name, module in found.originals.items()}}
    if found.reference is not None and found.reference is not found.model:
        models["reference "] = found.reference
    tensors, seen = {}, set()
    for prefix, model in models.items():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[prefix + name] = tensor
    return tensors


def filled(here, folder: str):
    """From its files a rank reads what it holds, and holds what it would of a model that it had whole."""
    slices.PIECE = 1000
    adapter = f"{folder}/adapter"
    for changes, reference, layout in (
        ({}, True, RunLayout(frozen="sharded")),
        ({"lora": {"rank": 2, "alpha": 4, "base": "nf4"}}, True, RunLayout(dtype="bfloat16")),
        ({"adapter": adapter, "trains": ("language_model",)}, True, RunLayout(frozen="sharded")),
    ):
        one = replace(stage(), **changes)
        plain = AFNext.from_pretrained(folder)
        if one.lora:
            quantise(plain.language_model, one.lora["base"])
        wanted = stage_model(plain, one, layout, here, reference=reference)
        model, weights = load_base(Path(folder), one, here.device)
        found = stage_model(model, one, layout, here, reference=reference, weights=weights)
        tensors, read = parts(found), 0
        assert tensors.keys() == parts(wanted).keys()
        for name, tensor in parts(wanted).items():
            assert type(tensors[name]) is type(tensor), name
            assert tensors[name].requires_grad == tensor.requires_grad, name
            assert tensors[name].dtype == tensor.dtype, name
            assert torch.equal(local(tensors[name]), local(tensor)), name
            stored = name.rpartition(" ")[2]
            stored = f"{name.split()[1]}.{stored}" if name.startswith("original") else stored
            made = (one.adapter and stored.startswith("adaptor.")) or stored not in weights.stored
            read += 0 if made else 4 * local(tensor).numel()
        assert weights.read == read
        assert weights.largest <= max(1000, 4 * 64 * 3 * 128)
        assert all(torch.equal(a, b) for a, b in zip(*(gradients(x, ask=True) for x in (found, wanted)), strict=True))


@pytest.mark.slow
def test_ranks_read_what_they_hold(tmp_path):
    """Three, which no width divides by."""
    trained = AFNext(replace(base()[0].config, audio=AudioConfig(width=32, layers=1, heads=2, ffn=64)))
    trained.save_pretrained(tmp_path)
    lora.add(trained, 2, 4.0)
    change(trained)
    lora.save(trained, tmp_path / "adapter", saved=("adaptor",))
    run(3, filled, str(tmp_path))


def test_a_stage_without_a_reference_has_none_to_ask():
    found = StageModel(base()[0], torch.optim.SGD(base()[0].parameters()), ("adaptor",), False)
    with pytest.raises(ValueError, match="keeps no reference"), found.reference_context():
        pass


@pytest.mark.slow
def test_a_compiled_block_gives_the_losses_of_an_eager_one(tmp_path, monkeypatch):
    """With adapters, their dropout, a base in few bits and recomputation: captured whole and differentiated ahead of
    time, as for a GPU. One block stands for all, and the kernels that Inductor would write are left out.
    """
    prepare(tmp_path)
    blocks, plain, names = [], nn.Module.compile, iter(range(99))

    def second_alone(self, **kwargs):
        blocks.append(self)
        if len(blocks) == 2:  # its input has a gradient, which that of the first has not
            plain(self, **kwargs, fullgraph=True, backend="aot_eager")

    def losses(**changes):
        layout = replace(LAYOUT, recompute="full", **changes)
        found = go(tmp_path, tmp_path / str(next(names)), layout, trains=("language_model",), lora=LORA, steps=2)
        return torch.tensor([[row["loss"], row["grad_norm"]] for row in found])

    monkeypatch.setattr(nn.Module, "compile", second_alone)
    torch._dynamo.utils.counters.clear()
    found = losses(compile=True)
    assert len(blocks) == 3, "two of the language model and the encoder's"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert_same_but_rounding(found, in_orders(losses, 2))


def test_an_encoder_with_its_decoder_is_sharded_though_it_has_fewer_methods():
    speech = Stage("speech", ("encoder", "decoder"), {"a": 1.0}, "asr", batch_tokens=8192)
    with memory.ranks(2) as process:
        found = stage_model(AFWhisper(CONFIG), speech, RunLayout(dtype="bfloat16"), process, reference=False)
        assert all(isinstance(p, DTensor) for p in found.model.parameters() if p.requires_grad)
        embedding = found.model.decoder.embed_tokens.weight
        assert embedding.to_local().shape[0] == CONFIG.vocab_size / 2
