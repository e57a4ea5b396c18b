"""Optimiser offload: the same weights and moments bit for bit, in steps, after a resumption, on shards and in a run."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from afn_distributed.shard import clip_grad_norm, shard
from afn_model.train import activation_offload, gradient_offload, optimiser_offload
from afn_model.train.checkpoint import restore, training_state
from afn_model.train.optimiser import FiniteCheck, make_optimiser
from afn_model.train.optimiser_offload import MASTER, OffloadedOptimiser
from afn_model.train.run_layout import RunLayout
from bench.resume import prepare
from tests.distributed.ranks import run
from tests.model.train import late
from tests.model.train.test_trainer import LAYOUT, go, same, weights

BF16 = torch.bfloat16


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 64), nn.GELU(), nn.Linear(64, 8), nn.Linear(8, 8))


def optimiser_of(model, kind, frozen=torch.float32) -> torch.optim.Optimizer:
    model[3].weight.requires_grad_(False)
    model[3].weight.data = model[3].weight.data.to(frozen)
    return make_optimiser(model.named_parameters(), lr=1e-2, weight_decay=0.1, kind=kind)


def backward(model, number, dtype=torch.float32) -> None:
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(number))
    model(x.to(dtype)).float().square().mean().backward()


def train(model, optimiser, first, last, dtype=torch.float32) -> list[float]:
    """Steps of two backwards each; the norms of the gradients."""
    norms = []
    for step in range(first, last):
        for number in (2 * step, 2 * step + 1):
            backward(model, number, dtype)
        if isinstance(optimiser, OffloadedOptimiser):
            norms.append(float(optimiser.clip(0.5)))
        else:
            trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            norms.append(float(clip_grad_norm(trained, 0.5)))
        optimiser.step()
        optimiser.zero_grad()
    return norms


class Rounded(nn.Module):
    """Computes with bfloat16 copies of float32 weights, whose gradients are summed in float32: by hand."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        inner = copy.deepcopy(self.model).to(BF16)
        for p, own in zip(inner.parameters(), self.model.parameters(), strict=True):
            if own.requires_grad:
                p.register_hook(
                    lambda g, own=own: setattr(own, "grad", g.float() + (0 if own.grad is None else own.grad))
                )
        return inner(x)


def state(model, optimiser) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in training_state(model, optimiser).items() if not name.startswith("rng.")}


@pytest.mark.parametrize("when", ["at once", "late"])
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("copies", ["", "copies", "copies and gradients"])
def test_steps_and_resumptions_are_the_same_to_the_last_bit(when, kind, copies, monkeypatch):
    monkeypatch.setattr(optimiser_offload, "BUCKET", 1500)
    if when == "late":
        late.lanes(monkeypatch, optimiser_offload, gradient_offload)

    def offloaded():
        model = layers()
        inner = optimiser_of(model, kind, BF16 if copies else torch.float32)
        return model, OffloadedOptimiser(inner, BF16 if copies else None, gradients="gradients" in copies)

    def whole():
        model = layers()
        optimiser = optimiser_of(model, kind)
        return model, optimiser, Rounded(model) if copies else model

    dtype = BF16 if copies else torch.float32
    plain, reference, computes = whole()
    wanted = train(computes, reference, 0, 2, dtype)
    half = state(plain, reference)
    wanted += train(computes, reference, 2, 4, dtype)
    model, optimiser = offloaded()
    assert len(optimiser.buckets) > 2
    found = train(model, optimiser, 0, 2, dtype)
    there = state(model, optimiser)
    found += train(model, optimiser, 2, 4, dtype)
    assert found == wanted
    end = state(plain, reference)
    assert same(there, half)
    assert same(state(model, optimiser), end)
    if copies:
        for p in (p for p in model.parameters() if p.requires_grad):
            assert torch.equal(p, getattr(p, MASTER).to(BF16))
            assert p.grad is None
    # What one has saved, the other goes on from.
    model, optimiser = offloaded()
    restore(model, optimiser, training_state(model, optimiser) | half)
    assert train(model, optimiser, 2, 4, dtype) == wanted[2:]
    assert same(state(model, optimiser), end)
    plain, reference, computes = whole()
    restore(plain, reference, training_state(plain, reference) | there)
    assert train(computes, reference, 2, 4, dtype) == wanted[2:]
    assert same(state(plain, reference), end)
    if when == "late" and "gradients" in copies:
        late.finish()


