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
