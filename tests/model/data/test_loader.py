"""The stream of global batches: the same for any ranks, workers and restarts, and it reports what it left out."""

import itertools
import json
import multiprocessing
import os
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.shards import ShardWriter
from afn_model.data.index import ENTRY, build, folder_of
from afn_model.data.loader import BadTally, DataConfig, GlobalBatch, Loader, MicroBatch, Position
from afn_model.data.plan import Blend, plan_chunk, question
from afn_model.prompt.batch import IGNORED
from tests import tiny

RATE = 16_000


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    build(path)
    return path


def talk(name, seconds, answer="A dog barks."):
    """A record of the public format."""
    messages = [{"from": "human", "value": "<sound>\nWhat is said?"}, {"from": "gpt", "value": answer}]
    return {"id": name, "sound": f"clips/{name}.wav", "duration": seconds, "conversations": messages}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two datasets: speech in the public format, and texts, pairs of recordings and tar members in ours."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    talks = []
    for i in range(40):
        seconds = round(float(rng.uniform(0.5, 4.0)), 2)
        tiny.record(folder / f"clips/t{i}.wav", seconds, i, rate=RATE if i % 3 else 22_050)
        talks.append(talk(f"t{i}", seconds, "A dog barks. " * (1 + i % 4)))
    mixed = []
    with ShardWriter(folder / "shards", "m", 200_000) as shards:
        for i in range(8):
            member = shards.add(f"{i}.wav", (folder / f"clips/t{i}.wav").read_bytes())
            mixed.append(
                {
                    "id": f"m{i}",
                    "axis": "multi_audio",
                    "audios": [{"path": member}, {"path": f"clips/t{i + 1}.wav", "start": 0.1, "end": 0.4}],
                    "duration": [talks[i]["duration"], 0.3],
                    "messages": [
                        {"role": "user", "content": "<sound-1> or <sound-2>: which is louder?"},
                        {"role": "assistant", "content": "The first."},
                    ],
                }
            )
            ask = [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "One two three."}]
            mixed.append({"id": f"x{i}", "axis": "text", "messages": ask})
    return {"talks": write(folder / "talks.jsonl", talks), "mixed": write(folder / "mixed.jsonl", mixed)}


def data_config(datasets, **changes):
    blend = {"talks": 1.0, "mixed": 1.5}
    return replace(DataConfig(datasets, blend, seed=5, context=512, bins=4, max_seconds=30.0, chunk=32), **changes)


def take(loader, count):
    """The first steps with all their micro-batches."""
    return [step for step in itertools.islice(loader, count) if step.micro]


def facts(step):
    """What a step holds, in numbers."""
    found = [step.position, step.seen]
    for micro in step.micro:
        found += [[sample.id for sample in micro.samples], micro.axes, micro.bad, micro.cut]
        if micro.batch is not None:
            tensors = {name: value for name, value in vars(micro.batch).items() if value is not None}
            found.append({name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in tensors.items()})
    return found


def test_steps_are_the_same_for_any_number_of_workers(datasets, processor, monkeypatch):
    inline = [facts(step) for step in take(Loader(data_config(datasets), processor), 6)]
    assert inline[-1][0].chunk >= 1, "more than a chunk"
    torch.manual_seed(0)
    before = torch.get_rng_state()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))  # or it warns of more workers than cores
    for workers in (1, 3):
        assert [facts(step) for step in take(Loader(data_config(datasets), processor, workers=workers), 6)] == inline
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers are used up"


def test_workers_leave_signals_to_the_trainer(datasets, processor):
    inline = [facts(step) for step in take(Loader(data_config(datasets), processor), 8)]
    others = multiprocessing.active_children()  # of loaders that earlier tests have not closed
    steps = iter(Loader(data_config(datasets), processor, workers=1))
    found = [facts(next(steps))]
    workers = [child for child in multiprocessing.active_children() if child not in others]
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert found + [facts(next(steps)) for _ in range(7)] == inline
    steps.close()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("dp_size", [2, 4])
