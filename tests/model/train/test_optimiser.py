"""AdamW's groups, the learning rate, and steps that must not be made."""

import copy
import importlib.machinery
import math
import sys
import types

import pytest
import torch
from torch import nn

from afn_distributed.shard import clip_grad_norm, shard
from afn_model.train import optimiser as optimiser_module
from afn_model.train.checkpoint import restore, training_state
from afn_model.train.optimiser import FiniteCheck, learning_rate, make_optimiser
from tests.distributed.ranks import run


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


def bytes_of(model, optimiser) -> dict[str, bytes]:
    whole = {n: t.to_local() if hasattr(t, "to_local") else t for n, t in training_state(model, optimiser).items()}
    return {name: tensor.numpy().tobytes() for name, tensor in whole.items()}


def test_matrices_decay_and_vectors_do_not():
    model = layers()
    model[0].bias.requires_grad_(False)
    optimiser = make_optimiser(model.named_parameters(), lr=0.5, weight_decay=0.1)
    ready = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        wanted = ready[name] * (0.95 if name.endswith("weight") else 1)
        torch.testing.assert_close(parameter.detach(), wanted)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == 3
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        make_optimiser(model.named_parameters(), lr=0.5)


def test_parts_have_their_own_rates():
    model = nn.ModuleDict({name: nn.Linear(3, 2) for name in ("encoder", "adaptor", "language_model", "lm_head")})
    rates = {"encoder": 0.02, "language_model": 0.4}
    for kind in ("adamw", "adamw8bit"):
        optimiser = make_optimiser(model.named_parameters(), 0.1, eps=1e-30, weight_decay=0.5, rates=rates, kind=kind)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for group in optimiser.param_groups:
            assert group["lr"] == 0.1 * group["factor"]
            group["lr"] = 0.01 * group["factor"]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        for name, parameter in model.named_parameters():
            rate = {"encoder": 0.002, "adaptor": 0.01}.get(name.partition(".")[0], 0.04)
            decay = 0.5 if name.endswith("weight") else 0
            torch.testing.assert_close(parameter.detach(), before[name] * (1 - rate * decay) - rate)


def test_blocks_have_rates_by_their_depth():
    blocks = {name: nn.ModuleList(nn.Linear(3, 2) for _ in range(n)) for name, n in (("encoder", 3), ("decoder", 2))}
    parts = {name: nn.ModuleDict({"layers": layers, "layer_norm": nn.LayerNorm(2)}) for name, layers in blocks.items()}
    parts["encoder"]["conv1"], parts["decoder"]["embed_tokens"] = nn.Conv1d(2, 2, 3), nn.Embedding(5, 2)
    model = nn.ModuleDict(parts | {"adaptor": nn.Linear(2, 2)})
    blocks["encoder"][2].requires_grad_(False)  # it counts as a block all the same
    for kind in ("adamw", "adamw8bit"):
        rates = {"encoder": 0.02}
        made = make_optimiser(model.named_parameters(), 0.1, rates=rates, layer_decay=0.5, kind=kind)
        factors = {id(p): group["factor"] for group in made.param_groups for p in group["params"]}
        found = {name: factors.get(id(p)) for name, p in model.named_parameters()}
        for name, wanted in {
            "encoder.conv1.weight": 0.2 * 0.5**4,
            "encoder.layers.0.bias": 0.2 * 0.5**3,
            "encoder.layers.1.weight": 0.2 * 0.5**2,
            "encoder.layers.2.weight": None,
            "encoder.layer_norm.weight": 0.2,
            "decoder.embed_tokens.weight": 0.5**3,
            "decoder.layers.0.weight": 0.5**2,
            "decoder.layers.1.weight": 0.5,
            "decoder.layer_norm.bias": 1.0,
            "adaptor.weight": 1.0,
        }.items():
            assert found[name] == (wanted and pytest.approx(wanted)), name
    one = make_optimiser(model.named_parameters(), 0.1, rates=rates, layer_decay=1.0)
    assert [group["lr"] for group in one.param_groups] == [0.02, 0.1]


