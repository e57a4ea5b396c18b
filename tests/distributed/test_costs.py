"""Costs of a rank: by hand for small cases, and against the plan, whose bytes real calls send."""

from dataclasses import replace

import numpy as np
import pytest
from afn_distributed.costs import ASSUMED, MODEL, Load, Packed, ParallelConfig
from afn_distributed.plan import make_plan
from afn_distributed.simulate import attention_bytes, packed

NO_AUDIO = Packed(np.array([0]), np.array([8]))
ROUND = replace(ASSUMED, message=1.0, nvlink_hop=0.5, ib_hop=2.0, nvlink=8.0, ib=2.0, across=4.0, kernel=0.0)


def test_the_parameters_of_the_model_add_up():
    assert MODEL.layer == 3584 * (28 + 2 * 4) * 128 + 3584 * 3584 + 3 * 3584 * 18944 == 233_046_016
    assert MODEL.embedding == 3584 * 151_672 == 543_592_448
    # Besides matrices: biases of q, k and v, two norms a layer and the last one.
    rest = 28 * (28 + 2 * 4) * 128 + (2 * 28 + 1) * 3584
    assert MODEL.parameters == 28 * MODEL.layer + 2 * MODEL.embedding + MODEL.encoder + MODEL.adaptor + rest


def test_a_packed_batch():
    """Clips of 32 s and 30 s and one of text: 1,500 frames are a window, 750 tokens."""
    batch = Packed(np.array([800, 750, 0]), np.array([100, 50, 300]))
    assert (batch.total, batch.lengths.tolist()) == (2000, [900, 800, 300])
    assert batch.cu_seqlens.tolist() == [0, 900, 1700, 2000]
    assert sorted(batch.windows.tolist()) == [100, 1500, 1500]
    assert batch.counted == 0.5 * 450 / 2000


@pytest.mark.parametrize(
    ("shard", "seconds"),
    [
        (1, 0.0),
        # A message, seven hops by NVLink, 7/8 of 64 bytes at 8 bytes a second.
        (8, 1 + 7 * 0.5 + 7),
        # A message, one hop between two nodes, 14 in them, 15/16 of 64 bytes at 4 bytes a second.
        (16, 1 + 2 + 14 * 0.5 + 15),
    ],
)
def test_gathering_weights(shard, seconds):
    assert Load(ParallelConfig(16, shard=shard), NO_AUDIO, ROUND).gather(64) == seconds


def test_summing_gradients():
    """Scattered over a node of 8 in 11.5 s; then two copies exchange half of an eighth twice, at 2 bytes a second."""
    config = ParallelConfig(16, shard=8)
    assert Load(config, NO_AUDIO, ROUND).reduce(64) == 11.5 + (1 + 2 * 2 * 1) + 2 * 0.5 * 64 / 8 / 2
    assert Load(replace(config, gpus=8), NO_AUDIO, ROUND).reduce(64) == 11.5


def test_a_ring_of_two_by_hand():
    """Eight tokens in four pieces: rank 0 has 0, 1, 6, 7 and rank 1 has 2 to 5."""
    load = Load(ParallelConfig(2, ring=2, shard=1), NO_AUDIO, replace(ROUND, hbm=np.inf, attention=512 * 28.0))
    assert load.rows.tolist() == [4, 4]
    assert load.ring.pairs.tolist() == [[10, 2 * 4], [4 * 2, 10]]
    assert load.ring.keys.tolist() == [[4, 4], [2, 4]]
    # A key and its value: 4 heads of 128, 2 bytes each. Rank 1 reads 2 of rank 0, rank 0 reads 4 of rank 1.
    assert load.key_bytes(1).tolist() == [2 * 2048, 4 * 2048]
    assert load.gradient_bytes()[0].tolist() == [[0, 4 * 4096], [2 * 4096, 0]]
    assert load.turn(1).tolist() == [1 + 0.5 + rows * 2048 / 8 for rows in (2, 4)]
    assert load.turn(1, back=True).tolist() == [1 + 0.5 + rows * 4096 / 8 for rows in (4, 2)]
    # 4 · 128 FLOPs a pair and head, 28 heads.
    assert load.attend(0).tolist() == [10, 10]
    assert load.attend(1).tolist() == [8, 8]
    assert load.imbalance == (1, 1)


