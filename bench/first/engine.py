"""The engine on a GPU: what it says against a CPU, and that none of its ways to be fast changes an answer.

Everything is judged by log-probabilities. Plain PyTorch in float64 reads a small model's answers again; what it loses
in the engine's dtype, in several orders of summation, is the budget of one engine, and twice that lies between two.
Where two engines draw different tokens, nearly equal ones, their log-probabilities still agree there; behind that
place they answer other texts.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import afn_kernels as ak
from afn_kernels import _verdicts
from afn_kernels.verify.budget import allowance, lost
from afn_kernels.verify.orders import in_orders
from afn_model.audio.frames import audio_tokens
from afn_model.config import AudioConfig, ModelConfig, TextConfig
from afn_model.infer.audio_cache import AudioCache
from afn_model.infer.engine import Engine
from afn_model.infer.offload import HostPages
from afn_model.infer.pages import PAGE
from afn_model.infer.sampler import Sampler
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.tokens import PromptTokens, WindowSpan
from afn_model.network.fused import fuse, quantise_fp8
from afn_model.network.head import sampling_logits
from afn_model.network.joint import FP8, FP8Linear
from afn_model.network.network import Network
from bench.first.child import DEVICE, left, say

GPU = DEVICE == "cuda"
DTYPES = (torch.bfloat16, torch.float32)
ORDERS = 3
TOKENS = 24 if GPU else 6
LENGTHS = (5, 64, 333, 200) if GPU else (5, 64, 140)  # of prompts; the engine cuts at 128
SAMPLES = 48_000  # of the window before the last prompt
# Heads and groups of the real model, fewer of them.
TEXT = TextConfig(vocab_size=1024, width=1792, layers=2, heads=14, kv_heads=2, ffn=1024, max_positions=2048)
TOY = TextConfig(vocab_size=256, width=64, layers=2, heads=4, kv_heads=2, ffn=96, max_positions=1024)
GREEDY = SamplingParams(max_new_tokens=TOKENS, stop_token_ids=(), repetition_penalty=1.0, logprobs=0)
Answers = list[tuple[list[int], Tensor]]  # tokens and log-probabilities


def network(dtype: torch.dtype, device: str = DEVICE, *, joint: bool = True) -> Network:
    """The same random weights, rounded to a dtype, on a device."""
    torch.manual_seed(0)
    audio = AudioConfig(width=128, layers=2, heads=2, ffn=256)
    model = Network(ModelConfig(audio=audio, text=TEXT if GPU else TOY, audio_token_id=1)).eval().requires_grad_(False)
    model = model.to(torch.bfloat16).to(device, dtype)  # every dtype has the same numbers
    if joint:
        fuse(model.language_model)
    return model


def prompts() -> list[list[int]]:
    """Token ids without a placeholder."""
    g = torch.Generator().manual_seed(1)
    return [torch.randint(2, 256, (length,), generator=g).tolist() for length in LENGTHS]


def window() -> Tensor:
    return 0.1 * torch.randn(SAMPLES, generator=torch.Generator().manual_seed(2))


def heard(audio: AudioCache, ids: list[int]) -> PromptTokens:
    """A window, held, and tokens behind it."""
    (digest,) = audio.add([window()], [SAMPLES])
    count = audio_tokens(SAMPLES)
    return PromptTokens([1] * count + ids, (WindowSpan(0, count, digest, 0),))


def engine_of(model: Network, **options) -> Engine:
    """One of 40 pages; graphs on a CPU are plain calls, which take no empty rows."""
    engine = Engine(model, **({"pages": 40, "slots": 8, "chunk": 128, "graphs": False, "ahead": False} | options))
    if (graphs := engine.runner.graphs) is not None and not GPU:
        run, graphs.record = graphs.forward, called_again
        graphs.forward = lambda x: run(replace(x, lengths=x.lengths.clamp_min(1)))
    return engine


def called_again(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """The stand-in for a captured graph."""
    out = run()
    return lambda: out.copy_(run()), out


def said(engine: Engine, given: list[list[int]], params: SamplingParams = GREEDY, *, audio: bool = False) -> Answers:
    """Answers to prompts that come together, and with ``audio`` to the last one behind a window."""
    asked = [PromptTokens(ids) for ids in given]
    if audio:
        asked[-1] = heard(engine.audio, given[-1])
    requests = [engine.submit(prompt, params, key) for key, prompt in enumerate(asked)]
    engine.run()
    found = [answer for request in requests for answer in request.answers]
    if wrong := [answer.error or answer.reason for answer in found if answer.reason != "length"]:
        raise RuntimeError(f"an answer ended otherwise than by its length: {wrong[0]}")
    return [(answer.tokens, torch.tensor(answer.logprobs)) for answer in found]


def apart(a: Answers, b: Answers, *, greedy: bool = True) -> float:
    """The largest distance of log-probabilities up to the first token that differs, that one included if ``greedy``."""
    most = 0.0
    for (one, p), (two, q) in zip(a, b, strict=True):
        same = next((at for at, pair in enumerate(zip(one, two, strict=True)) if pair[0] != pair[1]), len(one))
        count = min(len(one), same + greedy)
        most = max([most, *(p[:count].double() - q[:count].double()).abs().tolist()])
    return most


def equal(a: Answers, b: Answers) -> bool:
    """Every bit."""
    return all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


def scores(model: Network, given: list[list[int]], answers: Answers, *, audio: bool) -> Tensor:
    """Log-probabilities [answers, tokens, vocabulary] of a model on a CPU that reads answers at once, float64."""
    cache, found = AudioCache(model, capacity=1 << 30), []
    for index, (ids, (tokens, _)) in enumerate(zip(given, answers, strict=True)):
        heard_first = audio and index == len(given) - 1
        prompt = heard(cache, ids) if heard_first else PromptTokens(ids)
        x_TD = model.language_model.embed_tokens(torch.tensor(prompt.ids + tokens[:-1]))
        for span in prompt.windows:
            cache.encode([span.digest])
            x_TD = torch.cat((cache.embeddings(span.digest, span.index).to(x_TD.dtype), x_TD[span.stop :]))
        cu = torch.tensor([0, len(x_TD)], dtype=torch.int32)
        hidden = model.language_model(x_TD, torch.arange(len(x_TD)).float(), cu_seqlens=cu)
        logits = sampling_logits(model.lm_head, hidden[-len(tokens) :]) if x_TD.element_size() < 8 else (
            hidden[-len(tokens) :] @ model.lm_head.weight.t())  # fmt: skip
        found.append(logits.double().log_softmax(-1))
    return torch.stack(found)


@dataclass
class AnswerJudge:
    """Of answers in a dtype to the prompts, the last with a window if ``audio``.

    Args:
        allowed: |log-probability - that of float64|, at most.
    """

    dtype: torch.dtype
    given: list[list[int]]
    audio: bool
    allowed: float = 0.0

    def __call__(self, answers: Answers) -> tuple[float, float]:
        """(distance of log-probabilities from float64, how much likelier another token was there)."""
        tokens = torch.tensor([one for one, _ in answers])[..., None]
        with torch.no_grad():
            read = partial(scores, given=self.given, answers=answers, audio=self.audio)
            oracle = read(network(torch.float64, "cpu", joint=False))
            model = network(self.dtype, "cpu", joint=False)
            chosen = oracle.gather(2, tokens)[..., 0]
            if not self.allowed:
                in_this = [x.gather(2, tokens)[..., 0] for x in in_orders(lambda: read(model), ORDERS)]
                size = float(chosen.abs().max())
                self.allowed = allowance(lost(in_this, chosen), self.dtype, size)
        found = torch.stack([logprobs for _, logprobs in answers]).double()
        return float((found - chosen).abs().max()), float((oracle.amax(-1) - chosen).max())


def line(check: str, good: bool, why: str = "", **more: object) -> None:
    """A result; ``used`` is a share of the budget."""
    check = f"{check}, {more['dtype']}" if "dtype" in more else check
    say("engine", check=check, status="ok" if good else "failed", why="" if good else why, **more)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def within(check: str, distance: float, budget: float, good: bool = True, why: str = "", **more: object) -> None:
    near = distance <= budget
    why = why if near else f"log-probabilities are {distance:.2e} apart, {budget:.2e} are allowed"
    line(check, good and near, why, apart=distance, budget=budget, used=distance / budget if budget else 0.0, **more)


# -- checks


def tokens() -> None:
    """Chunks beside rows, one prompt with a window, against plain PyTorch in float64; the sampler against a CPU's."""
    given = prompts()
    for dtype in DTYPES:
        judge = AnswerJudge(dtype, given, True)
        found = said(engine_of(network(dtype)), given, audio=True)
        distance, likelier = judge(found)
        good = likelier <= 2 * judge.allowed
        why = f"a token that is likelier by {likelier:.2e} was not chosen"
        within("tokens", distance, judge.allowed, good, why, dtype=name(dtype), likelier=likelier)
    sampled()


