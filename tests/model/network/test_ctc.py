"""CTC of packed frames: PyTorch's of a padded batch, whatever is computed together; and what it is asked to spell."""

import pytest
import torch
import torch.nn.functional as F

from afn_distributed.shard import shard
from afn_model.network import ctc
from afn_model.network.ctc import CTCTargets, CTCTerm, ctc_loss, ctc_targets, frames_heard
from tests.distributed.ranks import run
from tests.model.af_whisper import said, speech_model

SPANS = [(0, 9), (12, 30), (42, 5), (47, 12)]  # frames 9 to 11 are of another
TEXTS = [[3, 3, 1], [1, 2, 3, 4, 5, 6, 7, 1, 1], [], [5]]
TALKS = [said("zero", 1.3), said("seven two", 2.0, seed=1), said("two", 0.8, 2.1, seed=2)]


def padded(frames, weight, bias):
    """PyTorch's loss over all of the vocabulary at once."""
    rows = [F.linear(frames[first : first + count], weight, bias) for first, count in SPANS]
    log_probs = torch.nn.utils.rnn.pad_sequence(rows).log_softmax(-1)
    texts, counts = torch.tensor([token for text in TEXTS for token in text]), tuple(count for _, count in SPANS)
    lengths = tuple(map(len, TEXTS))
    return F.ctc_loss(log_probs, texts, counts, lengths, blank=len(weight) - 1, reduction="sum")


@pytest.mark.parametrize("budget", [1, 170, 2**24])  # a row at a time, groups of two, everything
def test_loss_and_gradients_are_those_of_a_padded_batch(monkeypatch, budget):
    monkeypatch.setattr(ctc, "BUDGET", budget)
    torch.manual_seed(0)
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((60, 6), (10, 6), (10,))]
    expected = padded(*given)
    found = ctc_loss(*given, CTCTargets(SPANS, TEXTS))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = zip(torch.autograd.grad(found, given), torch.autograd.grad(expected, given), strict=True)
    for own, theirs in gradients:
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-10)


def test_no_logits_stay(monkeypatch):
    """What the backward keeps is of the frames' scores: it is all smaller than five rows of logits."""
    monkeypatch.setattr(ctc, "BUDGET", 5000)
    frames, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((60, 6), (1000, 6), (1000,)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ctc_loss(frames, weight, bias, CTCTargets(SPANS, TEXTS))
    assert max(x.numel() for x in kept if x.numel() != weight.numel()) < 5000


def markup(processor):
    return set(processor.tokenizer.get_added_tokens_decoder())


def test_targets_are_what_is_said():
    model, processor = speech_model()
    again = [*said("two", 1.0), {"role": "user", "content": "Again?"}, {"role": "assistant", "content": "two"}]
    text = [{"role": "user", "content": "What word?"}, {"role": "assistant", "content": "zero"}]
    batch = processor([again, *TALKS, text], training=True)
    assert frames_heard(batch, model.config) == [50, 65, 100, 145, 0]
    found = ctc_targets(batch, model.config, markup(processor), ())
    assert found.spans == [(50, 65), (115, 100), (215, 145)]
    assert [processor.tokenizer.decode(one) for one in found.texts] == ["zero", "seven two", "two"]
    assert found.short == 0
    word = processor.tokenizer.encode("zero", add_special_tokens=False).ids
    assert ctc_targets(batch, model.config, markup(processor), word).spans == found.spans[1:]
    assert ctc_targets(batch, model.config, markup(processor) | set(word), ()).texts[0] == []


@pytest.mark.parametrize(("frames", "short"), [(5, 1), (6, 0)])
def test_a_text_longer_than_its_frames_is_counted(monkeypatch, frames, short):
    model, processor = speech_model()
    batch = processor(said("seven two", 1.0), training=True)
    batch.labels[batch.labels >= 0] = torch.tensor([7, 7, 7, 8, processor.token_id("<|im_end|>")])
    monkeypatch.setattr(ctc, "frames_heard", lambda batch, config: [frames])
    found = ctc_targets(batch, model.config, markup(processor), ())
    assert (found.texts, found.short) == ([] if short else [[7, 7, 7, 8]], short)


def loss(model, processor, talks, total=10.0):
    """Of conversations that a model with a CTC head is trained on, and CTC's part of it."""
    batch, told = processor(talks, training=True), []
    targets = ctc_targets(batch, model.config, markup(processor), ())
    return model.loss(batch, total=total, ctc=CTCTerm(targets, 0.3, told.append)), told[0]


def trained(**changes):
    model, processor = speech_model(ctc=True, **changes)
    torch.nn.init.normal_(model.ctc_head.weight, std=0.3)
    return model, processor


@pytest.mark.parametrize("pooled", [False, True])
def test_packed_texts_and_one_by_one(pooled):
    model, processor = trained(pooled=pooled)
    weights = [model.ctc_head.weight, model.encoder.conv1.weight]
    together, part = loss(model, processor, TALKS)
    alone = [loss(model, processor, [talk]) for talk in TALKS]
    torch.testing.assert_close(part, sum(own for _, own in alone), rtol=1e-5, atol=1e-5)
    total = sum(value for value, _ in alone)
    torch.testing.assert_close(together, total, rtol=1e-5, atol=1e-5)
    gradients = (torch.autograd.grad(value, weights, retain_graph=True) for value in (together, total))
    for own, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-5)
    plain = model.loss(processor(TALKS, training=True), total=10.0)
    torch.testing.assert_close(together, 0.7 * plain + 0.3 * part, rtol=1e-5, atol=1e-5)


def on_rank(here, expected):
    model, processor = trained()
    shard(model, here, blocks=[*model.encoder.layers], compute_dtype=torch.float32, forwards=("loss",))
    value, _ = loss(model, processor, [TALKS[:2], [[*TALKS[2], *TALKS[2]]]][here.rank])  # no target on the second
    value.backward()
    for name, gradient in expected.items():
        found = model.get_parameter(name).grad.full_tensor()
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)


def test_two_ranks_have_the_gradients_of_one():
    model, processor = trained()
    value, _ = loss(model, processor, [*TALKS[:2], [*TALKS[2], *TALKS[2]]])
    value.backward()
    names = ("ctc_head.weight", "ctc_head.bias", "encoder.conv1.weight", "decoder.embed_tokens.weight")
    run(2, on_rank, {name: model.get_parameter(name).grad for name in names})