def test_ulysses_of_two_by_hand():
    """Eight rows, four a rank: to the peer go 14 query heads and 2 times 2 KV heads of 128, back 14 heads."""
    load = Load(ParallelConfig(2, ulysses=2, shard=1), NO_AUDIO, ROUND)
    out, home = 4 * (14 + 2 * 2) * 128 * 2, 4 * 14 * 128 * 2
    assert load.head_bytes(True).tolist() == [[[0, out], [out, 0]]]
    assert load.head_bytes(False).tolist() == [[[0, home], [home, 0]]]
    assert load.heads(True).tolist() == [1 + 0.5 + out / 8] * 2
    # Both all-to-alls in the forward and in the backward of 28 layers.
    assert load.sent == 28 * 2 * (out + home)


def test_kernels_take_the_slower_of_arithmetic_and_memory():
    a = replace(ROUND, matmul=10.0, hbm=5.0, kernel=0.25)
    load = Load(ParallelConfig(1, shard=1), NO_AUDIO, a)
    assert load.kernels(np.array([2.0]), [(20, 0)]).tolist() == [4]
    assert load.kernels(np.array([2.0]), [(20, 15), (0, 5)], times=2).tolist() == [2 * 2 * 3 + 2 * 2]
    assert load.kernels(np.array([0.0]), [(20, 0), (1, 1)]).tolist() == [0.5]


def test_flops_of_text_alone():
    found = Load(ParallelConfig(1, shard=1), NO_AUDIO, ASSUMED).flops
    linear = 2 * (28 * 233_046_016 + 0.5 * 543_592_448) * 8
    assert found == 3 * (linear + 2 * 28 * 28 * 128 * 8**2)


def test_windows_go_to_the_rank_with_fewest_frames():
    """3,000 frames and 2 · 30 in three clips over two ranks: a whole window each, then the short ones."""
    batch = Packed(np.array([1500, 15, 15]), np.array([1, 1, 1]))
    load = Load(ParallelConfig(2, ulysses=2, shard=1), batch, ASSUMED)
    assert load.frames.tolist() == [1530, 1530]
    assert load.squares.tolist() == [1500**2 + 30**2] * 2


@pytest.mark.parametrize(("ulysses", "ring"), [(1, 8), (8, 2), (7, 4), (4, 4)])
def test_messages_are_those_of_the_plan(ulysses, ring):
    batch = packed(24_576)
    load = Load(ParallelConfig(ulysses * ring, ulysses, ring, 1), batch, ASSUMED)
    plan = make_plan(batch.cu_seqlens, ulysses=ulysses, ring=ring)
    keys = sum(load.key_bytes(t) for t in range(1, ring)) + np.zeros(plan.ranks)
    back = load.gradient_bytes().sum(2).T.reshape(-1)
    out, home = (load.head_bytes(every).sum(2).reshape(-1) for every in (True, False))
    returned = [load.head_bytes(every).sum(1).reshape(-1) for every in (True, False)]
    for rank in range(plan.ranks):
        promised = attention_bytes(plan, rank, 2)
        assert promised["ring"] == {"forward": keys[rank], "backward": keys[rank] + back[rank]}
        assert promised["ulysses"]["forward"] == out[rank] + home[rank]
        # What came in the forward goes out in the backward.
        assert promised["ulysses"]["backward"] == returned[0][rank] + returned[1][rank]
    assert load.imbalance == pytest.approx(plan.imbalance())
    assert load.rows.tolist() == [plan.part_rows(rank) for rank in range(plan.ranks)]


def test_memory():
    batches = [packed(tokens) for tokens in (8192, 24_576, 131_072)]
    for mode in ("none", "selective", "full"):
        found = [Load(ParallelConfig(64, 4, 2, 8, mode), batch, ASSUMED).memory() for batch in batches]
        assert found[0]["total"] < found[1]["total"] < found[2]["total"]
        assert found[0]["activations"] < found[1]["activations"] < found[2]["activations"]
    none, selective, full = (
        Load(ParallelConfig(64, 4, 2, 8, mode), batches[2], ASSUMED).memory()["activations"]
        for mode in ("none", "selective", "full")
    )
    assert none > selective > full
    one, all_ = (Load(ParallelConfig(64, 4, 2, shard), batches[0], ASSUMED).memory() for shard in (8, 64))
    assert one["optimiser"] == 8 * all_["optimiser"] == 8_267_215_360
    assert Load(ParallelConfig(64), batches[0], ASSUMED).memory()["keys in flight"] == 0
