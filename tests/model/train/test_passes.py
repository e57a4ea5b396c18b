"""Prompts with answers: packed by their tokens, equally often on all ranks, with the features of their audio."""

import pytest
import torch

from afn_model.audio.recording import Audio
from afn_model.data.loader import GlobalBatch, MicroBatch, Position
from afn_model.data.records import Sample
from afn_model.prompt.batch import Prepared
from afn_model.prompt.conversation import Turn
from afn_model.train.passes import (
    AnsweredPrompt,
    PackedAnswers,
    as_reference,
    by_tokens,
    equally_many,
    question,
    split_features,
    usable,
)
from tests.tiny import noise, tiny


def prompt(tokens: int, *answers: int, clips: int = 0) -> AnsweredPrompt:
    prepared = Prepared(torch.zeros(tokens, dtype=torch.int64), None, [torch.zeros(160)] * clips)
    return AnsweredPrompt(None, prepared, [[7] * answer for answer in answers])


def test_passes_by_tokens():
    prompts = [prompt(*shape) for shape in ((5, 4, 4), (3, 1), (9, 3), (30, 9), (4, 1), (10, 2, 2))]
    assert [one.tokens for one in prompts] == [11, 3, 11, 38, 4, 12]
    passes = [[one.tokens for one in some] for some in by_tokens(prompts, 16)]
    assert passes == [[11, 3], [11], [38], [4, 12]], "in order, full to the last token, a larger one alone"
    assert by_tokens([], 16) == []


@pytest.mark.parametrize(("audio", "first"), [(False, 1), (True, 2)])
def test_as_many_passes_as_the_rank_with_the_most(audio, first):
    placeholder, others = prompt(2, 1, clips=1), [1.0, 1.0, 1.0, 0.0]
    own = [[prompt(5, 2)], [prompt(5, 2, clips=1)]]
    passes = list(equally_many(own, placeholder, lambda there: there + others.pop(0), audio=audio))
    assert [len(one) for one in passes] == [first, 1, 1]
    assert passes[2] == [placeholder]
    assert not others


def test_features_are_those_of_each_prompts_own_batch():
    _, processor = tiny()

    def asked(*audios):
        turns = [Turn("user", (*(Audio(audio, 16_000) for audio in audios), "What is heard?"))]
        return processor.prepare(turns, add_generation_prompt=True)

    prepared = [asked(noise(0.5, 1)), asked(), asked(noise(0.9, 2), noise(31, 3)), asked(noise(0.4, 4))]
    batch = processor.pack(prepared)
    tokens = batch.window_tokens.tolist()
    features = torch.arange(sum(tokens))[:, None]
    parts = split_features((features, tokens), prepared, batch.windows_per_audio.tolist())
    assert parts[1] is None
    assert [part and part[1] for part in parts] == [tokens[:1], None, tokens[1:4], tokens[4:]]
    # Packed in another order.
    prompts = [AnsweredPrompt(None, prepared[i], [[5, 6]], parts[i]) for i in (3, 2, 1, 0)]
    packed = PackedAnswers.of(prompts, processor)
    assert packed.encoded[1] == packed.batch.window_tokens.tolist()
    first = torch.tensor(tokens).cumsum(0).tolist()
    rows = [*range(first[3], first[4]), *range(first[0], first[3]), *range(first[0])]
    assert packed.encoded[0][:, 0].tolist() == rows
    assert PackedAnswers.of(prompts[2:3], processor).encoded is None
    assert split_features(None, prepared, batch.windows_per_audio.tolist()) == [None] * 4


def test_a_question_ends_before_the_last_answer():
    _, processor = tiny()
    turns = [Turn("user", ("What?",)), Turn("assistant", ("No.",)), Turn("user", ("Why?",))]
    sample = Sample("a", [*turns, Turn("assistant", ("So.",))], 0.0)
    found = question(processor, sample, max_seconds=None, context=512)
    assert torch.equal(found.ids, processor.prepare(turns, add_generation_prompt=True).ids)
    assert found.labels is None
    assert question(None, sample, found, max_seconds=None, context=512) is found, "a worker has read it"
    with pytest.raises(ValueError, match=f"{len(found.ids)} tokens leave no room for an answer in a context of 9"):
        question(processor, sample, max_seconds=None, context=9)
    with pytest.raises(ValueError, match="nothing is asked"):
        question(processor, Sample("a", turns[1:2], 0.0), max_seconds=None, context=512)


def test_bad_samples_and_prompts_that_workers_have_read():
    samples = [Sample(name, [], 0.0) for name in ("a", "b", "c")]
    micro = MicroBatch(None, samples, ["", "", ""])

    def read(sample, prepared):
        if sample.id == "b":
            raise ValueError("no")
        return prepared

    batch = GlobalBatch([micro], Position(), 3)
    assert usable(batch, read) == [(samples[0], None), (samples[2], None)]
    assert micro.bad == [("b", "no")]
    assert micro.samples == [samples[0], samples[2]]
    micro.prepared = ["prompt a", "prompt c"]
    assert usable(batch, read) == [(samples[0], "prompt a"), (samples[2], "prompt c")]

    def check(sample):
        raise ValueError(f"{sample.id} ends the run")

    with pytest.raises(ValueError, match="a ends the run"):
        usable(batch, read, check)


def test_a_model_or_what_lends_one():
    model, _ = tiny()
    with as_reference(model)() as lent:
        assert lent is model
    lend = as_reference(model)
    assert as_reference(lend) is lend
