"""Datasets at another speed: what is heard, what is planned, and which texts cannot be."""

import json
import math
from dataclasses import replace

import pytest
import soundfile
import torch

from afn_model.audio.frames import SAMPLE_RATE, audio_tokens
from afn_model.data.forecast import forecast
from afn_model.data.index import build
from afn_model.data.loader import DataConfig, Loader
from afn_model.data.plan import Blend, plan_chunk
from afn_model.data.records import Sample
from afn_model.data.speed import StatesTimesError, at_speed, checked_speed, sample_at_speed
from afn_model.prompt.conversation import Turn
from tests import tiny

RECORDS = 12


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Recordings of 0.3 to 1.4 s that are 0.04 s longer than the index says."""
    folder, lines = tmp_path_factory.mktemp("speed"), []
    for i in range(RECORDS):
        seconds = 0.3 + 0.1 * i
        pcm = 0.1 * torch.randn(round((seconds + 0.04) * SAMPLE_RATE), generator=torch.Generator().manual_seed(i))
        soundfile.write(folder / f"{i}.wav", pcm.numpy(), SAMPLE_RATE)
        said = [{"from": "human", "value": "<sound>\nWhat is said?"}, {"from": "gpt", "value": "A dog barks."}]
        lines.append({"id": str(i), "sound": f"{i}.wav", "duration": round(seconds, 2), "conversations": said})
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build(path)
    return path


def config(corpus, speed, **changes):
    fields = {"seed": 0, "context": 256, "bins": 2, "max_seconds": 30.0, "chunk": 64} | changes
    return DataConfig({"c": corpus}, {"c": 1}, speeds={"c": speed} if speed != 1 else {}, **fields)


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1, 1.999])
def test_every_frequency_is_multiplied_by_the_speed(speed):
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(SAMPLE_RATE) / SAMPLE_RATE)
    found = at_speed(tone, speed)
    assert len(found) == math.ceil(SAMPLE_RATE / speed)
    inside = found[2000:-2000] * torch.hann_window(len(found) - 4000)
    peak = int(torch.fft.rfft(inside, 1 << 18).abs().argmax()) * SAMPLE_RATE / (1 << 18)
    assert peak == pytest.approx(1000 * speed, abs=0.2)
    assert found[2000:-2000].abs().max() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1, 2.0])
def test_the_plan_counts_what_is_heard(corpus, processor, speed):
    loader = Loader(config(corpus, speed), processor)
    plan = plan_chunk(loader.blend, loader.config, processor, 0)
    most = dict(zip(plan.records.tolist(), plan.tokens.tolist(), strict=True))
    heard = {}
    for step in loader:
        for micro in step.micro:
            assert not micro.bad
            for sample, samples in zip(micro.samples, micro.batch.samples.tolist(), strict=False):
                heard[int(sample.id)] = samples
        if step.seen >= RECORDS:
            break
    for i in range(RECORDS):
        assert heard[i] == math.ceil(round((0.34 + 0.1 * i) * SAMPLE_RATE) / speed)
        tokens = processor.text_tokens(loader.blend.sample(0, i).turns, training=True) + audio_tokens(heard[i])
        assert 0 <= most[i] - tokens <= 1


def test_a_copy_is_cut_at_its_own_length_and_counted_in_the_forecast(corpus, processor):
    found = {}
    for speed in (1.0, 0.5):
        step = next(iter(Loader(config(corpus, speed, max_seconds=1.0, bins=12), processor)))
        assert max(count for micro in step.micro for count in micro.batch.samples.tolist()) == SAMPLE_RATE
        options = {"context": 256, "max_audio": 1.0, "batch_tokens": 512, "speeds": {"c": speed}}
        found[speed] = step.cut, forecast({"c": corpus}, {"c": 1}, processor, **options)
    assert (found[1.0][0], found[0.5][0]) == (5, 10)
    assert found[0.5][1].hours == pytest.approx(2 * found[1.0][1].hours)
    assert found[0.5][1].long_records == 9
    assert found[0.5][1].tokens_per_epoch > found[1.0][1].tokens_per_epoch


def test_other_speeds_are_other_data(corpus):
    prints = [Blend(config(corpus, speed)).fingerprint() for speed in (1, 0.9, 1.1)]
    assert len({one["c"] for one in prints}) == 3


def sample(text):
    return Sample("a", [Turn("user", ("What is said?",)), Turn("assistant", (text,))], 10.0)


def test_times_move_with_what_they_name():
    found = sample_at_speed(sample("<|0.00|> hi <|1.20|><|20.02|> ho at 10:30 for 10 seconds <|27.00|>"), 0.9)
    assert found.turns[1].text == "<|0.00|> hi <|1.34|><|22.24|> ho at 10:30 for 10 seconds <|30.00|>"
    assert (found.seconds, found.speed) == (10 / 0.9, 0.9)
    assert sample_at_speed(sample("It barks at 3.2 s."), 1.0).turns[1].text == "It barks at 3.2 s."


@pytest.mark.parametrize("text", ["It barks at 3.2 s.", "at 12.50 seconds", "[00:12] hello", "1:05.2", "<|27.50|> end"])
def test_texts_that_would_be_wrong_are_left_out_and_counted(tmp_path, processor, text):
    with pytest.raises(StatesTimesError):
        sample_at_speed(sample(text), 0.9)
    path, lines = tmp_path / "t.jsonl", []
    for i, answer in enumerate((text, "A dog barks.")):
        said = [{"role": "user", "content": "What is said?"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"id": str(i), "messages": said}) + "\n")
    path.write_text("".join(lines))
    build(path)
    step = next(iter(Loader(config(path, 0.9), processor)))
    dropped = [one for micro in step.micro for one in micro.dropped]
    assert [name for name, _ in dropped] == ["c[0]"]
    assert "0.9" in dropped[0][1]
    assert [one.id for micro in step.micro for one in micro.samples] == ["1"]
    strict = replace(config(path, 0.9), on_long="error")
    with pytest.raises(ValueError, match=r"^c\[0\]: [^\n]*0\.9[^\n]*$"):
        next(iter(Loader(strict, processor)))


@pytest.mark.parametrize("wrong", [0.4, 2.1, 0.9995, "fast", True, None, math.nan])
def test_speeds_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"^speed is .*; a number from 0\.5 to 2"):
        checked_speed(wrong, "speed")