def test_ranks_share_every_global_batch(datasets, processor, dp_size, prompts):
    config = data_config(datasets, prompts_only=prompts)
    whole = take(Loader(config, processor), 7)
    parts = [take(Loader(config, processor, dp_rank=r, dp_size=dp_size), 7) for r in range(dp_size)]
    for number, step in enumerate(whole):
        shares = [part[number] for part in parts]
        assert {(share.position, share.seen) for share in shares} == {(step.position, step.seen)}
        if prompts:  # one micro-batch a rank; its samples are dealt out
            ids = [[sample.id for one in share.micro for sample in one.samples] for share in shares]
            dealt = [one for row in itertools.zip_longest(*ids) for one in row if one is not None]
            assert dealt == [sample.id for one in step.micro for sample in one.samples]
        else:
            dealt = [one for row in zip(*(share.micro for share in shares), strict=True) for one in row]
            assert facts(GlobalBatch(dealt, step.position, step.seen)) == facts(step)
            assert {share.supervised for share in shares} == {step.supervised}
            filled = [sum(bool(one.samples) for one in share.micro) for share in shares]
            assert max(filled) - min(filled) <= 1, "a short step is short for all"


@pytest.mark.parametrize("prompts", [False, True])
def test_a_restart_at_any_step_goes_on_as_if_nothing_happened(datasets, processor, prompts):
    config = data_config(datasets, prompts_only=prompts, bins=3)
    whole = [facts(step) for step in take(Loader(config, processor), 12)]
    for number in range(10):
        again = take(Loader(config, processor, position=whole[number][0]), 2)
        assert [facts(step) for step in again] == whole[number + 1 : number + 3]


def test_every_sample_of_an_epoch_comes_once(datasets, processor):
    config = data_config(datasets, blend={"talks": 1, "mixed": 1}, chunk=28)
    loader = Loader(config, processor)
    assert loader.samples_per_epoch == 56
    seen = []
    for step in loader:
        seen += [sample.id for micro in step.micro for sample in micro.samples]
        for micro in step.micro:
            assert micro.batch.cu_seqlens[-1] == len(micro.batch.input_ids) <= 512
            assert len(micro.batch.cu_seqlens) - 1 == len(micro.axes)
        if step.position.chunk == 2:
            break
    assert step.seen == 56
    assert sorted(seen) == sorted([f"t{i}" for i in range(40)] + [f"{k}{i}" for i in range(8) for k in "mx"])


def test_labels_lie_on_what_the_assistant_says(datasets, processor):
    (step,) = take(Loader(data_config(datasets), processor), 1)
    (micro, *_) = step.micro
    assert micro.batch.pcm.dtype == torch.int16
    bounds = micro.batch.cu_seqlens.tolist()
    for sample, first, end in zip(micro.samples, bounds, bounds[1:], strict=False):
        labels = micro.batch.labels[first:end]
        said = "".join(turn.text for turn in sample.turns if turn.role == "assistant")
        assert processor.decode(labels[labels != IGNORED]) == said
        assert torch.equal(labels[labels != IGNORED], micro.batch.input_ids[first:end][labels != IGNORED])
        assert labels[labels != IGNORED][-1] == processor.token_id("<|im_end|>")


def test_a_short_last_step_has_empty_bins(datasets, processor):
    steps = take(Loader(data_config(datasets, bins=64), processor), 2)
    assert [step.position for step in steps] == [Position(2), Position(4)], "an epoch has two chunks"
    assert [step.seen for step in steps] == [64, 128]
    empty = steps[0].micro[-1]
    assert (empty.samples, empty.axes, empty.bad) == ([], [""], [])
    assert (len(empty.batch.input_ids), empty.batch.labels.tolist(), empty.batch.pcm) == (2, [IGNORED] * 2, None)


def test_prompts_come_in_the_order_of_the_stream(datasets, processor):
    config = data_config(datasets, prompts_only=True, bins=4)
    loader = Loader(config, processor)
    draws = [loader.blend.order[i] for i in range(32)]
    ids = [loader.blend.sample(draw.source, draw.record).id for draw in draws]
    steps = take(loader, 8)
    assert [[sample.id for micro in step.micro for sample in micro.samples] for step in steps] == [
        ids[i : i + 4] for i in range(0, 32, 4)
    ]
    for micro in (micro for step in steps for micro in step.micro):
        assert micro.batch is None
        for sample, made in zip(micro.samples, micro.prepared, strict=True):
            one = processor.prepare(question(sample.turns), add_generation_prompt=True, max_seconds=config.max_seconds)
            assert made.labels is None
            assert torch.equal(made.ids, one.ids)
            assert [len(clip) for clip in made.clips] == [len(clip) for clip in one.clips]
            assert all(clip.dtype == torch.int16 for clip in made.clips)


