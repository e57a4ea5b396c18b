"""The compiled step is the language model's own, token by token, and stands aside where it could differ."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import afn_kernels as ak
from afn_kernels import cpu
from afn_model import AFNext
from afn_model.config import AudioConfig, ModelConfig, TextConfig
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.tokens import PromptTokens
from afn_model.network import decode_step
from afn_model.network.decode_step import MOST_ROWS, ROWS, CompiledRows
from afn_model.network.fused import fuse, quantise_fp8
from afn_model.network.joint import JointLinear
from afn_model.network.kv_cache import PagedChunks, PagedKV, PagedRows
from afn_model.network.language_model import DecoderBlock, LanguageModel
from tests.budget import assert_within_budget, fresh
from tests.orders import in_orders

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available() or "built")
LEVELS = [] if cpu.available() else __import__("afn_kernels._cpu")._cpu.simd_levels()
PAGE = 4
LENGTHS = (1, 3, 4, 5, 8, 9, 70)  # at the first token, at both sides of a page's border, past a step of 64 keys


@dataclass
class Rows:
    """New tokens of sequences of any length, each with pages of its own."""

    x: Tensor
    positions: Tensor
    slots: Tensor
    kv: Tensor
    table: Tensor
    lengths: Tensor
    chunks: PagedChunks | None = None  # which come first

    def paged(self, only: slice = slice(None)) -> tuple[Tensor, Tensor, PagedKV]:
        """Arguments of a forward pass over some of them, with a copy of the pages."""
        rows = PagedRows(self.table[only], self.lengths[only])
        kv = PagedKV(self.kv.clone(), self.slots[only], row_tokens=len(rows.table), rows=rows)
        if self.chunks is not None:
            kv = replace(kv, chunks=self.chunks, chunk_tokens=int(self.chunks.cu_seqlens[-1]))
        return self.x[only], self.positions[only], kv


def model_of(config: TextConfig) -> LanguageModel:
    """With random weights, biases and norms."""
    model, g = LanguageModel(config), fresh()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=g) * (1.5 * weight.shape[-1] ** -0.5))
    return model.requires_grad_(False)


def rows_of(config: TextConfig, lengths: tuple[int, ...] = LENGTHS) -> Rows:
    g, count = fresh(), len(lengths)
    pages = -(-max(lengths) // PAGE)
    table = torch.randperm(count * pages, generator=g).view(count, pages).int()
    last = torch.tensor(lengths) - 1
    slots = table[torch.arange(count), last // PAGE].long() * PAGE + last % PAGE
    kv = torch.randn(config.layers, 2, count * pages, PAGE, config.kv_heads, config.head_dim, generator=g)
    x, positions = torch.randn(count, config.width, generator=g), last * 0.75
    return Rows(x, positions, slots, kv, table, torch.tensor(lengths).int())


def mixed_of(config: TextConfig, spans: list[tuple[int, int]], lengths: tuple[int, ...]) -> Rows:
    """Tokens [start, stop) of some sequences, and a row of others."""
    g, rows = fresh(), rows_of(config, lengths)
    pages = -(-max(stop for _, stop in spans) // PAGE)
    table = rows.kv.shape[2] + torch.randperm(len(spans) * pages, generator=g).view(-1, pages).int()
    kv = torch.randn(config.layers, 2, len(spans) * pages, *rows.kv.shape[3:], generator=g)
    places = [torch.arange(*span) for span in spans]
    slots = [row[at // PAGE].long() * PAGE + at % PAGE for row, at in zip(table, places, strict=True)]
    bounds = torch.tensor([0, *itertools.accumulate(map(len, places))]).int()
    x = torch.randn(int(bounds[-1]), config.width, generator=g)
    return Rows(
        torch.cat([x, rows.x]), torch.cat([*places, rows.positions]).float(), torch.cat([*slots, rows.slots]),
        torch.cat([rows.kv, kv], 2), rows.table, rows.lengths,
        PagedChunks(bounds, table, torch.tensor([stop for _, stop in spans]).int()),
    )  # fmt: skip


def assert_like(model: LanguageModel, rows: Rows, out: Tensor, kv: Tensor) -> None:
    """Hidden states and pages are the model's, within what roundings change in them."""

    def plainly(model: LanguageModel, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x, positions, paged = rows.paged()
        paged = replace(paged, kv=paged.kv.to(dtype))
        with ak.prefer("reference"):
            return model(x.to(dtype), positions, kv=paged), paged.kv

    plain = LanguageModel(replace(model.config, layers=len(model.layers), rms_eps=model.norm.eps))
    plain.load_state_dict(model.state_dict())
    exact = plainly(plain.double(), torch.float64)
    others = list(zip(*in_orders(lambda: plainly(model, torch.float32), count=12), strict=True))
    for name, found, same, oracle in zip(("hidden", "pages"), (out, kv), others, exact, strict=True):
        assert_within_budget(found, list(same), oracle, name=name)


def through(compiled: CompiledRows, x: Tensor, positions: Tensor, kv: PagedKV) -> Tensor:
    found = compiled(x, positions, kv)
    assert found is not None, "it stands aside"
    return found


CONFIG = TextConfig(20, 24, 2, heads=2, kv_heads=1, ffn=44)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("width", "heads", "kv_heads", "ffn"), [(24, 2, 1, 44), (96, 6, 2, 37), (40, 4, 4, 130)])
@torch.inference_mode()
def test_it_is_the_model(level, width, heads, kv_heads, ffn, monkeypatch):
    """Hidden states and pages, of widths that fill no vectors; a row that is not written changes no page."""
    monkeypatch.setenv("AFN_SIMD", level)
    config = TextConfig(20, width, 2, heads, kv_heads, ffn)
    model, rows = model_of(config), rows_of(config)
    rows.slots[3] = -1

    x, positions, kv = rows.paged()
    out = through(CompiledRows(model), x, positions, kv)
    assert_like(model, rows, out, kv.kv)
    written = (kv.kv != rows.kv).flatten(-2).any(-1).flatten(2).all(1).all(0)
    assert written.nonzero()[:, 0].tolist() == sorted(slot for slot in rows.slots.tolist() if slot >= 0)


