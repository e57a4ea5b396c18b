"""A conversation that goes on: the same tokens as computed from nothing, and only what is new is computed."""

from contextlib import contextmanager

import pytest
import torch

from afn_model.config import RoteConfig
from afn_model.infer.answer import answer
from afn_model.infer.decoder import Decoder, decode
from afn_model.infer.history import History
from afn_model.infer.sampling_params import SamplingParams
from tests.budget import assert_same_but_rounding
from tests.orders import in_orders
from tests.tiny import noise, tiny

SHORT = SamplingParams(max_new_tokens=12)


@pytest.fixture(scope="module")
def pair():
    return tiny()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def asked(question: str, *audios) -> dict:
    parts = [{"type": "audio", "audio": audio, "sampling_rate": 16_000} for audio in audios]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


@contextmanager
def computed(model):
    """Tokens that every pass of the language model takes, and windows that every pass of the encoder does."""
    tokens, windows = [], []
    hooks = [
        model.language_model.layers[0].register_forward_hook(lambda module, given, out: tokens.append(len(given[0]))),
        model.encoder.register_forward_hook(lambda module, given, out: windows.append(len(given[0]))),
    ]
    yield tokens, windows
    for hook in hooks:
        hook.remove()


def dialogue(model, processor, history, turns=4):
    """Turn after turn; what each was answered with, and the tokens that were in its prefill."""
    audios = {0: [noise(1.3)], 2: [noise(0.6, 1), noise(31.0, 2)]}
    talk, texts, prefilled = [], [], []
    for turn in range(turns):
        talk.append(asked("What is said?" + " And then?" * turn, *audios.get(turn, [])))
        with computed(model) as (tokens, _):
            (found,) = answer(model, processor, [talk], SHORT, history=history)
        talk.append(said(found.text))
        texts.append((found.text, found.prompt_tokens))
        prefilled.append(tokens[0])
    return texts, prefilled


@pytest.mark.parametrize("rote", [None, RoteConfig("paper", clock="restart", text_step=0.5)])
def test_a_dialogue_is_answered_as_from_nothing(rote):
    model, processor = tiny(rote=rote)
    texts, prefilled = dialogue(model, processor, History())
    expected, whole = dialogue(model, processor, None)
    assert texts == expected
    assert len({text for text, _ in texts}) > 1
    assert prefilled[0] == whole[0] == texts[0][1]
    # At most what an answer may be, written anew, and the turn itself.
    assert prefilled[1] < 60 < whole[1]
    assert prefilled[3] < 100 < 800 < whole[3]


def batches(processor, *conversations):
    return [processor(conversation) for conversation in conversations]


def test_only_what_is_new_is_computed(pair):
    model, processor = pair
    first, second = batches(
        processor, [asked("What?", noise(1.0))], [asked("What?", noise(1.0)), said("one"), asked("And?")]
    )
    history = History()
    (rollout,) = decode(model, first, SHORT, history=history)
    fed = [*first.input_ids.tolist(), *rollout.tokens[:-1]]
    assert history.ids.tolist() == fed
    same = next(i for i, (a, b) in enumerate(zip(fed, second.input_ids.tolist(), strict=False)) if a != b)
    assert same >= len(first.input_ids)
    with computed(model) as (tokens, windows):
        hidden, positions = history.prefill(model, second, 4)
    assert tokens == [len(second.input_ids) - same] == [len(hidden)] == [len(positions)]
    assert windows == []


def test_scores_are_those_of_the_whole_prompt_but_for_rounding(pair):
    model, processor = pair
    talk = [asked("What?", noise(1.0)), said("one"), asked("And?", noise(2.0, 1)), said("two"), asked("Who?")]
    batch = processor(talk)
    history = History()
    with torch.inference_mode():
        for turns in (1, 3):
            history.prefill(model, processor(talk[:turns]), 4)
        found = Decoder(model, batch, 4, history=history).logits()
        expected = in_orders(lambda: Decoder(model, batch, 4).logits())
    assert_same_but_rounding(found, expected)


def test_what_differs_is_computed_from_there_on(pair):
    model, processor = pair
    one, other, longer = noise(1.0), noise(1.0, 5), noise(1.5)
    longer[: len(one)] = one
    system = {"role": "system", "content": "Answer with one word."}
    history, encoded = History(), []
    talks = [
        [asked("What?", one)],
        [asked("What?", one)],  # again
        [asked("What?", other)],  # as long, but another
        [asked("What?", longer)],
        [system, asked("What?", longer)],  # behind another text, the same recording
        [asked("Which?", one, other)],
        [asked("Which?", other, one)],
        [asked("Nothing to hear?")],
    ]
    for talk in talks:
        batch = processor(talk)
        with computed(model) as (tokens, windows):
            (found,) = decode(model, batch, SHORT, history=history)
        assert found.tokens == decode(model, batch, SHORT)[0].tokens
        assert 1 <= tokens[0] <= len(batch.input_ids)
        encoded.append((sum(windows), tokens[0] == len(batch.input_ids)))
    assert [windows for windows, _ in encoded] == [1, 0, 1, 1, 0, 2, 0, 0]
    assert not any(whole for _, whole in encoded[1:]), "the first tokens are always the same"


def test_the_last_token_is_computed_even_if_it_is_known(pair):
    model, processor = pair
    batch, history = processor([asked("What?", noise(1.0))]), History()
    for _ in range(2):
        with computed(model) as (tokens, _):
            history.prefill(model, batch, 1)
    assert tokens == [1]


def test_another_model_starts_anew(pair):
    model, processor = pair
    other, _ = tiny(1)
    batch, history = processor([asked("What?", noise(1.0))]), History()
    decode(model, batch, SHORT, history=history)
    assert decode(other, batch, SHORT, history=history)[0].tokens == decode(other, batch, SHORT)[0].tokens


def test_a_turn_that_is_broken_off_leaves_what_was_there(pair):
    model, processor = pair
    talk = [asked("What is said, and when does the dog bark?", noise(1.0)), said("one"), asked("And?", noise(2.0, 1))]
    other = [
        asked("A dog barks at one, two, three. Which is louder?", noise(1.0)),
        said("one"),
        asked("Who?", noise(1.5, 3)),
    ]
    history = History()
    decode(model, processor(talk), SHORT, history=history)

    class BrokenOffError(Exception):
        pass

    def fail(*_):
        raise BrokenOffError

    for place in (model.encoder, model.language_model.layers[1]):
        hook = place.register_forward_hook(fail)
        with pytest.raises(BrokenOffError):
            decode(model, processor(other), SHORT, history=history)
        hook.remove()
        assert 25 < len(history.ids) < 50, "what both begin with"
    batch = processor(talk)
    assert decode(model, batch, SHORT, history=history)[0].tokens == decode(model, batch, SHORT)[0].tokens


def test_a_history_is_of_one_answer(pair):
    model, processor = pair
    talk = [asked("What?")]
    with pytest.raises(ValueError, match="a history is that of one answer, not of 2"):
        answer(model, processor, [talk, talk], SHORT, history=History())
    with pytest.raises(ValueError, match="a history is that of one answer, not of 3"):
        decode(model, processor(talk), SamplingParams(n=3, temperature=1.0, seed=0), history=History())