def test_long_recordings_are_cut_and_counted(tmp_path, processor):
    tiny.record(tmp_path / "clips/long.wav", 3.0)
    tiny.record(tmp_path / "clips/short.wav", 0.5)
    path = write(tmp_path / "c.jsonl", [talk("long", 3.0), talk("short", 0.5)])
    config = DataConfig({"c": path}, {"c": 1}, seed=0, context=1024, bins=1, max_seconds=1.0, chunk=2)
    loader = Loader(config, processor)
    (step,) = take(loader, 1)
    assert step.micro[0].cut == 1
    assert sorted(step.micro[0].batch.samples.tolist()) == [8_000, 16_000]
    context = processor.text_tokens(loader.blend.sample(0, 0).turns, training=True) + 50
    (step,) = take(Loader(replace(config, max_seconds=30.0, context=context, bins=2), processor), 1)
    assert sum(micro.cut for micro in step.micro) == 1, "what does not fit the context is cut too"
    assert context - 2 <= max(len(micro.batch.input_ids) for micro in step.micro) <= context


def broken(folder):
    """(dataset of 8 good and 8 bad records, what is wrong with the bad ones)."""
    for i in range(8):
        tiny.record(folder / f"clips/g{i}.wav", 1.0, i)
    tiny.record(folder / "clips/longer.wav", 1.2)
    nan = np.zeros(RATE, np.float32)
    nan[100] = np.nan
    soundfile.write(folder / "clips/nan.wav", nan, RATE, subtype="FLOAT")
    (folder / "clips/torn.flac").write_bytes(b"fLaC" + bytes(50))
    reasons = {
        "longer": "1.20 s of audio, but the index says 1.00 s",
        "nan": "NaN or Inf sample at",
        "gone": "no such file",
        "torn": "not audio",
        "places": "1 <sound> placeholders, but 2 audios",
        "wordy": "tokens of text, but the context is",
        "unmeasured": "no duration",
        "mute": "nothing to learn",
    }
    records = [talk(f"g{i}", 1.0) for i in range(8)] + [talk(name, 1.0) for name in reasons]
    by_id = {record["id"]: record for record in records}
    by_id["torn"]["sound"] = "clips/torn.flac"
    by_id["places"]["sound"] = ["clips/g0.wav", "clips/g1.wav"]
    by_id["wordy"] |= {"sound": "clips/g0.wav"} | {"conversations": talk("", 1, "A dog barks. " * 200)["conversations"]}
    by_id["unmeasured"]["duration"] = None
    del by_id["mute"]["conversations"][1]
    return write(folder / "broken.jsonl", records), reasons


def test_bad_samples_are_skipped_and_named(tmp_path, processor):
    path, reasons = broken(tmp_path)
    config = DataConfig({"b": path}, {"b": 1}, seed=0, context=256, bins=2, max_seconds=30.0, chunk=16, bad_share=0.5)
    for workers, dp_size in ((0, 1), (1, 1), (0, 2)):
        steps = []
        for dp_rank in range(dp_size):
            for step in Loader(config, processor, workers=workers, dp_rank=dp_rank, dp_size=dp_size):
                steps.append(step)
                if step.micro and step.position.chunk:
                    break
            assert step.seen == 16
        micro = [one for step in steps for one in step.micro]
        assert sorted(sample.id for one in micro for sample in one.samples) == [f"g{i}" for i in range(8)]
        bad = dict(pair for one in micro for pair in one.bad)
        assert len(bad) == sum(len(one.bad) for one in micro) == 8, "each is named once"
        for number, reason in enumerate(reasons.values()):
            assert reason in bad[f"b[{8 + number}]"]


