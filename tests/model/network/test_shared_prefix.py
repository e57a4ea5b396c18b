"""Several answers to one prompt: the same numbers as with a copy of the prompt each, for a fraction of the work."""

from functools import partial

import pytest
import torch

import afn_kernels as ak
from afn_model.config import RoteConfig
from afn_model.network.shared_prefix import SharedPrefix
from afn_model.prompt.batch import Batch
from tests.budget import assert_same_but_rounding
from tests.orders import in_orders
from tests.tiny import noise, tiny

LENGTHS = ((7, 1, 4), (2,), (), (1, 1), (5, 9, 3, 6))


def prompts(processor) -> Batch:
    """Five prompts: two with audio, one of them with two recordings."""

    def asked(text, *audios):
        parts = [{"type": "audio", "audio": audio, "sampling_rate": 16_000} for audio in audios]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    return processor(
        [
            asked("What is said?", noise(0.9, 1)),
            asked("And now?"),
            asked("Nobody answers."),
            asked("Which is louder?", noise(0.4, 2), noise(0.7, 3)),
            asked("What is heard in the end?"),
        ]
    )


def answers(vocabulary: int, audio_token: int) -> list[list[list[int]]]:
    """Random tokens; one of the answers holds the placeholder of audio, which a model may well say."""
    generator = torch.Generator().manual_seed(0)
    made = [[torch.randint(6, vocabulary, (n,), generator=generator).tolist() for n in lengths] for lengths in LENGTHS]
    made[0][0][2] = audio_token
    return made


def naive(model, batch: Batch, groups, temperature: float, encoded: tuple) -> torch.Tensor:
    """The same by a packed batch that holds the prompt once for every answer."""
    x_TD, positions = model.embed_batch(batch, encoded)
    rows = torch.arange(len(x_TD)).split(batch.cu_seqlens.diff().tolist())
    embedded, where, targets, predicts, lengths = [], [], [], [], [0]
    for own, group in zip(rows, groups, strict=True):
        for answer in group:
            ids = torch.tensor(answer)
            clock = positions[own[-1]] + model.text_advance * torch.arange(1, len(ids) + 1)
            embedded += [x_TD[own], model.language_model.embed_tokens(ids)]
            where += [positions[own], clock]
            predicts.append(lengths[-1] + len(own) - 1 + torch.arange(len(ids)))
            targets.append(ids)
            lengths.append(lengths[-1] + len(own) + len(ids))
    cu_seqlens = torch.tensor(lengths, dtype=torch.int32)
    hidden = model.language_model(torch.cat(embedded), torch.cat(where).float(), cu_seqlens=cu_seqlens)
    logits = model.lm_head(hidden[torch.cat(predicts)]) / temperature
    return logits.log_softmax(-1).gather(1, torch.cat(targets)[:, None]).squeeze(1)


@pytest.mark.parametrize("rote", [RoteConfig(), RoteConfig("paper", clock="restart", text_step=0.5)])
def test_logprobs_and_gradients_are_those_of_the_packed_batch(rote):
    model, processor = tiny(rote=rote)
    model = model.double()
    batch = prompts(processor)
    groups = answers(model.config.text.vocab_size, model.config.audio_token_id)
    weight = torch.randn(sum(n for lengths in LENGTHS for n in lengths), dtype=torch.float64)

    def run(call):
        model.zero_grad()
        logprobs = call(encoded=model.encode_batch(batch))
        (logprobs * weight).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return {"logprobs": logprobs.detach()} | gradients

    found = run(partial(model.answer_logprobs, batch, groups, temperature=0.7))
    assert any(name.startswith("encoder") for name in found)
    assert_same_but_rounding(found, in_orders(lambda: run(partial(naive, model, batch, groups, 0.7))))


def test_the_prompt_passes_through_the_model_once():
    prompt, group, length = 15_000, 8, 64
    cu = torch.tensor([0, prompt], dtype=torch.int32)
    shared = SharedPrefix.of(cu, [[[7] * length] * group], torch.device("cpu"))
    copied = group * (prompt + length)
    assert shared.tokens == prompt + group * (length - 1)
    assert copied / shared.tokens > 7.7, "8 × (15,000 + 64) tokens against 15,504"

    model, processor = tiny()
    batch = prompts(processor)
    seen = []
    hook = model.language_model.layers[0].register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    model.answer_logprobs(batch, [[[8, 9, 10]] * 4] * 5)
    hook.remove()
    assert seen == [len(batch.input_ids) + 5 * 4 * 2]


def test_answers_do_not_see_each_other():
    model, processor = tiny()
    batch = prompts(processor)
    groups = answers(model.config.text.vocab_size, model.config.audio_token_id)
    with torch.no_grad():
        together = model.answer_logprobs(batch, groups).split([n for lengths in LENGTHS for n in lengths])
        changed = [[list(answer) for answer in group] for group in groups]
        changed[4][1] = changed[4][1][::-1]
        after = model.answer_logprobs(batch, changed).split([n for lengths in LENGTHS for n in lengths])
    same = [torch.equal(a, b) for a, b in zip(together, after, strict=True)]
    assert same == [True] * 7 + [False] + [True] * 2


def test_the_head_is_not_asked_for_prompt_tokens(monkeypatch):
    model, processor = tiny()
    rows = []
    true = ak.linear_logprob
    monkeypatch.setattr(ak, "linear_logprob", lambda hidden, *rest: (rows.append(len(hidden)), true(hidden, *rest))[1])
    groups = answers(model.config.text.vocab_size, model.config.audio_token_id)
    model.answer_logprobs(prompts(processor), groups)
    assert rows == [sum(n for lengths in LENGTHS for n in lengths)]


def test_answers_that_do_not_fit_the_prompts():
    model, processor = tiny()
    batch = prompts(processor)
    with pytest.raises(ValueError, match="answers to 1 prompts, but the batch has 5"):
        model.answer_logprobs(batch, [[[7]]])
    with pytest.raises(ValueError, match="prompt 3 has an answer without tokens"):
        model.answer_logprobs(batch, [[[7]], [[7]], [[7]], [[7], []], [[7]]])
