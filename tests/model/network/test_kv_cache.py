"""Keys and values of sequences that grow."""

import torch

import afn_kernels as ak
from afn_model.audio.frames import SAMPLE_RATE, audio_tokens
from afn_model.config import TextConfig, preset
from afn_model.network.kv_cache import PAGE, KVCache, SharedKVCache
from tests.budget import assert_within


def test_selected_sequences_move_up_in_place():
    config = TextConfig(vocab_size=8, width=16, layers=2, heads=2, kv_heads=1, ffn=16)
    cache = KVCache(config, 6, 5, torch.float32, torch.device("cpu"))
    cache.kv.normal_()
    cache.lengths = torch.arange(1, 7)
    before, memory = cache.kv.clone(), cache.kv.data_ptr()
    for kept, left in (([0, 2, 5], [0, 2, 5]), ([1, 2], [2, 5]), ([1], [5])):
        cache.select(kept)
        assert torch.equal(cache.kv, before[:, :, left])
        assert cache.lengths.tolist() == [i + 1 for i in left]
        assert cache.kv.data_ptr() == memory
    cache.advance(None)
    assert cache.slot_mapping(0)["slots"].tolist() == [6]


def test_a_sequence_that_goes_on_keeps_what_it_holds():
    config = TextConfig(vocab_size=8, width=16, layers=2, heads=2, kv_heads=1, ffn=16)
    cache = KVCache(config, 1, 6, torch.float32, torch.device("cpu"))
    cache.advance(torch.tensor([0, 5], dtype=torch.int32))
    assert cache.slots.tolist() == [0, 1, 2, 3, 4]
    cache.kv.normal_()
    before = cache.kv.clone()
    cache.resume(3, 4)
    assert cache.kv.shape[3] == 6, "there was room"
    cache.resume(3, 9)
    assert cache.kv.shape[3] == 9
    assert torch.equal(cache.kv[:, :, :, :3], before[:, :, :, :3])
    cache.advance(torch.tensor([0, 4], dtype=torch.int32))
    assert (cache.slots.tolist(), cache.lengths.tolist()) == ([3, 4, 5, 6], [7])
    cache.advance(None)
    assert (cache.slots.tolist(), cache.lengths.tolist()) == ([7], [8])


def test_a_prefill_behind_several_sequences():
    config = TextConfig(vocab_size=8, width=16, layers=1, heads=2, kv_heads=1, ffn=16)
    cache = KVCache(config, 2, 10, torch.float32, torch.device("cpu"))
    cache.advance(torch.tensor([0, 2, 5], dtype=torch.int32))
    assert cache.slots.tolist() == [0, 1, 10, 11, 12]
    cache.advance(torch.tensor([0, 1, 3], dtype=torch.int32))
    assert (cache.slots.tolist(), cache.lengths.tolist()) == ([2, 13, 14], [3, 5])


PROMPTS, SAMPLES, NEW = (PAGE + 3, 2 * PAGE, 5), 3, PAGE + 2


def shared() -> tuple[SharedKVCache, list[torch.Tensor], list[list[torch.Tensor]]]:
    """A cache after prefill and NEW steps, the keys of each prompt, and those of each answer."""
    config = TextConfig(vocab_size=8, width=16, layers=2, heads=2, kv_heads=1, ffn=16)
    cache = SharedKVCache(config, list(PROMPTS), SAMPLES, NEW, torch.float32, torch.device("cpu"))
    cache.kv.fill_(torch.nan)
    prompts = [torch.randn(2, 2, length, 1, 8) for length in PROMPTS]
    cache.advance(torch.tensor([0, *PROMPTS], dtype=torch.int32).cumsum(0, dtype=torch.int32))
    cache.kv.flatten(2, 3)[:, :, cache.slots] = torch.cat(prompts, 2)
    cache.branch()
    answers = [[torch.randn(2, 2, NEW, 1, 8) for _ in range(SAMPLES)] for _ in PROMPTS]
    for step in range(NEW):
        cache.advance(None)
        assert len(set(cache.slots.tolist())) == len(PROMPTS) * SAMPLES, "each answer has a place of its own"
        coming = [answer[:, :, step] for group in answers for answer in group]
        cache.kv.flatten(2, 3)[:, :, cache.slots] = torch.stack(coming, 2)
    return cache, prompts, answers