def test_too_many_bad_records_stop_the_run(tmp_path, processor):
    for i in range(12):
        tiny.record(tmp_path / f"clips/g{i}.wav", 0.5, i)
    records = [talk(f"g{i}", 0.5) for i in range(12)] + [talk(f"gone{i}", 0.5) for i in range(11)]
    path = write(tmp_path / "c.jsonl", records)
    config = DataConfig({"b": path}, {"b": 1}, seed=0, context=256, bins=2, max_seconds=30.0, chunk=23, bad_share=0.4)
    with pytest.raises(
        ValueError, match=r"^1[01] of \d+ records are bad, more than 40\.00%: b\[\d+\]: .*; b\[.*; b\["
    ) as e:
        take(Loader(config, processor, workers=1), 100)
    assert "\n" not in str(e.value)
    take(Loader(replace(config, bad_share=0.5), processor), 20)
    worse = write(tmp_path / "worse.jsonl", [talk("gone", 1.0), talk("gone", 2.0)])
    config = replace(config, datasets={"w": worse}, blend={"w": 1}, chunk=2)
    with pytest.raises(ValueError, match="2 of 2 records are bad"):
        take(Loader(config, processor), 1)
    mute = write(tmp_path / "mute.jsonl", [{"id": "a"}, {"id": "b"}])
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^all 2 samples of chunk 0 are bad: m\[\d\]: a record needs"):
            take(Loader(replace(config, datasets={"m": mute}, blend={"m": 1}), processor, workers=workers), 1)


def test_records_that_a_blend_draws_from(datasets):
    for blend, records in (({"talks": 0.5, "mixed": 3}, 56), ({"talks": 1, "mixed": 0}, 40)):
        assert Blend(data_config(datasets, blend=blend)).records == records


def test_a_bad_record_counts_once_however_often_it_comes(tmp_path, processor):
    tiny.record(tmp_path / "clips/good.wav", 0.5)
    path = write(tmp_path / "c.jsonl", [talk("good", 0.5), talk("gone", 0.5)])
    config = DataConfig({"c": path}, {"c": 1}, seed=0, context=256, bins=1, max_seconds=30.0, chunk=2)
    steps = take(Loader(config, processor), 25)
    assert sum(len(micro.bad) for step in steps for micro in step.micro) == 25, "one of two in every epoch"
    tally = BadTally(0.5, records=4)
    for number in range(30):
        tally.add([MicroBatch(None, ["sample"] * 3, [], [("c[1]", f"{number}")])], True)
    assert (len(tally.bad), tally.seen) == (1, 120)
    with pytest.raises(
        ValueError, match=r"^1 of 2 records are bad, more than 0\.00%: c\[1\]: .*gone\.wav: no such file"
    ):
        take(Loader(replace(config, bad_share=0.0), processor), 3)


@pytest.mark.parametrize(
    "broken",
    [
        {"messages": [{"role": "user", "content": "\ud800?"}, {"role": "assistant", "content": "A"}]},
        {"id": "\udfff", "messages": talk("", 1)["conversations"], "sound": "a.wav"},
        {
            "messages": [{"role": "user", "content": "<sound>"}, {"role": "assistant", "content": "A"}],
            "audios": ["\ud800"],
        },
        {"duration": 10**400, "messages": []},
    ],
)
def test_a_broken_record_is_one_bad_sample(tmp_path, processor, broken):
    """Records that were indexed without a check end neither the planner nor a worker."""
    ask = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ({"messages": ask}, broken)))
    build_as_it_is(path)
    config = DataConfig({"c": path}, {"c": 1}, seed=0, context=256, bins=1, max_seconds=30.0, chunk=2)
    (step,) = take(Loader(config, processor), 1)
    assert [name for name, _ in step.micro[0].bad] == ["c[1]"]
    assert len(step.micro[0].samples) == 1


