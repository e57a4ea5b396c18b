"""Attention and the model over several ranks against one: threads for every factorisation, processes for some."""

import copy
import itertools
import os
import signal
import time

import numpy as np
import pytest
import torch
from afn_distributed.comm import in_threads, virtual_group
from afn_distributed.hybrid import SequenceParallel, agree, sp_attention
from afn_distributed.plan import SCHEMES, make_plan
from afn_distributed.roll_call import RankEnded, roll_call
from afn_distributed.route import Routes, deal, route
from afn_distributed.simulate import attention_bytes

import afn_kernels as ak
from afn_model.train.recompute import checkpoint_blocks
from bench.sequence_parallel import boundaries, one_process, one_rank, over_threads
from tests.budget import assert_same_but_rounding, assert_within_budget, fresh
from tests.distributed.ranks import run
from tests.model.tiny_model import noise, tiny
from tests.orders import in_orders

SPLITS = [(u, r) for u, r in itertools.product((1, 2, 3, 4, 5, 7, 8), (1, 2, 3, 4, 8)) if 1 < u * r <= 8]


def inputs(total: int, heads: int, kv_heads: int, dtype=torch.float64, dim: int = 8):
    generator = fresh()
    sizes = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(total, h, dim, generator=generator, dtype=torch.float64).to(dtype) for h in sizes]


def check(found, cu, parts, tokens=slice(None)):
    """out, dq, dk, dv of some tokens are those of one process."""
    expected = in_orders(lambda: one_process(cu, *parts), 4)
    assert_same_but_rounding(found, [[x[tokens] for x in one] for one in expected])


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_factorisation(split):
    random = np.random.default_rng(sum(split))
    for scheme, transport in zip(SCHEMES, ("ring", "gather") * 2, strict=True):
        lengths = random.integers(0, 30, 6) * random.integers(0, 2, 6)
        cu = boundaries([1, *lengths.tolist()])
        parts = inputs(int(cu[-1]), 28, 4)
        check(over_threads(cu, parts, *split, scheme, transport), cu, parts)


@pytest.mark.parametrize("ulysses", [6, 14, 28])
def test_as_many_ranks_as_heads(ulysses):
    cu = boundaries([33, 5, 0, 1, 40])
    parts = inputs(79, 28, 4)
    check(over_threads(cu, parts, ulysses, 2), cu, parts)


@pytest.mark.parametrize("lengths", [[1], [200], [3, 0, 0, 2], [1] * 5])
def test_few_tokens_many_ranks(lengths):
    cu = boundaries(lengths)
    parts = inputs(sum(lengths), 4, 2)
    for scheme in SCHEMES:
        check(over_threads(cu, parts, 2, 4, scheme), cu, parts)


