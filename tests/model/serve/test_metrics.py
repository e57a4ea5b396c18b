"""What Prometheus reads: a request's life, steps and what the engine knows."""

import asyncio
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.serve.engine_thread import EngineThread
from afn_model.serve.metrics import REASONS, SECONDS_OF_TOKEN, Metrics, StepTimes
from tests.tiny import conversation, noise, tiny


@pytest.fixture(scope="module")
def pair():
    return tiny()


def read(metrics):
    return {
        (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "model_name")): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_a_request_is_seen_from_the_queue_to_its_end(pair):
    model, processor = pair
    now = [0.0]

    def clock():
        now[0] += 0.01
        return now[0]

    engine = Engine(model, processor, pages=100, clock=clock)
    metrics = Metrics("tiny", engine)
    thread = EngineThread(engine, on_step=metrics.stepped)
    thread.start()
    batch = processor(conversation("What is said?", noise(31.0)))
    params = SamplingParams(max_new_tokens=6, stop_token_ids=(), n=2, temperature=1.0, seed=1)
    found = []

    async def asked(max_new_tokens=6, ended=True):
        one = params if ended else SamplingParams(max_new_tokens=200, stop_token_ids=())
        stream = await thread.submit(lambda engine: engine.add(batch, one, keys=[0])[0])
        with metrics.request(stream, "chat"):
            async with stream:
                if ended:
                    await stream.ended()
                else:
                    async for _ in stream:
                        break
        found.append(stream)

    async def both():
        await asked()
        await asked()
        await asked(ended=False)
        await thread.call(lambda engine: None)

    asyncio.run(both())
    thread.stop()
    seen, (first, second, left) = read(metrics), found
    aborted = len(left.request.answers[0].tokens)
    size = first.prompt_tokens
    assert seen["vllm:prompt_tokens_total",] == 3 * size
    assert seen["vllm:prompt_tokens_cached_total",] == second.cached_tokens + left.cached_tokens > size
    assert seen["vllm:request_success_total", "finished_reason=length"] == 4
    assert seen["vllm:request_success_total", "finished_reason=abort"] == 1
    assert sum(seen["vllm:request_success_total", f"finished_reason={reason}"] for reason in REASONS) == 5
    assert 24 < seen["vllm:generation_tokens_total",] <= 24 + aborted
    assert seen["afn:requests_total", "endpoint=chat"] == 3
    assert seen["afn:audio_seconds_total",] == pytest.approx(3 * first.audio_tokens * SECONDS_OF_TOKEN)
    assert 30.9 < first.audio_tokens * SECONDS_OF_TOKEN <= 31.0
    assert seen["afn:windows_encoded_total",] == 2
    assert seen["vllm:mm_cache_hits_total",] == 4
    ttft = sum(s.request.answers[0].times[0] - s.request.answers[0].sequence.arrived for s in found)
    assert seen["vllm:time_to_first_token_seconds_sum",] == pytest.approx(ttft)
    queued, prefill = seen["vllm:request_queue_time_seconds_sum",], seen["vllm:request_prefill_time_seconds_sum",]
    assert queued + prefill == pytest.approx(ttft)
    assert seen["vllm:request_queue_time_seconds_count",] == 3
    gaps = [answer for stream in (first, second) for answer in stream.request.answers]
    assert seen["vllm:inter_token_latency_seconds_count",] >= sum(len(answer.tokens) - 1 for answer in gaps)
    assert seen["afn:step_seconds_count", "kind=decode"] > 0
    assert seen["vllm:iteration_tokens_total_count",] >= engine.steps == seen["afn:steps_total",]
    assert seen["vllm:num_requests_running",] == seen["vllm:num_requests_waiting",] == 0
    assert seen["vllm:kv_cache_usage_perc",] == 0
    assert seen["afn:kv_cache_cached_perc",] == engine.pool.cached / 100 > 0


def test_seconds_between_tokens():
    """Answers that grow in every step, one that pauses and one that ends."""
    now = [0.0]
    answers = [SimpleNamespace(reason=None, sequence=SimpleNamespace(slot=0)) for _ in range(3)]
    answers = [type("Answer", (), vars(one))() for one in answers]
    engine = SimpleNamespace(clock=lambda: now[0], scheduler=SimpleNamespace(prefilling=[]), growing=answers)
    times, (a, b, c) = StepTimes(engine), answers
    for at, grown in ((1.0, [a, b, c]), (1.1, [a, b]), (1.3, [a, c]), (1.7, [a, b, c, c])):
        now[0] = at
        if at == 1.7:
            engine.scheduler.prefilling = [1]
        times.add(0.1, grown)
    a.sequence.slot = -1
    began = times.watch(a)
    times.add(0.1, [b])
    a.sequence.slot, now[0] = 3, 2.0
    times.add(0.25, [b])
    assert began() == 1.75
    assert times.watch(a)() is None
    assert not times._queued
    # b goes on at once and 0.3 s later; a: 0.1, 0.2, 0.4; b: 0.1, 0.6; c: 0.3, 0.4
    assert sum(times.between.counts) == 9
    assert times.between.sum == pytest.approx(0.1 + 0.2 + 0.4 + 0.1 + 0.6 + 0.3 + 0.4 + 0.0 + 0.3)
    assert dict(times.between.cumulative())["0.25"] == 4
    assert times.tokens.sum == 13
    assert {kind: sum(found.counts) for kind, found in times.kinds.items()} == {"prefill": 0, "decode": 3, "mixed": 3}


def test_a_label_is_never_a_clients_word(pair):
    metrics = Metrics("tiny", Engine(pair[0], pages=10))
    metrics.timestamp("what a client says")
    metrics.rejected("share")
    seen = read(metrics)
    assert seen["afn:timestamps_checked_total", "status=other"] == 1
    assert seen["vllm:admission_rejections_total", "reason=share"] == 1
    with pytest.raises(KeyError):
        metrics.rejected("what a client says")
