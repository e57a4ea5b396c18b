"""Keys and values of sequences that grow."""

import torch

from afn_model.config import TextConfig
from afn_model.network.kv_cache import KVCache


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