def fused(cu, q, k, v, dout):
    """PyTorch's fused attention in one process; like a ring's steps it goes back from the rounded output."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = ak.attention(*leaves, cu_seqlens_q=cu, causal=True, impl="sdpa")
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def test_half_precision_does_not_worsen_with_ranks():
    """bfloat16: the budget of one process holds over 16 ring ranks; partial results travel in float32."""
    cu = boundaries([300, 41, 171])
    exact = inputs(512, 4, 2, dim=16)
    rounded = [x.bfloat16() for x in exact]
    oracle = one_process(cu, *(x.double() for x in rounded))
    same = in_orders(lambda: one_process(cu, *rounded)) + in_orders(lambda: fused(cu, *rounded))
    for ring in (1, 2, 4, 8, 16):
        found = over_threads(cu, rounded, 1, ring, "documents")
        for name, value, exact, *others in zip(("out", "dq", "dk", "dv"), found, oracle, *same, strict=True):
            assert_within_budget(value, others, exact, name=f"{ring} ranks: {name}")


def attention_on(process, ulysses, ring, lengths, seed):
    """On a rank of a gloo group: against one process, and every rank's bytes as many as they must be."""
    ranks = SequenceParallel.of(process, ulysses, ring)
    assert ranks.rank == process.rank
    cu = boundaries(lengths)
    torch.manual_seed(seed)
    parts = inputs(sum(lengths), 28, 4)
    plan = make_plan(cu, ulysses=ulysses, ring=ring, head_dim=8)
    tokens = plan.tokens(ranks.rank)
    for transport in ("ring", "gather"):
        found = one_rank(ranks, plan, *parts, transport)
        check(found, cu, parts, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("split", [(2, 1), (1, 2), (2, 2), (7, 1), (4, 2)], ids=str)
def test_processes(split):
    run(split[0] * split[1], attention_on, *split, [60, 3, 0, 41, 1], torch.initial_seed())


def talk(seconds, number, said):
    audio = [{"type": "audio", "audio": noise(seconds, number)}] if seconds else []
    asked = {"role": "user", "content": [*audio, {"type": "text", "text": "What?"}]}
    return [asked, {"role": "assistant", "content": said}]


def a_batch():
    """A model in float64, and a batch with a recording of two windows, short ones, and text alone."""
    model, processor = tiny()
    processor.pcm_dtype = torch.int16
    talks = [talk(1.3, 1, "yes it is"), talk(31.0, 2, "no"), talk(0, 0, "yes no"), talk(0.4, 3, "it is")]
    return model.double(), processor(talks, training=True)


def gradients(model) -> dict[str, torch.Tensor]:
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("split", [(1, 2), (2, 1), (2, 2), (1, 5)], ids=str)
def test_the_model_with_audio(split):
    model, batch = a_batch()

    def alone():
        model.zero_grad()
        loss, rows, _ = model.loss(batch, with_rows=True)
        loss.backward()
        return {"loss": loss, "rows": rows, **gradients(model)}

    expected = in_orders(alone, 4)
    copies = [copy.deepcopy(model) for _ in range(split[0] * split[1])]
    ranks = SequenceParallel.virtual(*split)

    def work(p):
        copies[p].zero_grad()
        part, rows, tokens = copies[p].loss(batch, ranks=ranks[p], with_rows=True)
        part.backward()
        return part.detach(), rows, tokens

    parts = in_threads(work, len(copies))
    with torch.no_grad():
        _, _, tokens = model.loss(batch, with_rows=True)
    order = torch.argsort(torch.cat([tokens for _, _, tokens in parts]))
    assert torch.cat([tokens for _, _, tokens in parts])[order].tolist() == tokens.tolist()
    summed = {n: sum(gradients(one)[n] for one in copies) for n in gradients(model)}
    rows = torch.cat([rows for _, rows, _ in parts])[order]
    assert_same_but_rounding({"loss": sum(part for part, _, _ in parts), "rows": rows, **summed}, expected)


def test_what_recomputation_sends_again():
    """Selective recomputation keeps attention and sends nothing twice; full recomputation repeats its forward."""
    sent = {}
    for mode in ("none", "selective", "full"):
        model, batch = a_batch()
        copies, ranks = [copy.deepcopy(model) for _ in range(4)], SequenceParallel.virtual(2, 2)
        for one in copies:
            checkpoint_blocks(one, mode)

        def work(p, copies=copies, ranks=ranks, batch=batch):
            copies[p].loss(batch, ranks=ranks[p]).backward()
            return ranks[p].ulysses.sent + ranks[p].ring.sent

        sent[mode] = sum(in_threads(work, 4))
    text = model.config.text
    sizes = {"heads": text.heads, "kv_heads": text.kv_heads, "head_dim": text.head_dim}
    plan = make_plan(batch.cu_seqlens, ulysses=2, ring=2, **sizes)
    promised = [attention_bytes(plan, rank, 8) for rank in range(4)]
    forward = sum(one[what]["forward"] for one in promised for what in ("ulysses", "ring"))
    assert sent["selective"] == sent["none"]
    assert sent["full"] == sent["none"] + text.layers * forward


def test_a_frozen_encoder_gets_nothing_back():
    """Each window is encoded once, and without gradients to it nothing but the adaptor's part travels back."""
    model, batch = a_batch()
    ranks = SequenceParallel.virtual(1, 2)
    copies = [copy.deepcopy(model) for _ in range(2)]
    encoded = []
    for one in copies:
        one.encoder.requires_grad_(False)
        one.adaptor.requires_grad_(False)
        one.language_model.embed_tokens.requires_grad_(False)
        encode = one.encode_batch
        one.encode_batch = lambda own, encode=encode: encoded.append(len(own.pcm)) or encode(own)

    def work(p):
        loss = copies[p].loss(batch, ranks=ranks[p])
        before = ranks[p].all.sent
        loss.backward()
        return ranks[p].all.sent - before

    assert in_threads(work, 2) == [0, 0]
    assert sum(encoded) == len(batch.pcm)


def test_dealing_and_routing():
    assert sorted(np.bincount(deal([5, 1, 1, 1, 1, 1], 2), weights=[5, 1, 1, 1, 1, 1])) == [5, 5]
    assert deal([], 3).tolist() == []
    random = np.random.default_rng(0)
    maker, holder = random.integers(0, 3, 50), random.integers(0, 3, 50)
    x = torch.arange(50.0)[:, None].requires_grad_()
    comms = virtual_group(3)

    def work(rank):
        routes = Routes.of(maker, holder, rank, 3)
        return route(x[torch.from_numpy(maker == rank)], routes, comms[rank])

    for rank, rows in enumerate(in_threads(work, 3)):
        assert rows.squeeze(1).tolist() == np.flatnonzero(holder == rank).tolist()


def test_ranks_with_another_batch_or_plan_say_so_at_once():
    model, batch = a_batch()
    other = copy.copy(batch)
    other.input_ids = batch.input_ids.clone()
    other.input_ids[-1] = 5
    ranks = SequenceParallel.virtual(1, 3)

    def work(p):
        with pytest.raises(ValueError, match="the tokens of rank 1 of the group differ from those of rank 0"):
            model.loss(other if p == 1 else batch, ranks=ranks[p])
        return True

    assert all(in_threads(work, 3))
    comms = virtual_group(2)

    def plans(p):
        with pytest.raises(ValueError, match="the plan of rank 1 of the group"):
            agree(comms[p], {"the plan": make_plan([0, 5], ring=1 + p).digest()})
        return True

    assert all(in_threads(plans, 2))


def test_a_rank_that_never_comes_is_named():
    comms = virtual_group(2, patience=0.2)
    with pytest.raises(RuntimeError, match=r"rank 0: nothing from rank 1 in 0\.2 s"):
        comms[0].all_to_all(torch.zeros(2), [1, 1], [1, 1])


def one_dies(process, folder, how):
    """Rank 2 of four ends inside attention; what the others say goes to files."""
    ranks = SequenceParallel.of(process, 1, 4)
    plan = make_plan([0, 64], ring=4, heads=4, kv_heads=2, head_dim=8)
    parts = inputs(64, 4, 2)
    try:
        with roll_call(process):
            one_rank(ranks, plan, *parts)
            if process.rank == 2:
                how()
            one_rank(ranks, plan, *parts)
    except RankEnded as error:
        (folder / str(process.rank)).write_text(str(error))


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def at_fault():
    raise ValueError("this is no recording")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (killed, "rank 2 of 4 has ended without a word"),
        (at_fault, "rank 2 failed first: ValueError: this is no recording"),
    ],
)
def test_a_rank_that_ends_is_named_by_all_others(how, said, tmp_path):
    """They stop by themselves: nobody ends them from outside."""
    began = time.perf_counter()
    for process in run(4, one_dies, tmp_path, how, join=False).processes:
        process.join(30)
        assert process.exitcode is not None
    assert time.perf_counter() - began < 30
    found = {int(file.name): file.read_text() for file in tmp_path.iterdir()}
    assert found == {rank: f"rank {rank}: {said}" for rank in (0, 1, 3)}


def test_tensors_that_are_not_the_plans():
    ranks = SequenceParallel.virtual(1, 1)[0]
    plan = make_plan([0, 8], heads=4, kv_heads=2, head_dim=8)
    q, k, v, _ = inputs(8, 4, 2)
    with pytest.raises(ValueError, match=r"rank 0: q, k, v are \(7, 4, 8\)"):
        sp_attention(q[:7], k, v, plan, ranks)
    with pytest.raises(ValueError, match="transport 'pigeon'"):
        sp_attention(q, k, v, plan, ranks, transport="pigeon")


def test_threads_do_not_share_what_they_send():
    """A message is a copy: the sender may overwrite its buffer."""
    a, b = virtual_group(2)
    x = torch.ones(3)
    a.exchange({1: x}, {})()
    x.zero_()
    room = torch.empty(3)
    b.exchange({}, {0: room})()
    assert room.tolist() == [1, 1, 1]
