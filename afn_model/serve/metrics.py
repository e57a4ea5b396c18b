"""Counters as Prometheus reads them: vLLM's names where it has the thing, so that its dashboards work, ``afn:`` else.

What the engine knows by itself is read when somebody asks for the counters. A step costs a few comparisons, a request
some 20 µs at its end. Labels take the values named here; nothing that a client says becomes one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from afn_model.audio.frames import SAMPLE_RATE, WINDOW, audio_tokens
from afn_model.infer.engine import Engine
from afn_model.infer.request import Growing
from afn_model.serve.engine_thread import AnswerStream
from afn_model.speech.conversation import SpokenAnswer

SECONDS_OF_TOKEN = WINDOW / SAMPLE_RATE / audio_tokens(WINDOW)
FINE = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
COARSE = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
MANY = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
REASONS = ("stop", "length", "repetition", "abort", "error")
SAID = ("end", "length", "closed", "error")
REJECTED = ("requests", "audio_seconds", "share", "sessions")
STATUSES = ("ok", "past_end", "reversed", "order", "silent", "rate", "grid", "ambiguous", "unconfirmed", "other")


class Metrics:
    """What the server counts, in a registry of its own.

    Args:
        model: its name, the label ``model_name``.
        engine: whose gauges are read when somebody asks.
    """

    def __init__(self, model: str, engine: Engine):
        self.model, self.engine = model, engine
        registry = self.registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(name, help, ("model_name", *labels), registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help, ("model_name",), buckets=buckets, registry=registry).labels(model)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts.").labels(model)
        self.cached_tokens = counter("vllm:prompt_tokens_cached", "Those computed before.").labels(model)
        self.queries = counter("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.").labels(model)
        self.hits = counter("vllm:prefix_cache_hits", "Tokens found there.").labels(model)
        self.generated = counter("vllm:generation_tokens", "Tokens of answers.").labels(model)
        ended = counter("vllm:request_success", "Answers by what ended them.", "finished_reason")
        self.ended = {reason: ended.labels(model, reason) for reason in REASONS}
        rejections = counter("vllm:admission_rejections", "Requests turned away, by what was full.", "reason")
        self.rejections = {reason: rejections.labels(model, reason) for reason in REJECTED}
        checked = counter("afn:timestamps_checked", "Times that answers name, by what was found.", "status")
        self.checked = {status: checked.labels(model, status) for status in STATUSES}
        self.endpoints = counter("afn:requests", "Requests by what asked for them.", "endpoint")
        self.audio_seconds = counter("afn:audio_seconds", "Audio asked about.").labels(model)
        self.drafted = counter("afn:draft_tokens", "Tokens proposed by drafts.").labels(model)
        self.accepted = counter("afn:accepted_tokens", "Proposed tokens that were right.").labels(model)

        self.ttft = histogram("vllm:time_to_first_token_seconds", "From the engine's queue to the first token.", FINE)
        self.per_token = histogram("vllm:request_time_per_output_token_seconds", "Mean after the first.", FINE)
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "From the queue to the last token.", COARSE)
        self.queued = histogram("vllm:request_queue_time_seconds", "In the queue.", COARSE)
        self.prefill = histogram(
            "vllm:request_prefill_time_seconds", "From the queue's end to the first token.", COARSE
        )
        self.decode = histogram("vllm:request_decode_time_seconds", "From the first token to the last.", COARSE)
        self.inference = histogram("vllm:request_inference_time_seconds", "Prefill and decode.", COARSE)
        self.prompt_size = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", COUNTS)
        self.answer_size = histogram("vllm:request_generation_tokens", "Tokens of an answer.", COUNTS)
        self.params_n = histogram("vllm:request_params_n", "Answers asked for.", (1, 2, 5, 10, 20))
        self.params_max = histogram("vllm:request_params_max_tokens", "Longest answer asked for.", COUNTS)

        self.sessions = Gauge("afn:realtime_sessions", "Open sessions.", ("model_name",), registry=registry)
        self.sessions = self.sessions.labels(model)
        closed = counter("afn:realtime_sessions_closed", "Sessions by what ended them.", "reason")
        self.closed = {
            reason: closed.labels(model, reason) for reason in ("client", "idle", "limit", "refused", "error", "stop")
        }
        self.heard = counter("afn:realtime_audio_seconds", "Audio that has come in sessions.").labels(model)
        items = counter("afn:realtime_items", "Recordings committed in sessions, by what came of them.", "status")
        self.items = {status: items.labels(model, status) for status in ("completed", "failed", "dropped")}

        self.speaking = Gauge("afn:speech_streams", "Answers that are being said.", ("model_name",), registry=registry)
        self.speaking = self.speaking.labels(model)
        said = counter("afn:speech_ended", "Answers that were said, by what ended them.", "reason")
        self.said = {reason: said.labels(model, reason) for reason in SAID}
        self.said_seconds = counter("afn:speech_seconds", "Sound that was made.").labels(model)
        self.first_audio = histogram("afn:speech_first_audio_seconds", "From the first token said to its sound.", FINE)
        self.gaps = histogram("afn:speech_gap_seconds", "Between an answer's pieces of sound.", FINE)
        self.stalls = histogram("afn:speech_stalled_seconds", "That a listener of an answer has waited.", FINE)

        self.steps = StepTimes(engine)
        registry.register(_EngineNumbers(model, engine, self.steps))

    def stepped(self, seconds: float, grown: list[Growing]) -> None:
        """A step of the engine; called in its thread."""
        self.steps.add(seconds, grown)

    def speech_gap(self, seconds: float) -> None:
        """Between two pieces of an answer's sound; called in the voice's thread, as is ``speech_ended``."""
        self.gaps.observe(seconds)

    def speech_ended(self, answer: SpokenAnswer) -> None:
        """An answer was said, or what was made of it is all that comes."""
        times = answer.times
        self.said[answer.reason].inc()
        self.said_seconds.inc(times.seconds)
        if times.first_audio is not None and times.first_token is not None:
            self.first_audio.observe(times.first_audio - times.first_token)
            self.stalls.observe(times.stalled)

    def rejected(self, reason: str) -> None:
        """A request was turned away because of one of ``REJECTED``."""
        self.rejections[reason].inc()

    def timestamp(self, status: str) -> None:
        """A time that an answer names was checked; a status that is none of ``STATUSES`` counts as "other"."""
        self.checked[status if status in self.checked else "other"].inc()

    @contextmanager
    def request(self, stream: AnswerStream, endpoint: str) -> Iterator[None]:
        """A request, from when the engine has it to its end.

        Args:
            stream: its answers.
            endpoint: a word of ours for what asked.
        """
        self.endpoints.labels(self.model, endpoint).inc()
        params, began = stream.request.params, self.steps.watch(stream.request.answers[0])
        self.params_n.observe(params.n)
        self.params_max.observe(params.max_new_tokens)
        try:
            yield
        finally:
            self._ended(stream, began())

    def text(self) -> bytes:
        """In Prometheus' format 0.0.4."""
        return generate_latest(self.registry)

    def _ended(self, stream: AnswerStream, began: float | None) -> None:
        answers, prompt = stream.request.answers, stream.prompt_tokens
        cached = min(prompt, stream.cached_tokens)
        self.prompt_tokens.inc(prompt)
        self.prompt_size.observe(prompt)
        self.cached_tokens.inc(cached)
        self.queries.inc(prompt)
        self.hits.inc(cached)
        self.audio_seconds.inc(stream.audio_tokens * SECONDS_OF_TOKEN)
        for answer in answers:
            times, arrived, count = list(answer.times), answer.sequence.arrived, len(answer.tokens)
            self.ended[answer.reason or "abort"].inc()
            self.generated.inc(count)
            self.answer_size.observe(count)
            if answer.draft is not None:
                self.drafted.inc(answer.draft.proposed)
                self.accepted.inc(answer.draft.accepted)
            if not times:
                continue
            first, last = times[0], times[-1]
            self.e2e.observe(last - arrived)
            self.decode.observe(last - first)
            if count > 1:
                self.per_token.observe((last - first) / (count - 1))
            if answer is answers[0]:
                self.ttft.observe(first - arrived)
                if began is not None:
                    began = min(max(began, arrived), first)
                    self.queued.observe(began - arrived)
                    self.prefill.observe(first - began)
                    self.inference.observe(last - began)