def build_as_it_is(path):
    """An index with a second of audio for every record, whatever the record says."""
    lines = path.read_bytes().splitlines(keepends=True)
    good = path.with_name("good.jsonl")
    good.write_bytes(b'{"duration": 1}\n' * len(lines))
    facts = build(good)
    folder_of(good).rename(folder_of(path))
    starts = list(itertools.accumulate(map(len, lines), initial=0))
    (folder_of(path) / "entries").write_bytes(b"".join(ENTRY.pack(at, 1.0) for at in starts))
    written = replace(facts, bytes=starts[-1], written=path.stat().st_mtime_ns)
    (folder_of(path) / "facts.json").write_text(json.dumps(asdict(written)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blend": {"songs": 1}}, "the blend names songs; the datasets are talks, mixed"),
        ({"blend": {}}, "the blend names none of the datasets talks, mixed"),
        ({"blend": {"talks": 0.0}}, "the blend has no samples"),
        ({"blend": {"talks": -1.0}}, "blend weight -1.0"),
        ({"bins": 3}, "3 bins of a step cannot be shared by 2 data-parallel ranks"),
    ],
)
def test_a_config_that_cannot_be_read(datasets, processor, changes, message):
    with pytest.raises(ValueError, match=message):
        Loader(data_config(datasets, **changes), processor, dp_size=2)