def test_a_step_that_is_not_finite_changes_nothing():
    model = layers()
    optimiser = OffloadedOptimiser(optimiser_of(model, "adamw", BF16), BF16, gradients=True)
    train(model, optimiser, 0, 1, BF16)
    before = state(model, optimiser)
    backward(model, 1, BF16)
    model[0].bias.grad = torch.full_like(model[0].bias, torch.nan)
    optimiser.collect(model[0].bias)
    with pytest.raises(ValueError, match="gradient norm nan; nothing was changed"):
        FiniteCheck("s").observe(optimiser, torch.tensor(1.0), optimiser.clip(1.0), 3)
    optimiser.step()
    assert same(state(model, optimiser), before)


def test_the_memory_of_states_is_the_hosts():
    """Nothing but the rounded weights is the device's: 2 bytes of a parameter that trains."""
    model = layers()
    trained = [p for n, p in model.named_parameters() if n != "3.weight"]
    optimiser = OffloadedOptimiser(optimiser_of(model, "adamw", BF16), BF16)
    assert all(p.dtype == BF16 for p in trained)
    host = {bucket.memory.untyped_storage().data_ptr() for bucket in optimiser.buckets}
    held = [t for p in trained for t in (*optimiser.state[p].values(), getattr(p, MASTER))]
    assert {t.untyped_storage().data_ptr() for t in held} == host
    assert sum(t.numel() for t in held) == sum(3 * p.numel() + 1 for p in trained)
    backward(model, 0, BF16)
    gone = weakref.ref(optimiser.buckets[0])
    del model, optimiser, trained, held
    gc.collect()
    assert gone() is None, "a stage's host memory is free for the next"


def of_shards(here):
    """Two ranks, of which neither has a whole weight, and one nothing of the last."""
    for kind in ("adamw", "adamw8bit"):
        found = []
        for offload in (False, True):
            model = layers()
            model[3].requires_grad_(False)
            whole = nn.Sequential(*model, nn.Linear(8, 1))
            blocks = [block for block in whole if list(block.parameters())]
            net = shard(whole, here, blocks=blocks, compute_dtype=BF16)
            optimiser = make_optimiser(net.named_parameters(), lr=1e-2, weight_decay=0.1, kind=kind)
            if offload:
                optimiser_offload.BUCKET = 1500
                optimiser = OffloadedOptimiser(optimiser)
                assert len(optimiser.buckets) > 2
            norms = train(net, optimiser, 0, 2, BF16)
            tensors = training_state(net, optimiser)
            if offload:  # what the other has saved is loaded in its place
                norms += train(net, optimiser, 2, 3, BF16)
                restore(net, optimiser, tensors | found[0][1])
            found.append((norms[:2], {n: t.clone() for n, t in tensors.items()}, train(net, optimiser, 2, 3, BF16)))
        (norms, saved, after), (again, loaded, later) = found
        assert norms == again
        assert after == later
        assert saved.keys() == loaded.keys()
        for name, tensor in saved.items():
            other = loaded[name]
            assert type(other) is type(tensor), name
            if isinstance(tensor, torch.distributed.tensor.DTensor):
                assert (other.shape, other.placements) == (tensor.shape, tensor.placements)
                tensor, other = tensor.to_local(), other.to_local()
            assert name.startswith("rng.") or torch.equal(other, tensor), name


@pytest.mark.slow
def test_shards_of_two_ranks():
    run(2, of_shards)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
def test_a_run_in_bfloat16_is_the_same_with_everything_offloaded(tmp_path, monkeypatch):
    """Against FSDP2, which has the float32 weights else; each goes on from the other's checkpoint."""
    prepare(tmp_path)
    monkeypatch.setattr(activation_offload, "LEAST", 1)
    monkeypatch.setattr(optimiser_offload, "BUCKET", 20_000)
    plain = replace(LAYOUT, dtype="bfloat16", checkpoint_every=2)
    all_of_it = {"offload_optimiser": True, "offload_gradients": True, "offload_activations": True}
    offload = replace(plain, recompute="full", **all_of_it)
    wanted = go(tmp_path, tmp_path / "plain", layout=plain, steps=4)

    def stop(row):
        if row["step"] == 2:
            raise RuntimeError("stop")

    for number, (first, second) in enumerate(((plain, offload), (offload, plain))):
        out = tmp_path / str(number)
        with pytest.raises(RuntimeError, match="stop"):
            go(tmp_path, out, layout=first, on_row=stop, steps=4)
        assert go(tmp_path, out, layout=second, steps=4) == wanted
        assert same(weights(out), weights(tmp_path / "plain"))


def test_fields_that_do_not_go_together():
    with pytest.raises(ValueError, match="offload_gradients is for layouts with offload_optimiser: true"):
        RunLayout(offload_gradients=True)
    with pytest.raises(ValueError, match="layout: offload_optimiser is 'yes'; true or false is expected"):
        RunLayout(offload_optimiser="yes")
    with pytest.raises(ValueError, match="offload_activations and compile exclude each other"):
        RunLayout(offload_activations=True, compile=True)