class Buckets:
    """A histogram that counts many equal values at once."""

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        found, total = [], 0
        for bound, count in zip((*map(float, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((str(bound), total))
        return found


class StepTimes:
    """Seconds and tokens of steps, seconds between an answer's tokens, and when requests left the queue.

    Most answers that grow in a step grew in the one before it: these are counted together.
    """

    def __init__(self, engine: Engine):
        self.engine, self.lock = engine, Lock()
        self.kinds = {kind: Buckets(FINE) for kind in ("prefill", "decode", "mixed")}
        self.tokens, self.between = Buckets(MANY), Buckets(FINE)
        self._before: set[Growing] = set()
        self._at = 0.0
        self._paused: dict[Growing, float] = {}  # answers that have begun and did not grow in the last step
        self._queued: dict[Growing, list[float]] = {}

    def watch(self, answer: Growing) -> Callable[[], float | None]:
        """Looks out for a request's leaving the queue; what is returned says when it did, None if it did not."""
        began: list[float] = []
        self._queued[answer] = began

        def found() -> float | None:
            self._queued.pop(answer, None)
            return began[0] if began else None

        return found

    def add(self, seconds: float, grown: list[Growing]) -> None:
        now, before, paused = self.engine.clock(), self._before, self._paused
        if self._queued:
            for answer in list(self._queued):
                if answer.sequence.slot >= 0 or answer.reason is not None:
                    began = self._queued.pop(answer, None)
                    if began is not None:
                        began.append(now - seconds)
        growing = set(grown)
        again = growing & before
        with self.lock:
            kind = "prefill" if not grown else "mixed" if self.engine.scheduler.prefilling else "decode"
            self.kinds[kind].add(seconds)
            self.tokens.add(len(grown))
            if again:
                self.between.add(now - self._at, len(again))
            if len(again) != len(growing):
                for answer in growing - again:
                    if (last := paused.pop(answer, None)) is not None:
                        self.between.add(now - last)
        if len(again) != len(before):
            for answer in before - again:
                if answer.reason is None:
                    paused[answer] = self._at
        if paused and not self.engine.growing:
            paused.clear()
        elif len(paused) > 2 * len(self.engine.growing):
            self._paused = {answer: last for answer, last in paused.items() if answer.reason is None}
        self._before, self._at = growing, now


class _EngineNumbers:
    """What is read from the engine when somebody asks."""

    def __init__(self, model: str, engine: Engine, steps: StepTimes):
        self.model, self.engine, self.steps = model, engine, steps

    def collect(self) -> Iterable[Metric]:
        engine, scheduler, pool, audio = self.engine, self.engine.scheduler, self.engine.pool, self.engine.audio
        waiting = sum(sequence.limit > 0 for sequence in list(scheduler.waiting))
        running = sum(sequence.limit > 0 for sequence in [*scheduler.prefilling, *scheduler.decoding])
        gauges = {
            "vllm:num_requests_running": ("Answers that are being computed.", running),
            "vllm:num_requests_waiting": ("Answers that wait.", waiting),
            "vllm:kv_cache_usage_perc": ("Share of the pages in use, 0 to 1.", pool.used / pool.pages),
            "afn:kv_cache_cached_perc": ("Share of the pages that can be found again.", pool.cached / pool.pages),
            "afn:encoder_cache_bytes": ("Of features of audio windows.", audio.bytes),
            "afn:kv_host_bytes": ("Of pages in host memory.", 0 if engine.offload is None else engine.offload.bytes),
        }
        counters = {
            "vllm:num_preemptions": ("Answers that gave up their pages.", scheduler.preempted),
            "vllm:mm_cache_queries": ("Audio windows looked up.", audio.windows_encoded + audio.windows_reused),
            "vllm:mm_cache_hits": ("Audio windows found.", audio.windows_reused),
            "afn:windows_encoded": ("Audio windows encoded.", audio.windows_encoded),
            "afn:windows_reused": ("Audio windows that were known.", audio.windows_reused),
            "afn:windows_evicted": ("Audio windows dropped for want of room.", audio.windows_evicted),
            "afn:steps": ("Steps of the engine.", engine.steps),
        }
        for name, (help, value) in gauges.items():
            yield self._of(GaugeMetricFamily(name, help, labels=("model_name",)), value)
        for name, (help, value) in counters.items():
            yield self._of(CounterMetricFamily(name, help, labels=("model_name",)), value)
        with self.steps.lock:
            yield from self._histograms()

    def _of(self, family: Metric, value: float) -> Metric:
        family.add_metric((self.model,), value)  # type: ignore[attr-defined]
        return family

    def _histograms(self) -> Iterable[Metric]:
        steps = self.steps
        for name, help, found in (
            ("vllm:inter_token_latency_seconds", "Between the tokens of an answer.", steps.between),
            ("vllm:iteration_tokens_total", "Tokens that answers grew by in a step.", steps.tokens),
        ):
            family = HistogramMetricFamily(name, help, labels=("model_name",))
            family.add_metric((self.model,), found.cumulative(), found.sum)
            yield family
        family = HistogramMetricFamily("afn:step_seconds", "Of the engine's steps.", labels=("model_name", "kind"))
        for kind, found in steps.kinds.items():
            family.add_metric((self.model, kind), found.cumulative(), found.sum)
        yield family
