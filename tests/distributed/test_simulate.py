"""The simulated training step: bytes that real calls send, and what must hold of any step."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from afn_distributed.comm import in_threads
from afn_distributed.costs import ASSUMED, Packed, ParallelConfig
from afn_distributed.hybrid import SequenceParallel, sp_attention
from afn_distributed.plan import make_plan
from afn_distributed.simulate import attention_bytes, choose, configs, evaluate, main, mix, packed, simulate

from bench import packing

LINKS = ("nvlink", "ib", "across")
MIXES = ([64], [5, 0, 40, 9, 1, 30], [3] * 11)


@pytest.fixture(scope="module")
def batch() -> Packed:
    return packed(24_576)


def counted(lengths, ulysses, ring, dtype, transport) -> tuple[list, list]:
    """What ranks sent in a forward and in its backward, and what the plan says, per rank and transport."""
    heads, kv_heads, dim = 28, 4, 4
    cu = np.concatenate(([0], np.cumsum(lengths)))
    plan = make_plan(cu, ulysses=ulysses, ring=ring, heads=heads, kv_heads=kv_heads, head_dim=dim)
    ranks = SequenceParallel.virtual(ulysses, ring)

    def work(rank: int):
        rows = plan.part_rows(rank)
        q = torch.randn(rows, heads, dim, dtype=dtype, requires_grad=True)
        k, v = (torch.randn(rows, kv_heads, dim, dtype=dtype, requires_grad=True) for _ in range(2))
        groups = {"ulysses": ranks[rank].ulysses, "ring": ranks[rank].ring}
        out = sp_attention(q, k, v, plan, ranks[rank], transport=transport, impl="reference")
        forward = {name: comm.sent for name, comm in groups.items()}
        out.sum().backward()
        return {name: {"forward": forward[name], "backward": groups[name].sent - forward[name]} for name in groups}

    size = torch.empty((), dtype=dtype).element_size()
    return in_threads(work, ulysses * ring), [attention_bytes(plan, rank, size) for rank in range(plan.ranks)]


@pytest.mark.parametrize(("ulysses", "ring"), [(1, 1), (2, 1), (1, 3), (4, 2), (7, 1), (8, 2), (2, 4)])
@pytest.mark.parametrize("lengths", MIXES, ids=("one", "mixed", "short"))
def test_bytes_are_those_that_a_real_call_sends(ulysses, ring, lengths):
    sent, promised = counted(lengths, ulysses, ring, torch.float32, "ring")
    assert sent == promised
    assert (sum(x["ulysses"]["forward"] for x in sent) > 0) == (ulysses > 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_bytes_in_other_precisions_and_gathered(dtype):
    sent, promised = counted([30, 9, 1, 61], 2, 2, dtype, "gather")
    assert sent == promised
    assert sum(x["ring"]["backward"] for x in sent) > 0


def test_the_clips_are_those_of_the_packing_benchmark():
    audio, text = mix(3000, 8192, seed=4)
    assert np.array_equal(audio + text, packing.mix(3000, 8192, seed=4))
    found = packed(8192)
    assert 0.98 * 8192 < found.total <= 8192
    assert found.windows.sum() == 2 * found.audio.sum()


def test_one_gpu_sends_nothing(batch):
    shares = simulate(ParallelConfig(1, 1, 1, 1, "none"), batch)[0].shares()
    assert shares["communication_s"] == shares["exposed_s"] == 0
    assert shares["step_s"] == pytest.approx(shares["compute_s"])


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize(("ulysses", "ring"), [(1, 1), (8, 1), (4, 4), (1, 8)])
def test_exposed_and_hidden_are_all_there_is(batch, ulysses, ring, mode):
    for shard in (8, 32):
        found = simulate(ParallelConfig(32, ulysses, ring, shard, mode), batch, layers=4)[0].shares()
        assert found["exposed_s"] + found["hidden_s"] == pytest.approx(found["communication_s"])
        assert min(found["exposed_s"], found["hidden_s"]) > 0
        assert found["compute_s"] + found["exposed_s"] + found["waiting_s"] == pytest.approx(found["step_s"])
        assert found["waiting_s"] >= -1e-9


@pytest.mark.parametrize(
    "config", [ParallelConfig(64, 8, 2, 8), ParallelConfig(64, 2, 8, 64, "full"), ParallelConfig(64, 1, 1, 8, "none")]
)
def test_slower_links_never_make_a_step_faster(batch, config):
    times, names = [], [*LINKS, "all"]
    whole = simulate(config, batch, layers=6)[0].shares()["step_s"]
    for name in names:
        slower = {link: getattr(ASSUMED, link) / 2 for link in LINKS if name in (link, "all")}
        times.append(simulate(config, batch, replace(ASSUMED, **slower), layers=6)[0].shares()["step_s"])
    assert min(times) >= whole * (1 - 1e-9)
    assert times[-1] > whole


def test_with_perfect_links_more_groups_cost_nothing(batch):
    perfect = {name: 1e21 for name in LINKS} | {name: 0.0 for name in ("message", "nvlink_hop", "ib_hop")}
    for layout in ((1, 1), (4, 2)):
        steps = [
            simulate(ParallelConfig(gpus, *layout, 8), batch, replace(ASSUMED, **perfect), layers=4)[0].shares()
            for gpus in (16, 32, 1024)
        ]
        assert steps[1]["step_s"] == pytest.approx(steps[0]["step_s"], rel=0.03)
        assert steps[2]["step_s"] == pytest.approx(steps[0]["step_s"], rel=0.03)
        assert steps[0]["exposed_s"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "config", [ParallelConfig(128, 4, 4, 8, "full"), ParallelConfig(56, 14, 2, 56), ParallelConfig(8, 1, 8, 8, "none")]
)
def test_nothing_happens_before_what_it_needs(batch, config):
    line, load = simulate(config, batch, layers=5)
    for event in line.events:
        assert (event.end >= event.start).all(), event.name
        for before in event.after:
            assert (event.start >= before.end - 1e-12).all(), (before.name, event.name)
    for name, busy in line.busy.items():
        starts, ends = (np.array(x) for x in zip(*busy, strict=True))
        for rank in range(load.ranks):
            some = ends[:, rank] > starts[:, rank]
            assert (starts[some, rank][1:] >= ends[some, rank][:-1] - 1e-12).all(), name
    names = {event.name for event in line.events}
    assert {"gather root", "reduce root", "loss", "optimiser", "embeddings", "backward 4 own"} <= names


def test_a_collective_waits_for_the_last_of_its_group(batch):
    line, _ = simulate(ParallelConfig(16, 4, 4, 8), batch, layers=2)
    heads = [event for event in line.events if event.name == "forward 1 heads"]
    assert len(heads) == 1
    start = heads[0].start.reshape(4, 4)
    ready = np.maximum.reduce([event.end for event in heads[0].after]).reshape(4, 4)
    assert (start == start[:, :1]).all()
    assert (start >= ready.max(1, keepdims=True)).all()


@pytest.mark.parametrize(
    "config",
    [ParallelConfig(128, 1, 1, 128, "none"), ParallelConfig(128, 8, 2, 8), ParallelConfig(128, 1, 8, 128, "full")],
)
def test_four_layers_stand_for_all(batch, config):
    few, more, whole = (simulate(config, batch, layers=n)[0].shares() for n in (3, 4, 28))
    for name, rel in (("step_s", 2e-3), ("compute_s", 1e-6), ("exposed_s", 2e-2), ("communication_s", 1e-2)):
        assert more[name] + 24 * (more[name] - few[name]) == pytest.approx(whole[name], rel=rel), name


def test_every_size_of_group_can_be_simulated(batch):
    for config in [ParallelConfig(56, 7, 1, 8), ParallelConfig(28, 28, 1, 4), ParallelConfig(56, 14, 4, 56)]:
        row = evaluate(config, batch)
        assert row["fits"]
        assert 0 < row["tokens_s_gpu"] < ASSUMED.peak / 2 / 6.5e9
        assert 0 < row["mfu"] < 1
    ways = {(config.ulysses, config.ring) for config in configs(56, 65_536)}
    assert {(7, 8), (28, 2), (14, 4), (1, 1), (8, 1)} <= ways
    assert all(56 % (u * r) == 0 for u, r in ways)


def test_the_choice():
    rows = [
        {"fits": True, "step_tokens": 8, "tokens_s_gpu": 30},
        {"fits": True, "step_tokens": 4, "tokens_s_gpu": 20},
        {"fits": False, "step_tokens": 2},
    ]
    assert choose(rows) is rows[0]
    assert choose(rows, 4) is rows[1]
    assert choose(rows, 1) is rows[1], "the smallest, where none is small enough"
    assert choose(rows[2:]) is None
    assert all(item.metadata["source"] and item.metadata["unit"] for item in fields(ASSUMED))


def test_the_command(capsys):
    main(["--gpus", "8", "--tokens", "8192"])
    text = capsys.readouterr().out
    assert "8 GPUs, 8,192 tokens a group" in text
    assert "Run **ulysses" in text