def test_a_dataset_without_index_and_a_position_that_is_not_there(datasets, processor, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text("{}\n")
    with pytest.raises(ValueError, match=r"bare\.jsonl: no index; make one with `afn data index"):
        Loader(data_config({"bare": bare}, blend={"bare": 1}), processor)
    with pytest.raises(ValueError, match="bin 396 is not one of the"):
        take(Loader(data_config(datasets), processor, position=Position(0, 99)), 1)


def test_fingerprint_follows_the_data(datasets, processor, tmp_path):
    path = write(tmp_path / "c.jsonl", [talk("a", 1.0)])
    first = Loader(data_config({"c": path}, blend={"c": 1}), processor).fingerprint
    assert first == Loader(data_config({"c": path}, blend={"c": 2}), processor).fingerprint
    write(path, [talk("a", 1.5)])
    assert first != Loader(data_config({"c": path}, blend={"c": 1}), processor).fingerprint


@pytest.mark.slow
def test_planned_lengths_bound_the_real_ones_closely(datasets, processor):
    config = data_config(datasets, chunk=64)
    loader = Loader(config, processor)
    plan = plan_chunk(Blend(config), config, processor, 0)
    real = {}
    for step in itertools.takewhile(lambda step: step.position.chunk < 1 or not step.position.step, loader):
        for micro in step.micro:
            real |= dict(zip([s.id for s in micro.samples], micro.batch.cu_seqlens.diff().tolist(), strict=False))
        if step.position.chunk:
            break
    for source, record, tokens in zip(plan.sources, plan.records, plan.tokens, strict=True):
        name = loader.blend.sample(int(source), int(record)).id
        assert real[name] <= tokens <= real[name] + 8


def order_of(path, records, chunk):
    """A blend of one dataset of so many texts."""
    if not path.exists():
        path.write_text(
            '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n' * records
        )
        build(path)
    return Blend(DataConfig({"c": path}, {"c": 1}, seed=0, context=64, bins=1, max_seconds=1.0, chunk=chunk))


@pytest.mark.parametrize(
    ("records", "chunk"), [(1, 65_536), (61, 65_536), (61, 5), (5000, 65_536), (5000, 1024), (5000, 3000)]
)
def test_chunks_grow_and_end_with_the_epoch(tmp_path, records, chunk):
    blend = order_of(tmp_path / "c.jsonl", records, chunk)
    spans = [blend.span(number) for number in range(40)]
    assert spans[0].start == 0
    for span, following in itertools.pairwise(spans):
        assert 0 < len(span) <= chunk
        assert following.start == span.stop, "nothing is left out"
        assert span.start // records == (span.stop - 1) // records, "one epoch"
    assert len(spans[0]) <= 1024, "the first batch does not wait for a long chunk"
    if records == 61 and chunk == 65_536:
        assert [len(span) for span in spans[:3]] == [61, 61, 61]
    if (records, chunk) == (5000, 3000):
        assert [len(span) for span in spans[:6]] == [1000, 2000, 2000, 2500, 2500, 2500]


@pytest.mark.parametrize("dp_size", [1, 4])
def test_three_epochs_of_a_small_corpus_are_three_times_its_samples(tmp_path, processor, dp_size):
    """A step of 131,072 tokens is larger than the corpus: each epoch is one short step, and ranks without bins idle."""
    blend = order_of(tmp_path / "c.jsonl", 61, 65_536)
    config = DataConfig(
        {"c": tmp_path / "c.jsonl"}, {"c": 1}, seed=0, context=512, bins=256, max_seconds=30.0, chunk=65_536
    )
    ranks = [take(Loader(config, processor, dp_rank=rank, dp_size=dp_size), 3) for rank in range(dp_size)]
    for steps in zip(*ranks, strict=True):
        assert len({(step.seen, step.position) for step in steps}) == 1
        assert {len(step.micro) for step in steps} == {256 // dp_size}
        assert sum(len(micro.samples) for step in steps for micro in step.micro) == 61
    assert [step.seen for step in ranks[0]] == [61, 122, 183]
    assert len(blend.order) == 61


@pytest.mark.parametrize("on_long", ["cut", "drop", "error"])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_happens_to_long_recordings(tmp_path, processor, on_long, workers):
    for name, seconds in (("long", 3.0), ("whole", 1.0), ("short", 0.5)):
        tiny.record(tmp_path / f"clips/{name}.wav", seconds)
    pair = talk("pair", 4.0) | {"sound": ["clips/long.wav", "clips/whole.wav"]}
    pair["conversations"] = [{"from": "human", "value": "<sound>\n<sound>"}, {"from": "gpt", "value": "A"}]
    fine = pair | {"id": "fine", "sound": ["clips/whole.wav", "clips/short.wav"], "duration": 1.5}
    path = write(tmp_path / "c.jsonl", [talk("long", 3.0), talk("whole", 1.0), talk("short", 0.5), pair, fine])
    config = DataConfig({"c": path}, {"c": 1}, 0, 1024, 1, 1.0, 5, on_long=on_long)
    loader = Loader(config, processor, workers=workers)
    if on_long == "error":
        with pytest.raises(
            ValueError, match=r"^c\[[03]\]: a recording.* is longer than max_audio, 1 s \(on_long: error\)"
        ):
            take(loader, 1)
        return
    (step,) = take(loader, 1)
    kept = sorted(sample.id for micro in step.micro for sample in micro.samples)
    dropped = sorted(name for micro in step.micro for name, _ in micro.dropped)
    assert step.seen == 5
    if on_long == "cut":
        assert kept == ["fine", "long", "pair", "short", "whole"]
        assert (step.cut, step.dropped, dropped) == (2, 0, [])
    else:
        assert kept == ["fine", "short", "whole"], "a recording of just max_audio is not too long"
        assert (step.cut, step.dropped, dropped) == (0, 2, ["c[0]", "c[3]"])


def test_prompts_that_are_too_long_and_what_its_context_cuts(tmp_path, processor):
    for name, seconds in (("long", 3.0), ("short", 0.5)):
        tiny.record(tmp_path / f"clips/{name}.wav", seconds)
    path = write(tmp_path / "c.jsonl", [talk("long", 3.0), talk("short", 0.5)])
    config = DataConfig({"c": path}, {"c": 1}, 0, 1024, 2, 1.0, 2, prompts_only=True, on_long="drop")
    (step,) = take(Loader(config, processor), 1)
    assert [sample.id for sample in step.micro[0].samples] == ["short"]
    assert [name for name, _ in step.micro[0].dropped] == ["c[0]"]
    context = processor.text_tokens(Blend(config).sample(0, 0).turns, training=True) + 50
    config = replace(config, prompts_only=False, max_seconds=30.0, context=context)
    (step,) = take(Loader(config, processor), 1)
    (dropped,) = [one for micro in step.micro for one in micro.dropped]
    assert dropped[1].startswith("a recording of 3.00 s is longer than the ")
    long = write(tmp_path / "long.jsonl", [talk("long", 3.0)])
    with pytest.raises(
        ValueError, match=r"all 1 samples of chunk 0 are too long or bad: c\[0\]: a recording of 3\.00 s"
    ):
        take(Loader(replace(config, datasets={"c": long}, max_seconds=1.0), processor), 1)