def sampled() -> None:
    """The same logits, settings and keys give the same tokens on both devices."""
    vocabulary = 151_672 if GPU else 1000
    settings: tuple[dict[str, Any], ...] = (
        {}, {"temperature": 0.7}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.3, "top_k": 50},
        {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.3},
        {"temperature": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {3: 4.0}},
    )  # fmt: skip
    samplers = [Sampler(len(settings), vocabulary, device) for device in ("cpu", DEVICE)]
    for slot, options in enumerate(settings):
        params = SamplingParams(**({"repetition_penalty": 1.0, "stop_token_ids": (), "logprobs": 0} | options))
        for sampler in samplers:
            sampler.admit(slot, params, 7 + slot, [1, 2, 3])
    g, slots, other, most = torch.Generator().manual_seed(3), torch.arange(len(settings)), 0, 0.0
    for step in range(16):
        logits = 4 * torch.randn(len(settings), vocabulary, generator=g)
        a, b = (
            sampler.next(*(x.to(sampler.device) for x in (logits, slots, torch.full_like(slots, step))))
            for sampler in samplers
        )
        other += int((a.token != b.token.cpu()).sum())
        same = a.token == b.token.cpu()
        # Exponentials are off by 2 ulp, so the logarithm of their sum by 2^-21; then both are rounded to float32.
        room = 2.0**-21 + 2 * torch.finfo(torch.float32).eps * a.logprob.abs()
        most = max(most, float(((a.logprob - b.logprob.cpu()).abs() / room)[same].max()))
    why = f"{other} of {16 * len(settings)} tokens are others, log-probabilities {most:.2f} of their budget apart"
    line("sampler", not other and most <= 1, why, used=most)


