"""Sharded weights on gloo: the gradients, norms and answers of one process."""

import copy
from functools import cache

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from afn_distributed import process
from afn_distributed.shard import clip_grad_norm, export_model, full_state_dict, gathered, set_all_reduce, shard
from afn_model import AFNext
from afn_model.train import lora
from afn_model.train.activation_checkpoint import checkpoint_blocks
from afn_model.train.stage_model import FORWARDS
from tests.budget import assert_same_but_rounding, assert_within_budget
from tests.distributed.ranks import run
from tests.orders import in_orders
from tests.tiny import noise, tiny

pytest.importorskip("espeakng_loader", reason="the tiny model's tokenizer needs its voices")
pytestmark = pytest.mark.slow
TOTAL = 20.0  # what every loss is divided by


@cache
def setting():
    """The tiny model's weights, its processor, and a global batch of four."""
    model, processor = tiny()
    batches = []
    for number in range(4):
        sound = {"type": "audio", "audio": noise(0.5 + 0.2 * number, seed=number)}
        question = {"role": "user", "content": [sound, {"type": "text", "text": "What?"}]}
        answers = [{"role": "assistant", "content": text} for text in ("one two", "dog", "three", "cat cat")]
        batches.append(processor([[question, answers[number]]], training=True))
    # A bin may have nothing to learn from; its rank takes part all the same.
    batches[3].labels[:] = -100
    return model, processor, batches


def fresh(frozen: tuple[str, ...]) -> AFNext:
    model = AFNext(setting()[0].config)
    model.load_state_dict(setting()[0].state_dict())
    for name, parameter in model.named_parameters():
        if name.startswith(frozen) or name.endswith("embed_positions.weight"):
            parameter.requires_grad_(False)
    return model


def one_step(model, batches, largest: float = 0.5):
    """Accumulates the batches' gradients and clips them; (loss, norm)."""
    losses = []
    for number, batch in enumerate(batches, 1):
        set_all_reduce(model, number == len(batches))
        losses.append(model.loss(batch, total=TOTAL))
        losses[-1].backward()
        assert not whole_gradients(model)
    norm = clip_grad_norm([p for p in model.parameters() if p.requires_grad], largest)
    return torch.stack(losses).sum().detach(), norm


def whole_gradients(model) -> list[str]:
    """Of sharded weights, those whose gradient a rank holds whole."""
    states = {module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)}
    parameters = [p for state in states if state._fsdp_param_group for p in state._fsdp_param_group.fsdp_params]
    held = [p for p in parameters if p.unsharded_accumulated_grad is not None or p.unsharded_param.grad is not None]
    return [p._param_fqn for p in held]


def gradients(model) -> dict[str, torch.Tensor]:
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}


def facts(model, loss, norm) -> dict[str, torch.Tensor]:
    return {"loss": loss, "norm": norm, **{name: gradient.clone() for name, gradient in gradients(model).items()}}


def same_as_alone(here, frozen: tuple[str, ...], shard_size: int | None, recompute: str, times: int, folder: str):
    alone, model = fresh(frozen), fresh(frozen)
    batches = setting()[2] * times
    checkpoint_blocks(model, recompute)
    shard(
        model,
        here,
        blocks=[*model.language_model.layers, list(model.encoder.layers)],
        compute_dtype=torch.float32,
        shard_size=shard_size,
        whole={p for p in model.parameters() if not p.requires_grad},
        forwards=FORWARDS,
    )
    assert all(isinstance(p, DTensor) == p.requires_grad for p in model.parameters())

    def wanted():
        alone.zero_grad()
        return facts(alone, *one_step(alone, batches))

    loss, norm = one_step(model, batches[here.rank :: here.world_size])
    found = facts(model, process.sum_over(loss), norm)
    # Twice and four times a number are exact: all ranks have the norm that rank 0 checks.
    assert torch.equal(process.sum_over(norm), norm * here.world_size)
    if here.rank == 0:
        assert_same_but_rounding(found, in_orders(wanted))
    answers = None
    for _ in range(2):
        with gathered(model):
            answers = model.generate(batches[here.rank], max_new_tokens=6)
    assert answers == alone.generate(batches[here.rank], max_new_tokens=6)
    # Generation leaves training as it was.
    model.zero_grad()
    again, _ = one_step(model, batches[here.rank :: here.world_size])
    assert torch.equal(again, loss)
    with torch.no_grad():
        assert torch.isfinite(model.loss(batches[0]))
    whole = full_state_dict(model)
    export_model(model, folder)
    if here.rank == 0:
        assert all(torch.equal(whole[name], tensor) for name, tensor in alone.state_dict().items())
        stored = AFNext.from_pretrained(folder).state_dict()
        assert all(torch.equal(stored[name], tensor) for name, tensor in alone.state_dict().items())
    else:
        assert whole == {}