@pytest.mark.parametrize("level", LEVELS)
@torch.inference_mode()
def test_a_row_has_the_same_bits_beside_any_others(level, monkeypatch):
    monkeypatch.setenv("AFN_SIMD", level)
    compiled, rows = CompiledRows(model_of(CONFIG)), rows_of(CONFIG)
    whole = through(compiled, *rows.paged())
    for size in (1, 2, 3, 4, 5):
        parts = [through(compiled, *rows.paged(slice(at, at + size))) for at in range(0, len(LENGTHS), size)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("spans", [[(0, 5), (63, 64), (3, 70)], [(0, 66)]], ids=["some", "a longer one"])
@torch.inference_mode()
def test_chunks_beside_rows_are_the_models(spans):
    model, rows = model_of(CONFIG), mixed_of(CONFIG, spans, (1, 9, 5))
    x, positions, kv = rows.paged()
    out = through(CompiledRows(model), x, positions, kv)
    assert_like(model, rows, out, kv.kv)


@pytest.mark.parametrize("level", LEVELS)
@torch.inference_mode()
def test_a_prompts_token_has_the_bits_of_a_row(level, monkeypatch):
    """In chunks of any size, alone and beside rows: hidden states, and the pages that it leaves."""
    monkeypatch.setenv("AFN_SIMD", level)
    tokens = 67
    compiled, mixed = CompiledRows(model_of(CONFIG)), mixed_of(CONFIG, [(0, tokens)], LENGTHS)
    assert mixed.chunks is not None
    x, positions, kv = mixed.paged()
    whole, table = through(compiled, x, positions, kv), mixed.chunks.table
    for size in (1, 3, 64):
        pages, found = mixed.kv.clone(), []
        for start in range(0, tokens, size):
            stop = min(start + size, tokens)
            here, lengths = slice(start, stop), torch.tensor([stop]).int()
            part = PagedKV(pages, mixed.slots[here], row_tokens=1, rows=PagedRows(table, lengths))
            if size > 1:
                chunk = PagedChunks(torch.tensor([0, stop - start]).int(), table, lengths)
                part = replace(part, row_tokens=0, rows=None, chunk_tokens=stop - start, chunks=chunk)
            found.append(through(compiled, x[here], positions[here], part))
        assert torch.equal(torch.cat(found), whole[:tokens])
        assert torch.equal(pages[:, :, table[0].long()], kv.kv[:, :, table[0].long()])
    rows = rows_of(CONFIG)
    rows.x, rows.positions, rows.slots, rows.kv = x[tokens:], positions[tokens:], mixed.slots[tokens:], mixed.kv
    rows.table, rows.lengths = mixed.table, mixed.lengths
    assert torch.equal(through(compiled, *rows.paged()), whole[tokens:])


@torch.inference_mode()
def test_threads_change_no_bit():
    """A product of 8 rows with these weights is above what one thread computes alone."""
    config = TextConfig(20, 1040, 1, heads=8, kv_heads=2, ffn=2060)
    model, rows = model_of(config), rows_of(config, (5,) * 8)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(through(CompiledRows(model), *rows.paged()))
        torch.set_num_threads(before)
    assert torch.equal(*found)


@torch.inference_mode()
def test_padding_is_zeros():
    compiled, rows = CompiledRows(model_of(CONFIG)), rows_of(CONFIG)
    x, positions, kv = rows.paged()
    more = torch.cat([x, x[:2]]), torch.cat([positions, positions[:2]])
    out = through(compiled, *more, replace(kv, slots=torch.cat([kv.slots, kv.slots.new_full((2,), -1)])))
    assert torch.equal(out[:-2], through(compiled, *rows.paged()))
    assert not out[-2:].any()


def layer_of(model: LanguageModel, index: int) -> DecoderBlock:
    layer = model.layers[index]
    assert isinstance(layer, DecoderBlock)
    return layer


def joint(model: LanguageModel) -> None:
    fuse(model)
    fused = layer_of(model, 0).mlp.fused
    assert isinstance(fused, JointLinear)
    fused.weight.mul_(2)


CHANGES = {
    "in place": lambda model: layer_of(model, 0).mlp.down_proj.weight.mul_(2),
    "data": lambda model: setattr(layer_of(model, 1).self_attn.k_proj.bias, "data", model.norm.weight[:12] * 3),
    "parameter": lambda model: setattr(model, "norm", layer_of(model, 0).input_layernorm),
    "module": lambda model: setattr(layer_of(model, 1).self_attn, "q_proj", layer_of(model, 0).self_attn.q_proj),
    "layer": lambda model: model.layers.pop(1),
    "joint weights": joint,
    "eps": lambda model: [setattr(module, "eps", 0.5) for module in model.modules() if hasattr(module, "eps")],
}


@pytest.mark.parametrize("change", CHANGES)
@torch.inference_mode()
def test_a_change_of_the_weights_is_seen(change):
    model, rows = model_of(CONFIG), rows_of(CONFIG)
    compiled = CompiledRows(model)
    before = through(compiled, *rows.paged())
    CHANGES[change](model)
    rows.kv = rows.kv[: len(model.layers)].contiguous()
    x, positions, kv = rows.paged()
    found = through(compiled, x, positions, kv)
    assert not torch.equal(found, before)
    assert_like(model, rows, found, kv.kv)


class MoreThanLinear(nn.Linear):
    """What an adapter is to it."""


def adapted(model: LanguageModel) -> None:
    layer_of(model, 1).self_attn.o_proj = MoreThanLinear(24, 24, bias=False)


ASIDE = {
    "a hook": lambda model: layer_of(model, 0).register_forward_hook(lambda *_: None),
    "a hook before": lambda model: layer_of(model, 1).mlp.up_proj.register_forward_pre_hook(lambda *_: None),
    "FP8": quantise_fp8,
    "an adapter": adapted,
    "an eps of its own": lambda model: setattr(layer_of(model, 1).input_layernorm, "eps", 0.5),
    "bfloat16": lambda model: model.bfloat16(),
    "one weight in float64": lambda model: layer_of(model, 0).self_attn.v_proj.double(),
}


@pytest.mark.parametrize("why", ASIDE)
@torch.inference_mode()
def test_it_stands_aside_from_models(why):
    model, rows = model_of(CONFIG), rows_of(CONFIG)
    compiled = CompiledRows(model)
    assert compiled(*rows.paged()) is not None
    handle = ASIDE[why](model)
    assert compiled(*rows.paged()) is None
    if hasattr(handle, "remove"):
        handle.remove()
        assert compiled(*rows.paged()) is not None


def test_it_stands_aside_from_calls(monkeypatch):
    """With a gradient, fresh chunks, shared prefixes, many rows, bfloat16, a page that is not there, bounds."""
    compiled, rows = CompiledRows(model_of(CONFIG)), rows_of(CONFIG)
    assert compiled(*rows.paged()) is None
    with torch.inference_mode():
        x, positions, kv = rows.paged()
        assert kv.rows is not None
        prefixes = replace(kv.rows, prefix_lengths=torch.zeros(1).int())
        chunks = PagedChunks(torch.arange(len(LENGTHS) + 1).int(), kv.rows.table, kv.rows.lengths)
        alone = replace(kv, rows=None, row_tokens=0, chunks=chunks, chunk_tokens=len(LENGTHS))
        schedule = ak.attention_schedule(chunks.cu_seqlens, total_q=7, head_dim=12, dtype=torch.float32, causal=True)
        assert torch.equal(through(compiled, *rows.paged()), through(compiled, x, positions, alone))
        kv, alone = (replace(one, kv=rows.kv.clone()) for one in (kv, alone))
        for other in (
            replace(alone, chunks=replace(chunks, schedule=schedule)),
            replace(alone, chunks=replace(chunks, cu_seqlens=chunks.cu_seqlens + 1)),
            replace(alone, chunks=replace(chunks, cu_seqlens=(chunks.cu_seqlens - 1).clamp(min=0))),
            replace(kv, rows=None, row_tokens=0),
            replace(kv, chunk_tokens=1),
            replace(kv, rows=prefixes),
            replace(kv, kv=kv.kv.bfloat16()),
            replace(kv, rows=replace(kv.rows, lengths=kv.rows.lengths * 0)),
            replace(kv, rows=replace(kv.rows, table=kv.rows.table + kv.kv.shape[2])),
        ):
            assert compiled(x, positions, other) is None
            assert other.kv.dtype != torch.float32 or torch.equal(other.kv, rows.kv)
        for count, taken in ((MOST_ROWS, True), (MOST_ROWS + 1, False)):
            assert (compiled(*rows_of(CONFIG, (2,) * count).paged()) is not None) == taken
        monkeypatch.setattr(decode_step, "MOST_PRODUCTS", 1)
        compiled = CompiledRows(compiled.model)
        for count, taken in ((ROWS, True), (ROWS + 1, False)):
            assert (compiled(*rows_of(CONFIG, (2,) * count).paged()) is not None) == taken
        with torch.autocast("cpu"):
            assert compiled(*rows.paged()) is None


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_engine_decodes_by_it(deterministic, monkeypatch):
    """Four answers of six tokens after a prompt's last one, whose pass is a chunk and begins them: rows of them all."""
    text = TextConfig(20, 24, 2, heads=2, kv_heads=1, ffn=44, max_positions=64)
    audio = AudioConfig(width=16, layers=1, heads=2, ffn=16)
    model = AFNext(ModelConfig(audio=audio, text=text, audio_token_id=19, stop_token_ids=(0,))).eval()
    rows, step = [], cpu.CompiledDecoder.__call__

    def counted(self, x, *rest, **options):
        rows.append(len(x))
        return step(self, x, *rest, **options)

    monkeypatch.setattr(cpu.CompiledDecoder, "__call__", counted)
    engine = Engine(model, pages=16, deterministic=deterministic)
    engine.submit(PromptTokens([1, 2, 3]), SamplingParams(max_new_tokens=6, stop_token_ids=(), n=4, temperature=1.0), 0)
    engine.run()
    assert sum(rows) >= 4 * 5
    assert max(rows) == 4