def variants(check: str, cases: dict[str, Callable[[Network], Engine]]) -> None:
    """Engines that must answer as a plain one does."""
    given = prompts()
    for dtype in DTYPES:
        model, judge = network(dtype), AnswerJudge(dtype, given, False)
        plain = said(engine_of(model), given)
        distance, _ = judge(plain)
        within(f"{check}: none", distance, judge.allowed, dtype=name(dtype))
        for how, make in cases.items():
            engine = make(model)
            found, again = said(engine, given), said(engine, given)
            # At float32 nearly equal tokens are too rare to meet.
            good = dtype != torch.float32 or [x[0] for x in found] == [x[0] for x in plain]
            captured = (graphs := engine.runner.graphs) is None or (len(graphs.graphs) > 0 and not graphs.failed)
            why = "nothing was captured" if not captured else "tokens differ"
            distance = max(apart(plain, found), apart(found, again))
            within(f"{check}: {how}", distance, 2 * judge.allowed, good and captured, why, dtype=name(dtype))


def graphs() -> None:
    """Replayed graphs, and these one step ahead."""
    variants("graphs", {
        "graphs": partial(engine_of, graphs=True),
        "graphs, one step ahead": partial(engine_of, graphs=True, ahead=True),
    })  # fmt: skip


def steps() -> None:
    """One step ahead without graphs; prompts that several answers share, read once."""
    variants("steps", {"one step ahead": partial(engine_of, ahead=True)})
    given = prompts()
    params = SamplingParams(max_new_tokens=TOKENS, stop_token_ids=(), temperature=1.0, top_k=4, seed=5, n=3)
    for dtype in DTYPES:
        model, judge, found = network(dtype), AnswerJudge(dtype, given, False), []
        judge(said(engine_of(model), given))
        for share in (False, True):
            engine = engine_of(model, slots=16)
            engine.runner.share = share
            found.append(said(engine, given, params))
        good = dtype != torch.float32 or [x[0] for x in found[0]] == [x[0] for x in found[1]]
        distance = apart(*found, greedy=False)
        within("steps: shared prompts", distance, 2 * judge.allowed, good, "tokens differ", dtype=name(dtype))


def bits() -> None:
    """deterministic=True: the same bits alone, together, in another order, cold and warm, with and without ahead."""
    given = prompts()
    for dtype in DTYPES:
        make = partial(engine_of, network(dtype), deterministic=True, chunk=PAGE)
        alone = [one for ids in given for one in said(make(), [ids])]
        engine = make(ahead=True)
        found = {
            "together": said(engine, given),
            "warm": said(engine, given),
            "in another order": said(make(), given[::-1])[::-1],
        }
        for how, answers in found.items():
            why = f"log-probabilities are {apart(alone, answers):.1e} from those alone"
            line(f"bits: {how}", equal(alone, answers), why, dtype=name(dtype))