@pytest.mark.parametrize(
    ("world", "frozen", "shard_size", "recompute", "times"),
    [(1, (), None, "none", 1), (2, ("encoder",), None, "full", 1), (4, (), 2, "selective", 2)],
    ids=["alone", "two ranks, frozen encoder", "two copies on two ranks each"],
)
def test_gradients_are_those_of_one_process(world, frozen, shard_size, recompute, times, tmp_path):
    run(world, same_as_alone, frozen, shard_size, recompute, times, str(tmp_path / "model"))


def low_precision(here):
    model = fresh(("encoder", "language_model"))
    blocks = [*model.language_model.layers, *model.encoder.layers]
    shard(model, here, blocks=blocks, compute_dtype=torch.bfloat16, forwards=FORWARDS)
    loss, _ = one_step(model, setting()[2][:1])
    batches = setting()[2][:1]
    same = in_orders(lambda: one_step(fresh(()).bfloat16(), batches)[0])
    # What comes of bfloat16's logits is known no better than these, whatever the dtype of the loss.
    assert_within_budget(loss.bfloat16(), same, one_step(fresh(()).double(), batches)[0])
    for name, parameter in model.named_parameters():
        trained = name.startswith(("adaptor", "lm_head"))
        assert parameter.requires_grad == trained, name
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16), name
        assert (parameter.grad is not None) == trained, name
        assert not trained or parameter.grad.dtype == torch.float32
        assert (here.world_size > 1 or trained) == hasattr(parameter, "full_tensor"), name
    with gathered(model):
        assert model.dtype == torch.bfloat16
        assert all(type(p) is torch.nn.Parameter for p in model.parameters())
        assert model.generate(setting()[2][0], max_new_tokens=2)


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_frozen_is_stored_in_low_precision(world):
    run(world, low_precision)


def with_adapters(here, folder: str):
    alone, model = fresh(("encoder", "adaptor")), fresh(("encoder", "adaptor"))
    for each in (alone, model):
        lora.add(each, 2, 4)
    checkpoint_blocks(model, "full")
    blocks = [*model.language_model.layers, *model.encoder.layers]
    shard(model, here, blocks=blocks, compute_dtype=torch.float32, forwards=FORWARDS)

    def train(each, batches):
        optimiser = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=10.0)
        one_step(each, batches)
        optimiser.step()

    train(model, setting()[2][here.rank :: here.world_size])
    lora.save(model, f"{folder}/adapter")
    export_model(model, f"{folder}/model")
    with lora.disabled(model), gathered(model):
        assert model.generate(setting()[2][0], 4) == fresh(()).generate(setting()[2][0], 4)
    if here.rank == 0:
        again, exported = fresh(()), AFNext.from_pretrained(f"{folder}/model")
        lora.load(again, f"{folder}/adapter")
        lora.merge(again)

        def wanted():
            each = copy.deepcopy(alone)
            train(each, setting()[2])
            lora.merge(each)
            return each.state_dict()

        assert_same_but_rounding(exported.state_dict(), in_orders(wanted))
        for name, tensor in exported.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
        first = "language_model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(exported.state_dict()[first], fresh(()).state_dict()[first])


def test_adapters_train_sharded_and_are_exported_merged(tmp_path):
    run(2, with_adapters, str(tmp_path))


def test_shards_need_a_group():
    with pytest.raises(ValueError, match="need a process group"):
        shard(torch.nn.Linear(1, 1), process.start("cpu"), blocks=[], compute_dtype=torch.float32)


def test_shards_that_do_not_divide_the_ranks():
    here = process.Process(0, 4, 0, torch.device("cpu"), True)
    with pytest.raises(ValueError, match="4 ranks cannot be cut into groups of 3"):
        shard(torch.nn.Linear(1, 1), here, blocks=[], compute_dtype=torch.float32, shard_size=3)


def test_a_method_that_the_model_lacks():
    here = process.Process(0, 1, 0, torch.device("cpu"), False)
    options = {"blocks": [], "compute_dtype": torch.float32, "forwards": ("forward", "lossy")}
    with pytest.raises(ValueError, match="Linear has no method lossy to gather weights for"):
        shard(torch.nn.Linear(1, 1), here, **options)