class FusedAdam(torch.optim.Optimizer):
    """Stands in for apex's: the step in the group, moments in the state."""

    def __init__(self, params, lr, betas, eps, adam_w_mode):
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                m = state["exp_avg"].lerp_(p.grad, 0.1) / (1 - 0.9 ** group["step"])
                v = state["exp_avg_sq"].lerp_(p.grad**2, 0.05) / (1 - 0.95 ** group["step"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * m / (v.sqrt() + group["eps"]))


def test_apex_is_taken_where_it_is_there_and_resumes(monkeypatch):
    def made():
        model = layers()
        return model, make_optimiser(model.named_parameters(), lr=0.1, weight_decay=0.1)

    def train(model, optimiser, steps):
        for _ in range(steps):
            optimiser.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            optimiser.step()

    apex = types.ModuleType("apex.optimizers")
    apex.FusedAdam = FusedAdam
    for name in ("apex", "apex.optimizers"):
        monkeypatch.setitem(sys.modules, name, apex)
    apex.__spec__ = importlib.machinery.ModuleSpec("apex", None)
    assert isinstance(made()[1], torch.optim.AdamW), "on a CPU"
    monkeypatch.setattr(optimiser_module, "whole_on_gpu", lambda parameters: True)
    (model, optimiser), (other, again) = made(), made()
    assert type(optimiser) is FusedAdam
    train(model, optimiser, 3)
    saved = {name: tensor.clone() for name, tensor in training_state(model, optimiser).items()}
    restore(other, again, saved)
    train(model, optimiser, 2)
    train(other, again, 2)
    assert bytes_of(model, optimiser) == bytes_of(other, again)


def test_learning_rates():
    for schedule, half in (("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)):
        rates = [learning_rate(2.0, 0.1, schedule, number / 100) for number in range(101)]
        assert rates[0] == pytest.approx(0.02)
        assert rates[5] == pytest.approx(1.0)
        assert rates[10] == max(rates) == 2.0
        assert rates[55] == pytest.approx(2 * half)
        assert rates[100] == pytest.approx(2.0 if schedule == "constant" else 0.0)
    assert learning_rate(2.0, 0.0, "cosine", 0.0) == 2.0
    with pytest.raises(ValueError, match="no schedule 'cosinus'"):
        learning_rate(1.0, 0.0, "cosinus", 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run_before_it_is_made(bad, where):
    model = layers()
    optimiser, check = make_optimiser(model.named_parameters(), lr=0.1), FiniteCheck("mid-1")
    loss = model(torch.ones(1, 4)).sum()
    loss.backward()
    if where == "gradient":
        model[0].weight.grad[0, 0] = bad
    before = bytes_of(model, optimiser)
    norm = clip_grad_norm(model.parameters(), 1.0)
    observed = loss * bad if where == "loss" else loss
    with pytest.raises(ValueError, match=r"stage mid-1, step 7: loss .*(nan|inf)"):
        check.observe(optimiser, observed, norm, 7)
    assert bytes_of(model, optimiser) == before


def neutralised(model):
    """A GPU notices one step later: the step itself must then have changed nothing."""
    optimiser, check = make_optimiser(model.named_parameters(), lr=0.1, weight_decay=0.1), FiniteCheck("s")
    # A step that is made, as it would be without the check.
    twin = copy.deepcopy(model) if type(model) is nn.Sequential else None
    model(torch.ones(1, 4)).sum().backward()
    check.observe(optimiser, torch.tensor(1.0), clip_grad_norm(model.parameters(), 1.0), 0)
    optimiser.step()
    if twin is not None:
        plain = make_optimiser(twin.named_parameters(), lr=0.1, weight_decay=0.1)
        twin(torch.ones(1, 4)).sum().backward()
        clip_grad_norm(twin.parameters(), 1.0)
        plain.step()
        assert bytes_of(model, optimiser) == bytes_of(twin, plain)
    before = bytes_of(model, optimiser)
    optimiser.zero_grad()
    (model(torch.ones(1, 4)).sum() * math.nan).backward()
    norm = clip_grad_norm(model.parameters(), 1.0)
    with pytest.raises(ValueError, match=r"stage s, step 1: loss 1.0, gradient norm nan"):
        check.observe(optimiser, torch.tensor(1.0), norm, 1)
    optimiser.step()
    assert bytes_of(model, optimiser) == before


def test_weights_and_moments_survive_the_step_of_a_bad_gradient():
    neutralised(layers())


def neutralised_shards(here):
    model = layers()
    neutralised(shard(model, here, blocks=list(model), compute_dtype=torch.float32))


def test_so_do_those_of_two_ranks():
    run(2, neutralised_shards)
