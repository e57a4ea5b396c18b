"""Scores that are NaN or infinite are an error that names the first tensor that is."""

import math

import pytest
import torch

from afn_model.infer.answer import answer, answers
from afn_model.infer.batch_sampler import BatchSampler
from afn_model.infer.finite import NotFiniteError
from afn_model.infer.history import History
from afn_model.infer.sampling_params import SamplingParams
from tests.model.infer.test_generate import asked
from tests.tiny import noise, tiny

WAYS = (
    {"max_new_tokens": 4},
    {"max_new_tokens": 4, "temperature": 1.0, "seed": 3},
    {"max_new_tokens": 4, "temperature": 1.0, "top_p": 0.9, "seed": 3},
)


@pytest.fixture
def pair():
    return tiny()


def spoil(weight, value=math.nan):
    with torch.no_grad():
        weight.view(-1)[7] = value


@pytest.mark.parametrize("keys", [None, range(4)])
@pytest.mark.parametrize("options", WAYS)
def test_one_score_is_enough(pair, options, keys):
    model, processor = pair
    sampler = BatchSampler(model, processor([asked("What?")] * 4), SamplingParams(**options), keys)
    logits = torch.randn(4, model.config.text.vocab_size)
    logits[1, 300] = math.nan
    logits[2, 5] = math.inf
    logits[3, 7] = -math.inf
    token, _, finite = sampler.next(logits)
    assert finite.tolist() == [True, False, False, True]
    assert ((token >= 0) & (token < model.config.text.vocab_size)).all(), "they may be fed all the same"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_is_named(pair, value):
    model, processor = pair
    spoil(model.language_model.layers[1].mlp.up_proj.weight, value)
    batch, weight = processor(asked("What?", noise(0.5))), "language_model.layers.1.mlp.up_proj.weight"
    kind = "NaN" if math.isnan(value) else "Inf"
    expected = f"^the scores of token 0 are NaN or infinite: {weight} holds {kind}, 1 of [0-9,]+ values$"
    for options in WAYS:
        with pytest.raises(NotFiniteError, match=expected):
            model.generate(batch, **options)
    with pytest.raises(NotFiniteError, match=expected):
        model.sample(batch, 4, seed=3, samples=2)


def test_the_first_output_is_named_where_all_weights_are_finite(pair):
    model, processor = pair
    batch = processor(asked("What?", noise(0.5)))
    for module, name in (
        (model.language_model.norm, "language_model.norm"),
        (model.language_model.layers[1].post_attention_layernorm, "language_model.layers.1.post_attention_layernorm"),
    ):
        module.eps = math.nan
        with pytest.raises(
            ValueError, match=f"all weights are finite, and the first output that is not is that of {name}$"
        ):
            model.generate(batch, 4)


def test_an_infinite_sample(pair):
    model, processor = pair
    batch = processor(asked("What?", noise(0.5)))
    batch.pcm[0, 100] = math.inf
    with pytest.raises(ValueError, match="token 0 are NaN or infinite: the recordings hold Inf, 1 of"):
        model.generate(batch, 4)


def test_later_tokens_are_looked_at_too(pair):
    model, processor = pair
    batch, calls = processor(asked("What?")), []

    def third(module, given, output):
        calls.append(1)
        return output * math.nan if len(calls) == 3 else output

    hook = model.lm_head.register_forward_hook(third)
    with pytest.raises(ValueError, match=r"token 2 are NaN or infinite: weights and outputs are finite when computed"):
        model.generate(batch, 4, stop_token_ids=())
    hook.remove()


def test_what_is_not_finite_later_is_found_where_it_is(pair):
    model, processor = pair
    batch = processor(asked("What?"))
    (tokens,) = model.generate(batch, 4, stop_token_ids=())
    assert tokens[1] not in batch.input_ids.tolist() + tokens[:1], "else the prompt would be at fault"

    def poisoned(module, given, output):
        return torch.where((given[0] == tokens[1])[:, None], math.nan, output)

    hook = model.language_model.embed_tokens.register_forward_hook(poisoned)
    with pytest.raises(ValueError, match=r"the first output that is not is that of language_model\.embed_tokens"):
        model.generate(batch, 4, stop_token_ids=())
    hook.remove()


def test_the_conversation_is_named(pair):
    model, processor = pair
    with torch.no_grad():
        model.language_model.embed_tokens.weight[processor.tokenizer.encode("é").ids] = math.nan
    good, bad = asked("What?"), asked("é?")
    params = SamplingParams(max_new_tokens=4)
    with pytest.raises(NotFiniteError) as raised:
        model.generate(processor([good, bad]), 4)
    assert raised.value.prompt == 1
    with pytest.raises(
        ValueError, match=r"^conversation 2: the scores of token 0 .*: language_model\.embed_tokens\.weight"
    ):
        answer(model, processor, [good, good, bad], params)
    with pytest.raises(ValueError, match=r"^the scores of token 0"):
        list(answers(model, processor, bad, params))
    assert len(answer(model, processor, [good, good], params)) == 2


def test_a_history_forgets_what_is_not_finite(pair):
    model, processor = pair
    history, params = History(), SamplingParams(max_new_tokens=4)
    module = model.language_model.norm
    eps, module.eps = module.eps, math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        answer(model, processor, asked("What?"), params, history=history)
    module.eps = eps
    assert not len(history.ids)
    again = answer(model, processor, asked("What?"), params, history=history)
    assert [one.text for one in again] == [one.text for one in answer(model, processor, asked("What?"), params)]


def test_scores_that_forbid_tokens_are_no_error(pair):
    model, processor = pair

    def forbid(module, given, output):
        output = output.clone()
        output[:, ::2] = -math.inf
        return output

    hook = model.lm_head.register_forward_hook(forbid)
    for options in WAYS:
        (tokens,) = model.generate(processor(asked("What?")), stop_token_ids=(), **options)
        assert len(tokens) == 4
        assert all(token % 2 for token in tokens)
    hook.remove()