def held(cache: SharedKVCache, row: int) -> torch.Tensor:
    """Keys and values of a sequence as its row of the table has them."""
    return cache.kv[:, :, cache.table[row].long()].flatten(2, 3)[:, :, : cache.lengths[row]]


def test_answers_share_their_prompts_pages():
    cache, prompts, answers = shared()
    rows = [(p, s) for p in range(len(PROMPTS)) for s in range(SAMPLES)]
    for row, (p, s) in enumerate(rows):
        assert torch.equal(held(cache, row), torch.cat((prompts[p], answers[p][s]), 2)), (p, s)
    full = [length // PAGE for length in PROMPTS]
    for p, pages in enumerate(full):
        tables = cache.table.view(len(PROMPTS), SAMPLES, -1)[p]
        assert (tables[:, :pages] == tables[0, :pages]).all()
        assert len(set(tables[:, pages].tolist())) == SAMPLES

    memory, kept = cache.kv.data_ptr(), [1, 2, 6, 8]  # two answers to the first prompt, two to the last
    cache.select(kept)
    assert cache.kv.data_ptr() == memory
    assert cache.pages()["prefix_lengths"].tolist() == [PROMPTS[0], PROMPTS[2]]
    for row, before in enumerate(kept):
        p, s = rows[before]
        assert torch.equal(held(cache, row), torch.cat((prompts[p], answers[p][s]), 2))
    cache.select([0, 2])
    assert cache.lengths.tolist() == [PROMPTS[0] + NEW, PROMPTS[2] + NEW]


def test_attention_over_pages_is_attention_over_copies():
    cache, prompts, answers = shared()
    q = torch.randn(len(PROMPTS) * SAMPLES, 1, 2, 8)
    found = ak.decode_attention(q, *cache.layer(1), cache.lengths, **cache.pages())
    longest = int(cache.lengths.max())
    copies = torch.zeros(2, len(q), longest, 1, 8)
    for row in range(len(q)):
        whole = torch.cat((prompts[row // SAMPLES], answers[row // SAMPLES][row % SAMPLES]), 2)[1]
        copies[:, row, : whole.shape[1]] = whole
    expected = ak.decode_attention(q.double(), *copies.double(), cache.lengths)
    # Scores are sums of 8 products and outputs weighted means of values, each of a few roundings in float32; a score's
    # error e moves the mean by 2 e times the largest value.
    eps, value = torch.finfo(torch.float32).eps, float(copies.abs().max())
    score = float(q.abs().max()) * value * 8 * 8**-0.5
    assert_within(found, expected, eps * value * (2 * 8 * score + longest))


def test_bytes_of_a_ten_minute_prompt_with_eight_answers():
    """At full size: 57,344 bytes a token, the prompt once, and less than a page more for it and for each answer."""
    text = preset("af-next").text
    prompt, samples, new = audio_tokens(600 * SAMPLE_RATE) + 300, 8, 1024
    cache = SharedKVCache(text, [prompt], samples, new, torch.bfloat16, torch.device("meta"))
    token = 2 * text.layers * text.kv_heads * text.head_dim * 2
    assert token == 57_344
    found = cache.kv.numel() * 2
    assert token * (prompt + samples * new) <= found <= token * (prompt + samples * (new + 2 * PAGE))
    assert found < 1.45e9
    assert token * samples * (prompt + new) > 7.4e9, "a copy for each answer"
    before = cache.kv
    cache.lengths = torch.full((samples,), prompt + 1)
    cache.select(list(range(4)))
    assert cache.kv is before, "dropping answers copies nothing"
