"""Windows are encoded once, kept while in use, and give what the network computes of them itself."""

import random
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch

from afn_model.audio.digests import window_digest
from afn_model.infer.audio_cache import AudioCache
from afn_model.network.network import Network
from afn_model.prompt.batch import Prepared, _pack
from tests.budget import assert_same_but_rounding
from tests.orders import in_orders
from tests.tiny import config, noise

SAMPLES = (5_000, 321, 9_777, 5_000, 960)
MUCH = 1 << 30


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Network(config()).eval()


def window(seed: int, samples: int = 5_000) -> torch.Tensor:
    return torch.from_numpy(noise(samples / 16_000, seed)).float()[:samples]


def several() -> list[torch.Tensor]:
    return [window(seed, samples) for seed, samples in enumerate(SAMPLES)]


def packed(clips, dtype=torch.float32):
    return _pack([Prepared(torch.tensor([0]), None, clips)], dtype)


def samples_of(rows) -> list[int]:
    return [len(row) for row in rows]


class Forwards:
    """Tokens' windows in every forward of the encoder; with ``fail`` that one ends in an error."""

    def __init__(self, model, fail=None):
        self.sizes, self.fail, self.model = [], fail, model

    def __enter__(self):
        self.hook = self.model.encoder.register_forward_pre_hook(self.note)
        return self

    def note(self, module, given):
        if len(self.sizes) == self.fail:
            self.fail = None
            raise RuntimeError("out of memory")
        self.sizes.append(len(given[1].tokens))

    def __exit__(self, *_):
        self.hook.remove()


def test_windows_are_given_padded_one_after_another_or_as_a_list(model):
    rows = several()
    expected = [window_digest(row) for row in rows]
    cache, padded = AudioCache(model, capacity=MUCH), packed(rows).pcm
    for windows in (rows, torch.cat(rows), padded):
        assert cache.add(windows, SAMPLES) == expected
    assert cache.windows_reused == 10
    assert cache.add(padded, SAMPLES, expected) == expected


def test_features_and_embeddings_are_those_of_the_network(model):
    rows = several()[:3]
    cache, batch = AudioCache(model, capacity=MUCH, together=2), packed(rows)
    digests = cache.add(rows, SAMPLES[:3])
    cache.encode(digests)
    found = [cache.embeddings(*at) for at in zip(digests, (0, 1, 0), strict=True)]
    with torch.no_grad():
        expected = in_orders(lambda: model.project(*model.encode_batch(batch), [2, 1]))
    assert_same_but_rounding(torch.cat(found), expected)
    assert (found[1] - cache.embeddings(digests[1], 0)).abs().max() > 1e-3, "the place of a window is not heard"


def test_together_only_changes_rounding_and_deterministic_nothing(model):
    rows, found = several(), {}
    for neighbours in ([0], [0, 2], [4, 0, 1, 2, 3]):
        for deterministic in (False, True):
            cache = AudioCache(model, capacity=MUCH, deterministic=deterministic)
            cache.encode(cache.add(given := [rows[i] for i in neighbours], samples_of(given)))
            found.setdefault(deterministic, []).append(cache.embeddings(window_digest(rows[0]), 3))
    first, *others = found[True]
    assert all(torch.equal(first, other) for other in others)
    with torch.no_grad():
        alone = packed([rows[0]])

        def expected():
            features, tokens = model.encode_batch(alone)
            return model.adapt(features, torch.full((tokens[0],), 3), torch.arange(tokens[0]))

        orders = in_orders(expected)
    for one in found[False]:
        assert_same_but_rounding(one, orders)


def test_each_window_is_encoded_once_at_most_so_many_in_a_forward(model):
    rows = several()
    whole = (rows[0] * 32768).round().to(torch.int16)
    cache = AudioCache(model, capacity=MUCH, together=3)
    digests = cache.add([*rows, rows[1], whole], [*SAMPLES, SAMPLES[1], len(whole)])
    assert cache.missing(digests) == list(dict.fromkeys(digests))
    with Forwards(model) as forwards:
        cache.encode(digests)
        cache.encode(digests)
    # int16 samples have another scale and cannot be in one forward with float32.
    assert sorted(forwards.sizes) == [1, 2, 3]
    assert (cache.windows_encoded, cache.windows_reused, cache.missing(digests)) == (6, 1, [])
    with Forwards(model) as forwards:
        one = AudioCache(model, capacity=MUCH, deterministic=True)
        one.encode(one.add(rows, SAMPLES))
    assert forwards.sizes == [1] * 5


def test_an_error_within_leaves_what_was_computed(model):
    rows = several()
    cache = AudioCache(model, capacity=MUCH, together=2)
    digests = cache.add(rows, SAMPLES)
    with Forwards(model, fail=1), pytest.raises(RuntimeError, match="out of memory"):
        cache.encode(digests)
    assert cache.missing(digests) == digests[2:]
    assert (cache.windows_encoded, cache.bytes) == (2, 4 * 32 * (8 + 1))
    cache.encode(digests)
    assert (cache.windows_encoded, cache.missing(digests)) == (5, [])
    cache.release(digests)


def test_what_the_caller_writes_later_changes_nothing(model):
    row = window(0)
    cache, expected = AudioCache(model, capacity=MUCH), AudioCache(model, capacity=MUCH)
    digests = cache.add([row], [len(row)])
    expected.encode(expected.add([row.clone()], [len(row)]))
    row.zero_()
    cache.encode(digests)
    assert torch.equal(cache.embeddings(digests[0], 0), expected.embeddings(digests[0], 0))


