"""AdamW with moments in 8 bits: as near to AdamW as its codes are, the same after a reload, on shards too."""

import pytest
import torch
from torch import nn

from afn_distributed.shard import shard
from afn_model.train import adamw8bit
from afn_model.train.adamw8bit import FIRST, SECOND, AdamW8bit, decode, dither, encode
from tests.budget import assert_within
from tests.distributed.ranks import run

EPS = torch.finfo(torch.float32).eps


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 64), nn.GELU(), nn.Linear(64, 8))


def steps(model, optimiser, first: int, last: int) -> list[float]:
    """Regression on another network's outputs."""
    torch.manual_seed(1)
    teacher, losses = layers(), []
    for step in range(first, last):
        x = torch.randn(32, 300, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - 3 * teacher(x).detach()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("signed", [True, False])
def test_a_code_is_within_a_level_and_unbiased(signed):
    torch.manual_seed(0)
    levels, most = FIRST if signed else SECOND
    x = torch.randn(40, 300) * 10 ** torch.empty(40, 300).uniform_(-6, 0)
    x = x if signed else x.square()
    x[3], x[4, :5] = 0, 0
    code, scale = torch.zeros(40, 300, dtype=torch.int8 if signed else torch.uint8), torch.zeros(40, 2)
    means = torch.zeros(40, 300)
    for step in range(64):
        encode(x, code, scale, levels, most, dither(40, 300, 0, step, x.device))
        found = decode(code, scale, levels, most)
        top = torch.cat((scale[:, :1].expand(-1, 256), scale[:, 1:].expand(-1, 44)), 1)
        least = top * 2 ** ((1 - most) / levels)
        # Between the two levels around x; what is below the lowest becomes it, or, where there is a sign, zero.
        assert_within(found, x, x.abs() * (2 ** (1 / levels) - 1) + (1 + 40 * EPS) * least)
        means += torch.where(x.abs() > 2 * least, (found / x).abs().log2() * levels, 0) / 64
    assert torch.equal(found[x == 0], x[x == 0])
    assert signed or (found[x > 0] > 0).all(), "a small second moment is never taken for none"
    # 64 points of a Weyl sequence with discrepancy below 2 (log 64 + 1) / 64: the mean is that near, in levels.
    assert float(means.abs().max()) < 0.17


def test_the_trajectory_stays_near_adamws():
    """The losses fall alike, and the weights part by less than AdamW's own do between two orders of the batches."""
    settings, found = {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}, {}
    for name, kind in (("exact", torch.optim.AdamW), ("coded", AdamW8bit)):
        model = layers()
        losses = steps(model, kind(model.parameters(), **settings), 0, 60)
        found[name] = losses, torch.cat([p.detach().flatten() for p in model.parameters()])
    exact, coded = found["exact"], found["coded"]
    assert exact[0][-1] < 0.3 * exact[0][0]
    moved = (exact[1] - torch.cat([p.detach().flatten() for p in layers().parameters()])).norm()
    # A step is off by 9.1 % of a first moment (a level) and 3.5 % by the root of a second, were all errors of one sign.
    assert (coded[1] - exact[1]).norm() < 0.126 * moved
    assert sum(coded[0][-10:]) < sum(exact[0][-10:]) * 1.126**2


def test_small_tensors_are_adamws_to_rounding_and_moments_are_bytes():
    exact, coded = layers(), layers()
    optimiser = AdamW8bit(coded.parameters(), lr=1e-2, weight_decay=0.1)
    steps(exact, torch.optim.AdamW(exact.parameters(), lr=1e-2, weight_decay=0.1), 0, 1)
    steps(coded, optimiser, 0, 1)
    for a, b in zip(exact.parameters(), coded.parameters(), strict=True):
        state = optimiser.state[b]
        big = a.dim() > 1 and a.numel() >= adamw8bit.SMALL
        assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (
            (torch.int8, torch.uint8) if big else (torch.float32, torch.float32)
        )
        # The first step is lr · sign(g) whatever the moments' codes are.
        assert_within(b, a, 1e-2 * 8 * EPS + 4 * EPS * a.detach().abs())
    held = sum(t.numel() * t.element_size() for t in optimiser.state[coded[0].weight].values())
    assert held == 2 * 64 * 300 + 2 * 4 * 64 * 2 + 4


def test_a_reload_goes_on_to_the_last_bit():
    whole, other = layers(), layers()
    optimiser = AdamW8bit(whole.parameters(), lr=1e-2)
    steps(whole, optimiser, 0, 3)
    again = AdamW8bit(other.parameters(), lr=1e-2)
    other.load_state_dict(whole.state_dict())
    for a, b in zip(whole.parameters(), other.parameters(), strict=True):
        again.state[b].update({name: tensor.clone() for name, tensor in optimiser.state[a].items()})
    assert steps(whole, optimiser, 3, 6) == steps(other, again, 3, 6)


def of_shards(here):
    """Each rank has the rows of its weights, and the states of these rows; five rows of two do not divide."""
    torch.manual_seed(0)
    adamw8bit.SMALL, first = 1, nn.Sequential(nn.Linear(300, 5), nn.Linear(5, 1))
    whole = nn.Sequential(nn.Linear(300, 5), nn.Linear(5, 1))
    whole.load_state_dict(first.state_dict())
    sharded = shard(first, here, blocks=list(first), compute_dtype=torch.float32)
    optimisers = [AdamW8bit(model.parameters(), lr=1e-2) for model in (whole, sharded)]
    x = torch.randn(4, 300)
    for model, optimiser, divide in zip((whole, sharded), optimisers, (1, 2), strict=True):
        (model(x).square().sum() / divide).backward()
        optimiser.step()
    for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
        one, other = (o.state[p] for o, p in zip(optimisers, (a, b), strict=True))
        assert one.keys() == other.keys()
        for name in set(one) - {"step"}:
            assert (other[name].shape, other[name].dtype) == (one[name].shape, one[name].dtype)
            assert other[name].placements == b.placements
        # The first step does not depend on the codes.
        assert_within(b.full_tensor(), a, 1e-2 * 16 * EPS + 8 * EPS * a.detach().abs())
        if "exp_avg_scale" in one:
            scale = one["exp_avg_scale"]
            assert_within(other["exp_avg_scale"].full_tensor(), scale, 16 * EPS * scale.max())


@pytest.mark.slow
def test_shards_have_the_states_of_their_rows():
    run(2, of_shards)
