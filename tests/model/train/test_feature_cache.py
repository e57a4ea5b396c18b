"""Kept features of a frozen encoder: a function of the recording alone, never stale, within their limit."""

import warnings
from dataclasses import replace

import pytest
import torch

from afn_model.data.loader import GlobalBatch, MicroBatch, Position
from afn_model.prompt.batch import Batch
from afn_model.train.feature_cache import FeatureCache, audios
from afn_model.train.flops import forward_flops
from afn_model.train.sft import SFT, select
from tests.budget import assert_same_but_rounding
from tests.orders import in_orders
from tests.tiny import noise, tiny

CLIPS = {"a": noise(1.3, 1), "b": noise(2.1, 2), "c": noise(0.4, 3), "long": noise(31.0, 4)}


@pytest.fixture(scope="module")
def parts():
    model, processor = tiny()
    processor.pcm_dtype = torch.int16
    select(model, ("adaptor",))
    return model, processor


def packed(processor, *names: str) -> Batch:
    talks = [
        [
            {"role": "user", "content": [{"type": "audio", "audio": CLIPS[name]}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "yes"},
        ]
        for name in names
    ]
    return processor(talks, training=True)


def test_the_encoders_features_but_for_rounding(parts):
    model, processor = parts
    batch = packed(processor, "a", "long", "b", "a")
    features, tokens = FeatureCache(model)(batch)
    assert tokens == model.encode_batch(batch)[1]
    assert len(tokens) == 5, "the long one has two windows"
    assert_same_but_rounding(features, in_orders(lambda: model.encode_batch(batch)[0], 4))
    assert not features.requires_grad


def test_a_recording_has_the_same_bits_in_every_company(parts):
    model, processor = parts
    alone = {name: FeatureCache(model)(packed(processor, name))[0] for name in CLIPS}
    cache = FeatureCache(model)
    for names in (("a", "long", "b"), ("c", "b", "b", "a"), ("long", "c")):
        features, _ = cache(packed(processor, *names))
        assert torch.equal(features, torch.cat([alone[name] for name in names]))
    assert (cache.misses, cache.hits) == (4, 5)


def test_nothing_is_encoded_twice_within_the_limit(parts, monkeypatch):
    model, processor = parts
    cache, encoded = FeatureCache(model), []
    encode = type(model).encode_batch
    monkeypatch.setattr(type(model), "encode_batch", lambda self, batch: encoded.append(1) or encode(self, batch))
    first, _ = cache(packed(processor, "a", "b", "a"))
    again, _ = cache(packed(processor, "b", "a"))
    assert len(encoded) == 2
    assert cache.bytes == sum(x.nbytes for x in cache.kept.values())
    rows = {name: len(FeatureCache(model)(packed(processor, name))[0]) for name in "ab"}
    assert torch.equal(again, torch.cat((first[rows["a"] : rows["a"] + rows["b"]], first[: rows["a"]])))
    lengths = [length for one in audios(packed(processor, "a", "b", "a")) for length in one.mel_lengths.tolist()]
    expected = forward_flops(model.config, [], 0, lengths)
    assert cache.saved_flops() == pytest.approx(sum(v for k, v in expected.items() if k.startswith("encoder_")))
    assert cache.saved_flops() == 0


def test_the_least_recently_used_leave_first(parts):
    model, processor = parts
    size = {name: FeatureCache(model)(packed(processor, name))[0].nbytes for name in "abc"}
    cache = FeatureCache(model, limit_bytes=size["a"] + size["b"])
    for name in "abac":
        cache(packed(processor, name))
        assert cache.bytes <= cache.limit_bytes
    assert cache.misses == 3
    cache(packed(processor, "a"))
    assert cache.misses == 3, "it was used after b"
    cache(packed(processor, "b"))
    assert cache.misses == 4
    nothing = FeatureCache(model, limit_bytes=0)
    assert torch.equal(nothing(packed(processor, "c", "c"))[0], nothing(packed(processor, "c", "c"))[0])
    assert (nothing.bytes, len(nothing.kept)) == (0, 0)


def test_equal_samples_of_another_length_are_another_recording(parts):
    model, processor = parts
    batch = packed(processor, "a")
    cut = replace(batch, samples=batch.samples - 3200)
    cache = FeatureCache(model)
    assert len(cache(batch)[0]) == len(cache(cut)[0]) + 5
    assert cache.misses == 2


def test_never_stale():
    model, processor = tiny(seed=3)
    processor.pcm_dtype = torch.int16
    batch, cache = packed(processor, "a"), FeatureCache(model)
    with pytest.raises(ValueError, match="this one is being trained"):
        cache(batch)
    select(model, ("adaptor",))
    before, _ = cache(batch)
    with torch.no_grad():
        model.encoder.conv1.weight.mul_(1.5)
    after, _ = cache(batch)
    assert cache.misses == 2
    assert torch.equal(after, FeatureCache(model)(batch)[0])
    assert not torch.equal(after, before)


def test_files_serve_the_next_run(parts, tmp_path):
    model, processor = parts
    first = FeatureCache(model, folder=tmp_path)
    expected, _ = first(packed(processor, "a", "b"))
    second = FeatureCache(model, folder=tmp_path, limit_bytes=0)
    assert torch.equal(second(packed(processor, "a", "b"))[0], expected)
    assert (second.misses, second.hits) == (0, 2)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:50])
    third = FeatureCache(model, folder=tmp_path)
    assert torch.equal(third(packed(processor, "a", "b"))[0], expected)
    assert (third.misses, third.hits) == (1, 1), "a broken file is made again"
    other, _ = tiny(seed=5)
    select(other, ("adaptor",))
    fourth = FeatureCache(other, folder=tmp_path)
    fourth(packed(processor, "a"))
    assert fourth.misses == 1, "another encoder has other features"


def test_a_folder_that_cannot_be_written_costs_only_its_use(parts, tmp_path):
    model, processor = parts
    (tmp_path / "file").write_text("")
    cache = FeatureCache(model, folder=tmp_path / "file")
    with pytest.warns(UserWarning, match="no more features are written"):
        found, _ = cache(packed(processor, "a"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache(packed(processor, "b"))
    assert torch.equal(found, FeatureCache(model)(packed(processor, "a"))[0])


def test_a_folder_in_the_place_of_a_file_costs_only_its_use(parts, tmp_path):
    model, processor = parts
    FeatureCache(model, folder=tmp_path)(packed(processor, "a"))
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="not a regular file; no more features are written"):
        FeatureCache(model, folder=tmp_path)(packed(processor, "a"))


def test_sft_with_kept_features(parts):
    model, processor = parts
    plain, kept = SFT(model), SFT(model, features=FeatureCache(model))
    text = processor([[{"role": "user", "content": "two?"}, {"role": "assistant", "content": "yes"}]], training=True)
    for batch, axes in ((packed(processor, "a", "b"), ["x", "y"]), (text, ["x"])):
        step = GlobalBatch([MicroBatch(batch, [], axes)], Position(), 0)
        for detailed in (False, True):
            ((one,),), ((other,),) = plain.updates(step, detailed=detailed), kept.updates(step, detailed=detailed)
            assert_same_but_rounding(other(), in_orders(one))
    ((one,),) = kept.updates(GlobalBatch([MicroBatch(packed(processor, "a"), [], ["x"])], Position(), 0))
    one().backward()
    assert kept.features.misses == 2
    assert all(p.grad is not None for p in model.adaptor.parameters())
    model.zero_grad()


def test_a_limit_below_zero(parts):
    with pytest.raises(ValueError, match="limit_bytes -1"):
        FeatureCache(parts[0], limit_bytes=-1)
