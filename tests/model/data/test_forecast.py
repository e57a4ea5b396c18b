"""Forecasts: what is said of a stage is what the loader then gives."""

import itertools
import json
from collections import Counter

import pytest

from afn_model.data.forecast import forecast
from afn_model.data.index import build
from afn_model.data.loader import DataConfig, Loader
from afn_model.data.plan import Blend, plan_chunk
from tests import tiny


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


def record(seconds, words=3):
    if not seconds:
        messages = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "One " * words}]
        return {"messages": messages}
    messages = [
        {"role": "user", "content": "<sound>\nWhat?"},
        {"role": "assistant", "content": "A dog barks. " * words},
    ]
    return {"audios": [{"path": "a.wav"}], "duration": seconds, "messages": messages}


def write(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    build(path)
    return path


def planned_steps(datasets, blend, processor, *, epochs, context, bins, max_audio, chunk):
    """Optimiser steps of so many epochs, by planning all of them."""
    config = DataConfig(datasets, blend, 0, context, bins, max_audio, chunk)
    order = Blend(config)
    inside = itertools.takewhile(lambda n: order.span(n).start < epochs * len(order.order), itertools.count())
    planned = Counter()
    for number in inside:
        planned[order.span(number).start // len(order.order)] += plan_chunk(order, config, processor, number).bins
    return sum(-(-count // bins) for count in planned.values())


def test_counts_hours_and_what_is_long(tmp_path, processor):
    talks = write(tmp_path / "t.jsonl", [record(10.0)] * 56 + [record(120.0)] * 4 + [record(0)])
    found = forecast({"t": talks}, {"t": 1.0}, processor, context=2048, max_audio=30.0, epochs=3, batch_tokens=131_072)
    assert (found.records, found.records_with_audio) == (61, 60)
    assert found.hours == pytest.approx((560 + 480) / 3600)
    assert (found.samples_per_epoch, found.samples, found.epochs) == (61, 183, 3)
    assert (found.long_records, found.long_share) == (4, 4 / 60)
    assert found.lost_share == 4 * 90 / 1040
    assert (found.steps_per_epoch, found.optimiser_steps) == (1, 3)
    lengths = [plan.tokens.sum() for plan in [plan_chunk(*_blend(talks, 30.0), processor, 0)]]
    assert found.tokens_per_epoch == lengths[0], "of a small corpus all records are read"
    assert str(found).splitlines() == [
        "61 records, 60 with audio, 0.29 hours",
        f"an epoch: 61 samples, about {found.tokens_per_epoch:,} tokens, 1 step of up to 131,072 tokens",
        f"the stage: 3 epochs, 183 samples, about {3 * found.tokens_per_epoch:,} tokens, "
        "3 optimiser steps of about 61 samples",
    ]
    few, long = found.warnings
    assert few.startswith("only 3 optimiser steps")
    assert long.startswith(
        "4 records (6.7% of those with audio) are longer than max_audio 30 s and are cut to it: 34.6%"
    )


def test_what_is_dropped_makes_no_tokens(tmp_path, processor):
    path = write(tmp_path / "t.jsonl", [record(1.0)] * 30 + [record(90.0)] * 10)
    short = write(tmp_path / "s.jsonl", [record(1.0)] * 30)
    options = {"context": 512, "max_audio": 30.0, "batch_tokens": 512}
    cut, dropped = (forecast({"t": path}, {"t": 1.0}, processor, on_long=what, **options) for what in ("cut", "drop"))
    alone = forecast({"t": short}, {"t": 1.0}, processor, **options)
    assert dropped.tokens_per_epoch == alone.tokens_per_epoch < cut.tokens_per_epoch
    assert (dropped.steps_per_epoch, dropped.samples_per_epoch) == (alone.steps_per_epoch, 40)
    assert (dropped.long_records, dropped.invalid) == (10, 0)
    assert "and are left out" in dropped.warnings[-1]


def _blend(path, max_audio):
    config = DataConfig({"t": path}, {"t": 1.0}, 0, 2048, 64, max_audio, 65_536)
    return Blend(config), config


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("chunk", [64, 65_536])
def test_steps_are_those_that_are_planned(tmp_path, processor, epochs, chunk):
    a = write(tmp_path / "a.jsonl", [record(0.5 + i % 7) for i in range(150)])
    b = write(tmp_path / "b.jsonl", [record(0, 1 + i % 9) for i in range(40)])
    datasets, blend = {"a": a, "b": b}, {"a": 1.0, "b": 2.5}
    found = forecast(
        datasets, blend, processor, context=256, max_audio=4.0, epochs=epochs, batch_tokens=1024, chunk=chunk
    )
    exact = planned_steps(datasets, blend, processor, epochs=epochs, context=256, bins=4, max_audio=4.0, chunk=chunk)
    chunks = epochs * -(-250 // min(chunk, 250))
    assert found.samples == epochs * 250
    assert abs(found.optimiser_steps - exact) <= chunks, "a chunk's bins are those of its share of the samples"


def test_what_cannot_be_used(tmp_path, processor):
    path = write(
        tmp_path / "c.jsonl",
        [record(1.0)] * 30
        + [record(None) | {"audios": ["a.wav"]} | {"messages": record(1.0)["messages"]}] * 5
        + [record(0, 2000)] * 3
        + [{"messages": []}] * 2,
    )
    found = forecast(
        {"c": path}, {"c": 2.0}, processor, context=256, max_audio=30.0, steps=7, batch_tokens=256, epochs=9
    )
    assert (found.no_duration, found.too_long, found.invalid) == (5, 3, 2)
    assert (found.optimiser_steps, found.samples_per_epoch) == (7, 80)
    assert 0 < found.epochs < 1
    assert [line.split()[0] for line in found.warnings] == ["only", "5", "about", "about"]


def test_prompts_and_a_blend_without_samples(tmp_path, processor):
    path = write(tmp_path / "c.jsonl", [record(0)] * 10)
    found = forecast({"c": path}, {"c": 1.0}, processor, context=256, max_audio=30.0, epochs=2, batch_prompts=4)
    assert (found.optimiser_steps, found.step_unit, found.step_size) == (6, "prompts", 4)
    steps = Loader(DataConfig({"c": path}, {"c": 1}, 0, 256, 4, 30.0, 65_536, prompts_only=True), processor)
    seen = [step.seen for step in itertools.islice(steps, 6)]
    assert seen == [4, 8, 10, 14, 18, 20]
    with pytest.raises(ValueError, match="the blend gives no samples"):
        forecast({"c": path}, {"c": 0.0}, processor, context=256, max_audio=30.0, batch_tokens=256)
    endless = forecast(
        {"c": path}, {"c": 1.0}, processor, context=256, max_audio=1.0, epochs=float("inf"), batch_tokens=256
    )
    assert (endless.epochs, endless.samples) == (float("inf"), 10), "only a clock ends it"
    assert endless.warnings == []
    assert len(str(endless).splitlines()) == 2


def test_a_large_corpus_is_estimated_from_a_part(tmp_path, processor, monkeypatch):
    monkeypatch.setattr("afn_model.data.forecast.READ", 50)
    path = write(tmp_path / "c.jsonl", [record(1.0 + i % 2) for i in range(1000)])
    found = forecast({"c": path}, {"c": 1.0}, processor, context=512, max_audio=1.5, batch_tokens=512)
    assert (found.records_with_audio, found.long_records, found.hours) == (1000, 500, 1500 / 3600)
    exact = forecast_of_all(path, processor, monkeypatch)
    config = DataConfig({"t": path}, {"t": 1.0}, 0, 512, 1, 1.5, 65_536)
    short, long = sorted(set(plan_chunk(Blend(config), config, processor, 0).tokens.tolist()))
    # Three standard deviations of the mean of 50 lengths that are one of two with even chances, times 1,000 samples.
    assert abs(found.tokens_per_epoch - exact.tokens_per_epoch) <= 1000 * 3 * (long - short) / 2 / 50**0.5


def forecast_of_all(path, processor, monkeypatch):
    monkeypatch.setattr("afn_model.data.forecast.READ", 1000)
    return forecast({"c": path}, {"c": 1.0}, processor, context=512, max_audio=1.5, batch_tokens=512)
