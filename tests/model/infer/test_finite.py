"""Scores that are NaN or infinite are an error that names the first tensor that is."""

import math

import pytest
import torch

from afn_model.infer.answer import answer, answers
from afn_model.infer.engine import Engine
from afn_model.infer.finite import NotFiniteError
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
    ((place, found),) = answers(model, processor, bad, params)
    assert place == 0
    assert str(found).startswith("the scores of token 0")
    assert len(answer(model, processor, [good, good], params)) == 2


def test_an_engine_forgets_what_is_not_finite(pair):
    model, processor = pair
    engine, params, talk = Engine(model), SamplingParams(max_new_tokens=4), asked("What? " * 60)
    (expected,) = answer(model, processor, talk, params)
    module = model.language_model.norm
    eps, module.eps = module.eps, math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        answer(engine, processor, talk, params)
    module.eps = eps
    assert not engine.pool.cached
    (again,) = answer(engine, processor, talk, params)
    assert (again.text, again.reused) == (expected.text, 0)
    (warm,) = answer(engine, processor, talk, params)
    assert warm.text == expected.text
    assert warm.reused


def test_one_bad_row_does_not_end_its_neighbours(pair):
    model, processor = pair
    with torch.no_grad():
        model.language_model.embed_tokens.weight[processor.tokenizer.encode("é").ids] = math.nan
    good, bad = asked("What?"), asked("é?")
    expected = answer(model, processor, [good], SamplingParams(max_new_tokens=4))[0].text
    found = dict(answers(model, processor, [good, bad, good], SamplingParams(max_new_tokens=4)))
    assert [found[0].text, found[2].text] == [expected] * 2
    assert "conversation 1: the scores of token 0 are NaN" in str(found[1])


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
