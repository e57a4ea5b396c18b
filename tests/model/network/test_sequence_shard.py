"""The model over ranks that share a batch, against one rank in float64: losses, gradients, messages."""

import copy
from dataclasses import replace
from unittest import mock

import pytest
import torch

import afn_kernels as ak
from afn_distributed.comm import in_threads
from afn_distributed.costs import attention_bytes
from afn_distributed.hybrid import SequenceParallel
from afn_distributed.plan import make_plan
from afn_model.network.device_batch import DeviceBatch
from afn_model.train.activation_checkpoint import checkpoint_blocks
from tests.budget import assert_same_but_rounding
from tests.orders import in_orders
from tests.tiny import noise, tiny


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


@pytest.fixture(scope="module")
def one_rank():
    """The model and batch, the rows' tokens, and what one rank computes in several orders."""
    model, batch = a_batch()

    def alone():
        one = copy.deepcopy(model)
        loss, rows, tokens = one.loss(batch, with_rows=True)
        loss.backward()
        return {"loss": loss.detach(), "rows": rows.detach(), **gradients(one)}, tokens

    found = in_orders(alone, 5)
    return model, batch, found[0][1], [values for values, _ in found]


@pytest.mark.parametrize("split", [(1, 2), (2, 1), (2, 2), (1, 5)], ids=str)
def test_loss_and_gradients_are_those_of_one_rank(one_rank, split):
    model, batch, tokens, expected = one_rank
    copies = [copy.deepcopy(model) for _ in range(split[0] * split[1])]
    ranks = SequenceParallel.virtual(*split)

    def work(p):
        copies[p].zero_grad()
        part, rows, tokens = copies[p].loss(batch, sp_group=ranks[p], with_rows=True)
        part.backward()
        return part.detach(), rows, tokens

    parts = in_threads(work, len(copies))
    order = torch.argsort(torch.cat([tokens for _, _, tokens in parts]))
    assert torch.cat([tokens for _, _, tokens in parts])[order].tolist() == tokens.tolist()
    summed = {n: sum(gradients(one)[n] for one in copies) for n in gradients(model)}
    rows = torch.cat([rows for _, rows, _ in parts])[order]
    assert_same_but_rounding({"loss": sum(part for part, _, _ in parts), "rows": rows, **summed}, expected)


@pytest.mark.parametrize(("split", "rotated"), [((2, 1), 0), ((1, 2), 2 * 2)], ids=["ulysses", "ring"])
def test_rotary_is_part_of_the_copy_before_the_all_to_all(split, rotated):
    """With Ulysses no rank launches rotary; without, there is no copy, and each of two layers of two ranks does."""
    model, batch = a_batch()
    ranks = SequenceParallel.virtual(*split)
    with mock.patch.object(ak, "rotary", wraps=ak.rotary) as rotary, torch.no_grad():
        in_threads(lambda p: model.loss(batch, sp_group=ranks[p]), 2)
    assert rotary.call_count == rotated


def test_what_recomputation_sends_again():
    """Selective recomputation keeps attention and sends nothing twice; full recomputation repeats its forward."""
    sent = {}
    for mode in ("none", "selective", "full"):
        model, batch = a_batch()
        copies, ranks = [copy.deepcopy(model) for _ in range(4)], SequenceParallel.virtual(2, 2)
        for one in copies:
            checkpoint_blocks(one, mode)

        def work(p, copies=copies, ranks=ranks, batch=batch):
            copies[p].loss(batch, sp_group=ranks[p]).backward()
            return ranks[p].ulysses.sent + ranks[p].ring.sent

        sent[mode] = sum(in_threads(work, 4))
    text = model.config.text
    sizes = {"heads": text.heads, "kv_heads": text.kv_heads, "head_dim": text.head_dim}
    plan = make_plan(batch.cu_seqlens, ulysses=2, ring=2, **sizes)
    promised = [attention_bytes(plan, rank, 8) for rank in range(4)]
    forward = sum(one[what]["forward"] for one in promised for what in ("ulysses", "ring"))
    assert sent["selective"] == sent["none"]
    assert sent["full"] == sent["none"] + text.layers * forward


def test_one_rank_has_the_samples_and_the_loss_is_the_same():
    """Bit for bit: each rank encodes the same windows of the same width."""
    model, batch = a_batch()
    flat = replace(batch, pcm=torch.cat([row[:n] for row, n in zip(batch.pcm, batch.samples.tolist(), strict=True)]))
    none, found = replace(flat, pcm=flat.pcm[:0]), {}
    for source in (None, 2):
        ranks = SequenceParallel.virtual(2, 2)

        def work(p, source=source, ranks=ranks):
            mine = flat if source in (None, p) else none
            with torch.no_grad():
                return model.loss(DeviceBatch.of(mine, model.config, ranks[p], source=source))

        found[source] = in_threads(work, 4)
    assert found[None] == found[2]


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
        one.encode_batch = lambda own, encode=encode: encoded.append(len(own.audio.samples)) or encode(own)

    def work(p):
        loss = copies[p].loss(batch, sp_group=ranks[p])
        before = ranks[p].all.sent
        loss.backward()
        return ranks[p].all.sent - before

    assert in_threads(work, 2) == [0, 0]
    assert sum(encoded) == len(batch.pcm)


def test_ranks_with_another_batch_say_so_at_once():
    model, batch = a_batch()
    other = copy.copy(batch)
    other.input_ids = batch.input_ids.clone()
    other.input_ids[-1] = 5
    ranks = SequenceParallel.virtual(1, 3)

    def work(p):
        with pytest.raises(ValueError, match="the tokens of rank 1 of the group differ from those of rank 0"):
            model.loss(other if p == 1 else batch, sp_group=ranks[p])
        return True

    assert all(in_threads(work, 3))