def fp8() -> None:
    """FP8 products against the same numbers in float32; keys and weights in FP8 against a CPU's emulation."""
    products()
    given = prompts()
    exact = said(engine_of(network(torch.float32, "cpu", joint=False)), given)
    for what, weights, kv in (("keys", False, FP8), ("weights", True, None)):
        # Rows of bfloat16 are what the device multiplies in FP8.
        dtype, found = torch.bfloat16 if weights else torch.float32, []
        for device in ("cpu", DEVICE):
            model = network(dtype, device, joint=False)
            if weights:
                quantise_fp8(model.language_model)
            found.append(said(engine_of(model, kv_dtype=kv), given))
        # A value whose rounding falls to the other side changes far less than that all are rounded.
        within(f"fp8: {what}", apart(*found), apart(found[0], exact), dtype=name(dtype))


def products() -> None:
    """Products of FP8 matrices at the model's widths."""
    g = torch.Generator().manual_seed(4)
    inner, outer = (3584, 4608) if GPU else (64, 48)
    layer = FP8Linear(torch.randn(outer, inner, generator=g) * inner**-0.5, torch.randn(outer, generator=g))
    for rows in (1, 5, 64, 300):
        x = torch.randn(rows, inner, generator=g).bfloat16()
        with torch.no_grad():
            found = copy.deepcopy(layer).to(DEVICE).product(x.to(DEVICE)).cpu().double()
            (a, sa), (b, sb) = ak.quantize_fp8(x), (layer.values, layer.scale)
            a, b = a.double() * sa, b.double() * sb
            expected, size = a @ b.t(), a.abs() @ b.abs().t()
        # Rounding to bfloat16, and sums of which Hopper's tensor cores keep 13 bits (DeepSeek-V3, section 3.5.2).
        room = 2.0**-8 * expected.abs() + 2.0**-11 * size
        used = float(((found - expected).abs() / room).max())
        line(f"fp8: product of {rows} rows", used <= 1, f"{used:.2f} of what is allowed", used=used)


def host() -> None:
    """Pages that go to host memory and a folder and come back have their bits, and answers go on from them."""
    model = network(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        text, most = model.config.text, max(LENGTHS) + TOKENS
        size = text.layers * 2 * PAGE * text.kv_heads * text.head_dim * 2  # bytes of a page
        pages = HostPages(3 * size, Path(folder) / "pages", 1 << 30, device=DEVICE)  # the others are in files
        kv = engine_of(model).runner.kv
        kv.copy_(torch.randn(kv.shape, generator=torch.Generator().manual_seed(6)))
        before = kv[:, :, :8].cpu().clone()
        for page in range(8):
            pages.save(bytes([page]) * 32, b"content", kv[:, :, page])
        kv.zero_()  # at once: the copies come first
        for page in range(8):
            if (payload := pages.load(bytes([page]) * 32, b"content")) is not None:
                kv[:, :, page].copy_(payload, non_blocking=True)
        wrong = [page for page in range(8) if not torch.equal(kv[:, :, page].cpu(), before[:, :, page])]
        line("host: pages", not wrong and not kv[:, :, 8:].any(), f"pages {wrong} have other bits")
        pages.close(keep=False)
        given, restored = prompts(), 0
        offload = HostPages(size, Path(folder) / "answers", 1 << 30, device=DEVICE)
        # So few pages that a prompt needs those of the one before it.
        engine = engine_of(model, pages=-(-most // PAGE), deterministic=True, chunk=PAGE, offload=offload)

        def restore(wanted: list[tuple[bytes, bytes]]) -> list[Tensor]:
            nonlocal restored
            found = offload.load_run(wanted)
            restored += len(found)
            return found

        engine.scheduler.restore = restore
        first, again = ([one for ids in given for one in said(engine, [ids])] for _ in range(2))
        why = f"{apart(first, again):.1e} apart, {restored} pages came back"
        line("host: answers", equal(first, again) and restored > 0, why, restored=restored)
        offload.close(keep=False)


CHECKS = {"tokens": tokens, "graphs": graphs, "steps": steps, "bits": bits, "fp8": fp8, "host": host}


def engine(*names: str) -> int:
    """Checks by name, all without one; an exception is its check's line."""
    if GPU:
        torch.set_num_threads(4)  # for float64 on the CPU
    for one in names or CHECKS:
        if not left(2.0):
            say("engine", check=one, status="skipped", why="no time is left")
            continue
        try:
            CHECKS[one]()
        except Exception as error:
            line(one, False, _verdicts.one_line(error))
    return 0
