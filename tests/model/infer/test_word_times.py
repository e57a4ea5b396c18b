"""Word times against transformers' on the same weights, on a decoder whose attention is known, and words of scripts."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.utils import ModelOutput

from afn_model.infer.word_times import (
    SpokenExample,
    alignment_heads,
    default_heads,
    pick_heads,
    save_heads,
    token_times,
    words_of,
)
from afn_model.network.encoder import Windows
from afn_model.network.speech_network import SpeechNetwork
from afn_model.prompt.tokenizer import make_tokenizer
from tests.model.network.test_speech_decoder import CONFIG, ours, whisper


def test_times_of_transformers():
    """Theirs has the rows from the first token after the prompt on, so the prompt here is longer by one."""
    theirs = whisper()
    theirs.set_attn_implementation("eager")
    model, mel = ours(theirs), torch.randn(2, 16, 3000, generator=torch.Generator().manual_seed(5))
    tokens = torch.randint(4, 90, (2, 20), generator=torch.Generator().manual_seed(6))
    heads = [(0, 1), (1, 0), (1, 3)]
    with torch.no_grad():
        found = theirs(input_features=mel, decoder_input_ids=tokens, output_attentions=True)
        outputs = ModelOutput(cross_attentions=[found.cross_attentions], sequences=tokens)
        expected = theirs._extract_token_timestamps(outputs, heads, num_input_ids=3)[:, 3:-1]
        frames, cu = model.encode(mel, Windows.of([3000] * 2, mel.device, mel.dtype))
    rows = tokens.tolist()
    prompts, texts = [row[:4] for row in rows], [row[4:] for row in rows]
    times = token_times(model, frames, cu, prompts, texts, heads, open_begin=False)
    assert expected.shape == (2, 17)
    np.testing.assert_allclose(np.stack(times), expected.numpy(), atol=1e-6)
    (alone,) = token_times(model, frames[1500:], cu[:2], prompts[1:], texts[1:], heads, open_begin=False)
    np.testing.assert_array_equal(alone, times[1])


def hand_set():
    """A decoder whose head (1, 2) looks where the next token is said, and whose other heads look nowhere.

    Position p of the text asks for dimension p of the frames; the frames of the n-th token have dimension n.
    """
    torch.manual_seed(0)
    model = SpeechNetwork(CONFIG).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("decoder") and not name.endswith("norm.weight"):
                weight.zero_()
        decoder, width = model.decoder, CONFIG.head_dim
        for place in range(width):
            decoder.embed_positions.weight[place, place] = 1.0
        attention = decoder.layers[1].encoder_attn
        part = slice(2 * width, 3 * width)
        attention.q_proj.weight[part, :width] = 40 * torch.eye(width)
        attention.k_proj.weight[part, :width] = torch.eye(width)
    return model


def spoken(bounds, prompt=2):
    """Frames in which the n-th token lasts from one bound to the next, in frames; the rest is nothing."""
    frames = torch.zeros(bounds[-1] + 30, CONFIG.audio.width)
    for token, (first, last) in enumerate(pairwise(bounds)):
        frames[first:last, prompt - 1 + token] = 1.0
    frames[bounds[-1] :, prompt - 1 + len(bounds) - 1] = 1.0  # what predicts the end looks behind the last token
    return frames


def test_times_that_are_known():
    model, bounds = hand_set(), [0, 25, 40, 90, 100]
    frames = spoken(bounds)
    edges = torch.tensor([0, len(frames)], dtype=torch.int32)
    (times,) = token_times(model, frames, edges, [[1, 2]], [[5, 6, 7, 8]], [(1, 2)])
    np.testing.assert_allclose(times, np.array(bounds) * 0.02, atol=0.021)
    (times,) = token_times(model, frames, edges, [[1, 2]], [[]], [(1, 2)])
    assert times.tolist() == [0.0]


def test_the_head_that_knows_is_picked(tmp_path):
    model, decode = hand_set(), lambda ids: " ".join(f"w{token}" for token in ids)
    examples = []
    for bounds in ([0, 25, 40, 90], [0, 60, 70, 85, 140]):
        times = tuple((first * 0.02, last * 0.02) for first, last in pairwise(bounds))
        examples.append(SpokenExample(spoken(bounds), (1, 2), tuple(range(5, 4 + len(bounds))), times))
    heads, error = pick_heads(model, examples, decode)
    assert heads == [(1, 2)]
    assert error < 0.021
    (tmp_path / "generation_config.json").write_text('{"lang_to_id": {"<|en|>": 7}}')
    save_heads(tmp_path, heads)
    assert alignment_heads(tmp_path, CONFIG) == heads
    assert json.loads((tmp_path / "generation_config.json").read_text())["lang_to_id"] == {"<|en|>": 7}
    with pytest.raises(ValueError, match="example 1: 4 words in its text but 3 times"):
        pick_heads(model, [examples[0], replace(examples[1], times=examples[1].times[1:])], decode)


@pytest.mark.parametrize("heads", ["[]", "[[0, 9]]", "[[0]]", '"all"', "[[true, 1]]"])
def test_heads_of_another_model(tmp_path, heads):
    assert alignment_heads(tmp_path, CONFIG) == default_heads(CONFIG) == [(1, head) for head in range(4)]
    (tmp_path / "generation_config.json").write_text(f'{{"alignment_heads": {heads}}}')
    with pytest.raises(ValueError, match="alignment_heads must be a list"):
        alignment_heads(tmp_path, CONFIG)


def timed(tokenizer, text):
    ids = tokenizer.encode(text).ids
    found = words_of(ids, np.arange(len(ids) + 1.0), tokenizer.decode)
    assert [one.tokens for one in found] == sorted(one.tokens for one in found)
    assert not found or found[-1].tokens == len(ids)
    return found, ids


def test_words_of_bytes():
    tokenizer = make_tokenizer(["hello there, hello world", "hello"], 300)
    found, ids = timed(tokenizer, "hello there, world! 你好吗。 ja")
    assert [one.text for one in found] == ["hello", "there,", "world!", "你", "好", "吗。", "ja"]
    assert [one.spaced for one in found] == [True, True, True, True, False, False, True]
    for one, following in pairwise(found):
        assert one.start < one.end <= following.start
    # A comma is a token of its own, and no part of the word's time.
    comma = [tokenizer.decode(ids[: place + 1]) for place in range(len(ids))].index("hello there,")
    assert found[1].end == comma
    # Three bytes are a character: it lasts for three tokens.
    assert found[3].end - found[3].start in (3.0, 4.0)


def test_a_special_token_is_a_word_of_its_own():
    found, _ = timed(make_tokenizer(["hello there"], 300), "hello<|speaker|>there 好。<|speaker|>")
    assert [one.text for one in found] == ["hello", "<|speaker|>", "there", "好。", "<|speaker|>"]
    assert [one.spaced for one in found] == [True, False, False, True, False]
    assert found[0].end <= found[1].start < found[1].end <= found[2].start


def test_words_of_word_tokens():
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1, ".": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    found, _ = timed(tokenizer, "two one two .")
    assert [(one.text, one.start, one.end) for one in found] == [
        ("two", 0, 1), ("one", 1, 2), ("two", 2, 3), (".", 3, 4),
    ]  # fmt: skip
    assert timed(tokenizer, "") == ([], [])