def test_known_features_are_taken_as_they_are(model):
    rows, width = several()[:2], model.config.audio.width
    cache = AudioCache(model, capacity=MUCH)
    digests = cache.add(rows, SAMPLES[:2])
    with pytest.raises(ValueError, match=r"must be \[8, 32\], got \[7, 32\]"):
        cache.put(digests[0], torch.zeros(7, width))
    cache.put(digests[0], features := torch.randn(8, width))
    with Forwards(model) as forwards:
        cache.encode(digests)
    assert forwards.sizes == [1]
    cache.put(digests[0], torch.zeros(8, width))
    frame = torch.arange(8)
    with torch.no_grad():
        assert torch.equal(cache.embeddings(digests[0], 2), model.adapt(features, torch.full_like(frame, 2), frame))
    cache.release(digests)
    cache.clear()
    assert cache.bytes == 0
    assert cache.missing(cache.add(rows, SAMPLES[:2])) == digests


def test_wrong_windows_take_no_reference(model):
    cache, row = AudioCache(model, capacity=0), window(0)
    for windows, samples, digests, says in (
        ([row, row[:320]], [5_000, 320], None, "must have 321 to 480000 samples, got 320"),
        ([row, row.double()], [5_000, 5_000], None, "float32 or int16, got torch.float64"),
        ([row, row], [5_000], None, "2 audio windows were given with the samples of 1"),
        ([row, row[:400]], [5_000, 5_000], None, "window of 400 samples was given for one of 5000"),
        (torch.cat([row, row]), [5_000, 4_000], None, "windows of 9000 samples were given with 10000"),
        ([row, row], [5_000, 5_000], [b"1"], "1 digests for 2 audio windows"),
    ):
        with pytest.raises(ValueError, match=says):
            cache.add(windows, samples, digests)
    with pytest.raises(AssertionError, match="not held"):
        cache.missing([window_digest(row)])
    held = cache.add([row], [5_000])
    for wrong in (lambda: cache.release(held * 2), cache.clear, lambda: cache.embeddings(held[0], 0)):
        with pytest.raises(AssertionError):
            wrong()
    assert cache.missing(held) == held


def test_what_is_in_use_is_kept_and_the_rest_by_last_use(model):
    """A long random walk against a plain account of what has to be there."""
    rng, rows = random.Random(1), [window(seed, 640 * (1 + seed % 4) + 1) for seed in range(12)]
    digests = list(map(window_digest, rows))
    size = {digest: 4 * 32 * (1 + seed % 4) for seed, digest in enumerate(digests)}
    cache = AudioCache(model, capacity=4 * 32 * 9, together=2)
    held, idle, encoded, evicted, widest = Counter(), OrderedDict(), set(), 0, 0
    for _ in range(300):
        some = rng.sample(range(12), rng.randint(1, 3))
        if rng.random() < 0.5 or not held:
            cache.add([rows[i] for i in some], samples_of([rows[i] for i in some]), [digests[i] for i in some])
            held.update(digests[i] for i in some)
            for i in some:
                idle.pop(digests[i], None)
            if rng.random() < 0.7:
                cache.encode(digests[i] for i in some)
                encoded |= {digests[i] for i in some}
        else:
            back = rng.sample(sorted(held.elements()), min(held.total(), rng.randint(1, 6)))
            cache.release(back)
            held -= Counter(back)
            idle |= {digest: None for digest in dict.fromkeys(back) if digest not in held and digest in encoded}
        while sum(map(size.get, encoded)) > cache.capacity and idle:
            encoded.discard(idle.popitem(last=False)[0])
            evicted += 1
        assert cache.bytes == sum(map(size.get, encoded))
        assert cache.over == max(0, cache.bytes - cache.capacity)
        assert cache.windows_evicted == evicted
        assert set(cache.missing(held)) == set(held) - encoded
        for digest in idle:
            assert cache.missing([digest]) == []
        assert set(cache._windows) == set(held) | encoded
        widest = max(widest, cache.over)
    assert evicted > 20
    assert widest > 0


class HalfAnHour:
    """As large as the released encoder's output in bfloat16, without values."""

    class config:
        class audio:
            width = 1280

    def __init__(self):
        self.sizes = []

    def encode_batch(self, batch):
        assert len(batch.pcm) == int(batch.samples.sum())
        tokens = batch.window_tokens.tolist()
        self.sizes.append(len(tokens))
        return torch.empty(sum(tokens), 1280, dtype=torch.bfloat16, device="meta"), tokens


def test_half_an_hour_is_encoded_once_and_a_growing_recording_by_its_new_windows():
    model: Any = HalfAnHour()
    cache = AudioCache(model, capacity=116_000_000)
    row, digests = torch.zeros(480_000, dtype=torch.int16), [bytes([i]) * 32 for i in range(61)]

    def ask(windows: int) -> None:
        held = cache.add([row] * windows, [480_000] * windows, digests[:windows])
        assert sum(window.pcm is not None for window in cache._windows.values()) == len(cache.missing(held))
        cache.encode(held)
        cache.release(held)

    ask(60)
    assert (cache.bytes, model.sizes) == (60 * 750 * 1280 * 2, [4] * 15)
    ask(60)
    assert (cache.windows_encoded, cache.windows_reused) == (60, 60)
    ask(61)  # of which 60 have room when it is answered
    assert (cache.windows_encoded, cache.windows_evicted, cache.over) == (61, 1, 0)
    assert all(window.pcm is None for window in cache._windows.values())
