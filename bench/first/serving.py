"""The engine's times with a model of the real size, of random weights: decoding, a long prompt beside it, second
questions, pages to the host and back. On a CPU a toy model shows that they run."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import torch

from afn_kernels import _verdicts
from afn_model.audio.frames import audio_tokens
from afn_model.config import preset
from afn_model.infer.costs import Costs
from afn_model.infer.engine import Engine
from afn_model.infer.offload import HostPages
from afn_model.infer.pages import PAGE
from afn_model.infer.request import Request
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.tokens import PromptTokens, WindowSpan
from afn_model.network.fused import fuse
from afn_model.network.joint import FP8
from afn_model.network.network import Network
from bench import timing
from bench.first.child import DEVICE, left, say
from bench.first.engine import GPU, engine_of, network

BATCHES, CONTEXTS = ((1, 16, 64), (1024, 45_056)) if GPU else ((1, 2), (64, 128))
WARM, STEPS = (4, 24) if GPU else (2, 3)
WINDOWS, SAMPLES, QUESTION = (60, 480_000, 40) if GPU else (2, 32_000, 8)
DECODERS, HELD, ALONE = (16, 2000, 64) if GPU else (2, 70, 4)  # sequences, tokens that each has, steps before a prompt
SAVED = 512 if GPU else 8  # pages
BUDGET = 0.04  # seconds of a step, by estimates, while others decode


def real() -> Network:
    """A model of the released ones' size with random weights, made where they are used: 16.5 GB in bfloat16."""
    if not GPU:
        return network(torch.float32)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            model = Network(preset("af-next")).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    fuse(model.language_model)
    return model


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def drawn(count: int, *, seed: int = 0) -> list[int]:
    """Token ids without a placeholder."""
    return torch.randint(2, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def decoding(engine: Engine, count: int, context: int, limit: int) -> list[Request]:
    """Requests whose prompts seem to have been computed: their pages hold whatever is there."""
    params, found = SamplingParams(max_new_tokens=limit, stop_token_ids=(), repetition_penalty=1.0), []
    for number in range(count):
        request = engine.submit(PromptTokens(drawn(context, seed=number)), params, number)
        sequence = request.answers[0].sequence
        sequence.pages, sequence.computed = engine.pool.allocate(context // PAGE + 1), context - 1
        sequence.published = sequence.computed // PAGE
        found.append(request)
    return found


def stop(engine: Engine, requests: list[Request]) -> None:
    for request in requests:
        engine.abort(request)
    engine.run()


def fill(kv: torch.Tensor) -> None:
    """Random keys and values, a part at a time."""
    for part in kv.flatten(0, 1):
        if kv.dtype == FP8:
            part.view(torch.uint8).random_(0, 57)  # 0 to 1
        else:
            part.normal_()


def decode() -> None:
    """Tokens a second, eager and by graphs, at several batches and contexts, with keys in both dtypes."""
    model = real()
    text, blocks = model.config.text, model.language_model.layers
    weights = sum(x.nbytes for part in (blocks, model.lm_head) for x in part.parameters())
    for dtype in (model.dtype, FP8):
        token = text.layers * 2 * text.kv_heads * text.head_dim * dtype.itemsize
        cases = [(count, context) for context in CONTEXTS for count in BATCHES]
        room = 0.85 * torch.cuda.mem_get_info()[0] if GPU else 1e9
        needs = {case: case[0] * (-(-(case[1] + WARM + STEPS) // PAGE) + 2) for case in cases}
        for count, context in [case for case in cases if needs[case] * PAGE * token > room]:
            why = f"its keys and values take {count * context * token / 1e9:.0f} GB"
            say("serving", figure="decode", kv=str(dtype)[6:], batch=count, context=context, status="skipped", why=why)
        cases = [case for case in cases if needs[case] * PAGE * token <= room]
        engine = engine_of(
            model, pages=max(needs[case] for case in cases), slots=max(BATCHES), kv_dtype=dtype, graphs=True, ahead=True
        )
        fill(engine.runner.kv)
        replayed = engine.runner.graphs
        for count, context in cases:
            for how, graphs in (("graphs", replayed), ("eager", None)):
                engine.runner.graphs = graphs
                if left(5.0):
                    seconds = step_seconds(engine, count, context)
                    read = weights + count * context * token
                    how = "graphs that were not captured" if graphs is not None and graphs.failed else how
                    say(
                        "serving", figure="decode", kv=str(dtype)[6:], batch=count, context=context, how=how,
                        status="ok", layers=text.layers, step_ms=1e3 * seconds, tokens_per_s=count / seconds,
                        gb_s=read / seconds / 1e9,
                    )  # fmt: skip
        del engine, replayed, graphs
        gc.collect()
        if GPU:
            torch.cuda.empty_cache()


def step_seconds(engine: Engine, count: int, context: int) -> float:
    """Of a step that decodes, from the host's view: what it plans and reads included."""
    requests = decoding(engine, count, context, WARM + STEPS + 2)
    for _ in range(WARM):
        engine.step()
    wait()
    began = time.perf_counter()
    for _ in range(STEPS):
        engine.step()
    wait()
    seconds = (time.perf_counter() - began) / STEPS
    stop(engine, requests)
    return seconds


def recording(seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(SAMPLES, generator=g) for _ in range(WINDOWS)]


def asked(engine: Engine, windows: list[torch.Tensor], question: int, key: int) -> tuple[Request, float]:
    """A request about a recording, and the seconds that hashing its windows took."""
    began = time.perf_counter()
    digests = engine.audio.add(windows, [len(x) for x in windows])
    hashed, ids, spans = time.perf_counter() - began, [], []
    for index, (samples, digest) in enumerate(zip(windows, digests, strict=True)):
        count = audio_tokens(len(samples))
        spans.append(WindowSpan(len(ids), len(ids) + count, digest, index))
        ids += [engine.model.config.audio_token_id] * count
    prompt = PromptTokens(ids + drawn(QUESTION, seed=question), tuple(spans))
    params = SamplingParams(max_new_tokens=1, stop_token_ids=(), repetition_penalty=1.0)
    return engine.submit(prompt, params, key), hashed


def prompted() -> None:
    """Seconds to the first token of a long recording and of a second question; gaps of others while one arrives."""
    model = real()
    tokens = WINDOWS * audio_tokens(SAMPLES) + QUESTION
    pages = 3 * (tokens // PAGE + 2) + DECODERS * ((HELD + 4000) // PAGE + 2)
    costs = Costs.of(model.config, budget=BUDGET)
    size = {"pages": pages, "slots": DECODERS + 4, "chunk": 8192 if GPU else 128}
    engine = engine_of(model, **size, costs=costs, graphs=True, ahead=True)
    fill(engine.runner.kv)
    asked(engine, recording(1)[: WINDOWS // 2], 1, 1)  # everything is compiled
    engine.run()
    windows = recording(2)
    for which in ("cold", "second question"):
        encoded = engine.audio.windows_encoded
        began = time.perf_counter()
        request, hashed = asked(engine, windows, len(which), 2)
        engine.run()
        answer = request.answers[0]
        say(
            "serving", figure="first token", how=which, status="ok", layers=model.config.text.layers, tokens=tokens,
            seconds=time.perf_counter() - began, hashing_s=hashed, reused=answer.sequence.reused,
            windows_encoded=engine.audio.windows_encoded - encoded,
        )  # fmt: skip
    others = decoding(engine, DECODERS, HELD, 3999)
    for _ in range(WARM):
        engine.step()
    before = sorted(gaps(engine, others, ALONE))
    request, _ = asked(engine, recording(3), 3, 3)
    began, steps = time.perf_counter(), engine.steps
    during = sorted(gaps(engine, others, 3000, request))
    if not request.done:
        raise RuntimeError("the prompt's first token did not come in 3000 steps")
    say(
        "serving", figure="arrival", how=f"{DECODERS} decoders beside {tokens:,} tokens", status="ok",
        layers=model.config.text.layers, budget_ms=1e3 * BUDGET, steps=engine.steps - steps,
        seconds=time.perf_counter() - began,
        **{f"{name}_{q}_ms": 1e3 * timing.quantile(found, p) for name, found in (("alone", before), ("beside", during))
           for q, p in (("p50", 0.5), ("p99", 0.99), ("most", 1.0))},
    )  # fmt: skip
    stop(engine, others)


def gaps(engine: Engine, others: list[Request], steps: int, until: Request | None = None) -> Iterator[float]:
    """Seconds between the tokens of others, as the host sees them, for some steps or until a request is done."""
    last: dict[int, float] = {}
    for _ in range(steps):
        grown, now = engine.step(), time.perf_counter()
        for one in grown:
            if one.request in others:
                if id(one) in last:
                    yield now - last[id(one)]
                last[id(one)] = now
        if until is not None and until.done:
            return


def saved() -> None:
    """GB/s of pages to pinned memory and back: memory that is made, then memory that is there."""
    text = preset("af-next").text if GPU else network(torch.float32).config.text
    shape = (text.layers, 2, SAVED, PAGE, text.kv_heads, text.head_dim)
    kv = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    fill(kv)
    total, expected = kv.nbytes, kv.clone()
    for how in ("first", "again"):
        pages = HostPages(2 * total, device=DEVICE)
        wait()
        times = [time.perf_counter()]
        for page in range(SAVED):
            pages.save(page.to_bytes(32, "little"), b"", kv[:, :, page])
        wait()
        times.append(time.perf_counter())
        kv.zero_()
        wait()
        times.append(time.perf_counter())
        found = pages.load_run([(page.to_bytes(32, "little"), b"") for page in range(SAVED)])
        for page, payload in enumerate(found):
            kv[:, :, page].copy_(payload, non_blocking=True)
        wait()
        times.append(time.perf_counter())
        good = torch.equal(kv, expected)
        say(
            "serving", figure="pages", how=how, status="ok" if good else "failed", why="" if good else "other bits",
            gb=total / 1e9, save_gb_s=total / (times[1] - times[0]) / 1e9,
            load_gb_s=total / (times[3] - times[2]) / 1e9,
        )  # fmt: skip
        del found
        pages.close(keep=False)


FIGURES = {"decode": decode, "prompts": prompted, "pages": saved}


def serving(*names: str) -> int:
    """Figures by name, all without one; an exception is its figure's line."""
    for one in names or FIGURES:
        try:
            FIGURES[one]()
        except Exception as error:
            say("serving", figure=one, status="failed", why=_verdicts.one_line(error))
    return 0
