"""Attention of a patched model: masks as packed sequences, caches, and what goes to the original function."""

import copy
import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="patching is tested on transformers models")

import transformers

import afn_kernels as ak
from afn_kernels.patch import packed_batch
from afn_kernels.patch.packed_batch import PackedBatch
from afn_kernels.patch.report import STATE
from tests.budget import assert_same_but_rounding
from tests.kernels.patch_models import batch, build, cache_name
from tests.orders import in_orders


class TestMasks:
    """What transformers' boolean masks say, as packed sequences."""

    LENGTH = 12

    def causal(self, *segments: tuple[int, ...]) -> torch.Tensor:
        """Rows of segment numbers; 0 is padding, which sees nothing."""
        ids = torch.tensor(segments)
        below = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        return (below & (ids[:, :, None] == ids[:, None]) & (ids[:, :, None] > 0))[:, None]

    def check(self, mask, causal, known=True, window=None):
        q, k, v = torch.randn(3, len(mask), 4, self.LENGTH, 16, dtype=torch.float64).unbind()
        layout = PackedBatch.of(mask, len(mask), causal, window)
        assert (layout is not None) == known
        if known:
            expected = in_orders(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
            expected = [x.masked_fill(~mask.any(-1, keepdim=True), 0).transpose(1, 2) for x in expected]
            assert_same_but_rounding(layout.run(q, k, v, 0.25, "reference"), expected)

    def test_packed_left_and_right(self):
        self.check(self.causal([1] * 5 + [2] * 3 + [3] * 4, [1] * 11 + [2], [0] * 4 + [1] * 8, [1] * 12), True)
        padded = self.causal([1] * 7 + [0] * 5, [1] * 12)
        padded[0, 0, 7:, :7] = True  # padding after a sequence sees it, as transformers has it
        self.check(padded, True)
        self.check(self.causal([1] * 7 + [0] * 5, [0] * 11 + [1]), True)

    def test_sliding_windows(self):
        near = ~torch.ones(12, 12, dtype=torch.bool).tril(-4)
        for rows in ([1] * 5 + [2] * 7, [0] * 4 + [1] * 8, [1] * 12):
            self.check(self.causal(rows, [1] * 12) & near, True, window=4)
        self.check(self.causal([1] * 12), True, window=4)  # a layer that has one, in a mask without
        right = self.causal([1] * 7 + [0] * 5)
        right[0, 0, 7:, :7] = True
        self.check(right & near, True, known=False, window=4)
        self.check(self.causal([1] * 12) & near, True, known=False, window=5)

    def test_masks_that_are_added(self):
        seen = self.causal([1] * 5 + [2] * 7, [1] * 12)
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        wanted, found = (PackedBatch.of(mask, 2, True) for mask in (seen, added))
        assert torch.equal(found.q_rows, wanted.q_rows)
        assert torch.equal(found.cu_q, wanted.cu_q)
        added[0, 0, 3, 2] = -1.5
        assert PackedBatch.of(added, 2, True) is None

    def test_keys_of_an_encoder(self):
        valid = torch.arange(self.LENGTH) < torch.tensor([12, 5, 1])[:, None]
        self.check(valid[:, None, None].expand(-1, 1, self.LENGTH, -1), False)

    def test_what_is_neither_goes_elsewhere(self):
        holes = self.causal([1] * 12)
        holes[0, 0, 9, 3] = False
        self.check(holes, True, known=False)
        window = self.causal([1] * 12) & ~torch.ones(12, 12, dtype=torch.bool).tril(-4)
        self.check(window, True, known=False)
        self.check(self.causal([1] * 12), False, known=False)
        scattered = self.causal([1] * 12)
        scattered[..., 4] = False
        self.check(scattered, True, known=False)

    def test_a_mask_is_looked_at_once_and_again_when_it_changes(self, monkeypatch):
        looks, look = [], packed_batch._causal_layout
        monkeypatch.setattr(
            packed_batch, "_causal_layout", lambda seen, window: (looks.append(1), look(seen, window))[1]
        )
        mask = self.causal([1] * 12)
        first = PackedBatch.of(mask, 1, True)
        assert PackedBatch.of(mask, 1, True) is first
        mask[0, 0, 6:, :6] = False
        self.check(mask, True)
        assert len(looks) == 2

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_rows_of_a_padded_batch_match_the_original(self, model, side):
        data = batch("qwen2", side=side)
        kept = data.inputs["attention_mask"].bool() if side == "left" else slice(None)
        before = in_orders(lambda: model(**data.inputs).logits[kept])
        report = ak.patch(model, impl="reference")
        assert_same_but_rounding(model(**data.inputs).logits[kept], before)
        assert not report.fallbacks

    @pytest.mark.parametrize("case", ["forward", "backward", "float16"])
    def test_padding_that_sees_nothing_in_eager_attention(self, case):
        """Gemma 2 without sdpa: its mean over all keys predicts the first token, so it is in the loss."""
        model, data = build("gemma2"), batch("gemma2", side="left")
        model = model.half() if case == "float16" else model

        def step():
            model.zero_grad()
            with torch.set_grad_enabled(case == "backward"):
                out = model(**data.inputs, labels=data.labels)
            if case == "backward":
                out.loss.backward()
            return [out.loss, out.logits, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

        before = in_orders(step)
        report = ak.patch(model, only="attention" if case == "float16" else None, impl="reference")
        assert_same_but_rounding(step(), before)
        assert len(report.fallbacks) == (case != "forward")

    def test_packed_by_positions(self, model):
        """Two documents in a row, told apart by their positions, as transformers' packing has it."""
        ids = torch.randint(3, 60, (1, 20))
        positions = torch.cat((torch.arange(12), torch.arange(8)))[None]
        call = lambda: model(input_ids=ids, position_ids=positions, use_cache=False).logits  # noqa: E731
        before = in_orders(call)
        report = ak.patch(model, impl="reference")
        assert_same_but_rounding(call(), before)
        assert not report.fallbacks


def test_attention_weights_are_there_when_asked_for(model, data):
    model.set_attn_implementation("eager")
    model.eval()
    report = ak.patch(model, impl="reference")
    assert "attention" not in {entry.op for entry in report.replaced}
    assert len(model(**data.inputs, output_attentions=True).attentions) == 2
    model.set_attn_implementation("sdpa")
    report.revert()
    report = ak.patch(model, impl="reference")
    model.set_attn_implementation("eager")
    out = model(**data.inputs, output_attentions=True, output_hidden_states=True)
    assert out.attentions[0].shape == (2, 4, 25, 25)
    assert len(out.hidden_states) == 3
    assert ("Qwen2Attention", "attention: the model is set to 'eager'") in report.fallbacks


@pytest.mark.parametrize("static", [False, True])
def test_a_prompt_in_parts_and_then_step_by_step(model, data, static):
    """Keys of earlier parts are in the cache: more keys than queries is for the original function."""
    model.eval()
    ids = data.inputs["input_ids"][:1]

    def parts():
        kept = transformers.DynamicCache(config=model.config)
        if static:
            kept = transformers.StaticCache(config=model.config, max_cache_len=32)
        cuts = ((0, 10), (10, 18), (18, 19), (19, 20))
        return torch.cat([model(ids[:, a:b], **{cache_name(): kept}, use_cache=True).logits for a, b in cuts], dim=1)

    with torch.no_grad():
        before = in_orders(parts)
        report = ak.patch(model, impl="reference")
        assert_same_but_rounding(parts(), before)
    (key,) = report.fallbacks
    assert key[0] == "Qwen2Attention"


def test_dropout_in_training_runs_the_original_attention():
    model = build("qwen2", attention_dropout=0.5)
    report = ak.patch(model, impl="reference")
    data = batch("qwen2")
    model(**data.inputs)
    assert report.fallbacks == {("Qwen2Attention", "attention: dropout"): 2}
    model.eval()(**data.inputs)
    assert report.fallbacks == {("Qwen2Attention", "attention: dropout"): 2}


def test_a_mask_changed_in_place_under_inference_mode(model):
    report = ak.patch(model, only=["attention"], impl="reference")
    ids = torch.randint(3, 60, (1, 12))
    with torch.inference_mode():
        mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
        model(ids, attention_mask=mask)
        mask[..., 6:, :6] = False
        after = model(ids, attention_mask=mask).logits
        report.revert()
        assert_same_but_rounding(after, in_orders(lambda: model(ids, attention_mask=mask).logits))


def test_a_mask_changed_where_no_version_counts(model, monkeypatch):
    """Through the array that it came from: each forward looks at it, and only its first layer."""
    looks, look = [], PackedBatch.look
    monkeypatch.setattr(PackedBatch, "look", lambda *args: (looks.append(1), look(*args))[1])
    array = np.tril(np.ones((1, 1, 12, 12), dtype=bool))
    ids, mask = torch.randint(3, 60, (1, 12)), torch.from_numpy(array)
    report = ak.patch(model, only=["attention"], impl="reference")
    model(ids, attention_mask=mask)
    array[..., 6:, :6] = False
    after = model(ids, attention_mask=mask).logits
    assert len(looks) == 2
    report.revert()
    assert_same_but_rounding(after, in_orders(lambda: model(ids, attention_mask=mask).logits))


def test_a_mask_that_is_trained(model):
    """Though it only hides keys, it has a gradient."""
    ids, hidden = torch.randint(3, 60, (1, 9)), ~torch.ones(9, 9, dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, 9, 9).masked_fill(hidden, torch.finfo(torch.float32).min).requires_grad_()

    def call():
        return torch.autograd.grad(model(ids, attention_mask=mask).logits.square().sum(), mask)

    before = in_orders(call)
    ak.patch(model, only=["attention"], impl="reference")
    assert_same_but_rounding(call(), before)


def twice(call):
    """A function of transformers as somebody changes it."""
    return lambda *args, **kwargs: tuple(x if x is None else 2 * x for x in call(*args, **kwargs))


class TestFunctionsThatSomebodyElsePutIn:
    """What a model calls by name may be another function by now, before the patch or after it."""

    @pytest.mark.parametrize("patch_first", [True, False])
    def test_attention(self, model, data, monkeypatch, patch_first):
        functions = transformers.AttentionInterface._global_mapping
        report = ak.patch(model, impl="reference") if patch_first else None
        monkeypatch.setitem(functions, "sdpa", twice(functions["sdpa"]))
        if report is None:
            report = ak.patch(model, impl="reference")
            assert "attention" not in {entry.op for entry in report.replaced}
        found, fallbacks = model(**data.inputs).logits, set(report.fallbacks)
        report.revert()
        assert_same_but_rounding(found, in_orders(lambda: model(**data.inputs).logits))
        reason = "attention: somebody else has put in a function as 'sdpa'"
        assert fallbacks == ({("Qwen2Attention", reason)} if patch_first else set())

    @pytest.mark.parametrize("patch_first", [True, False])
    def test_rotary(self, model, data, monkeypatch, patch_first):
        file = importlib.import_module(type(model).__module__)
        report = ak.patch(model, impl="reference") if patch_first else None
        monkeypatch.setattr(file, "apply_rotary_pos_emb", twice(file.apply_rotary_pos_emb))
        if report is None:
            report = ak.patch(model, impl="reference")
            assert "rotary" not in {entry.op for entry in report.replaced}
        found, fallbacks = model(**data.inputs).logits, set(report.fallbacks)
        report.revert()
        assert_same_but_rounding(found, in_orders(lambda: model(**data.inputs).logits))
        reason = "rotary: somebody else has replaced apply_rotary_pos_emb"
        assert fallbacks == ({("Qwen2Attention", reason)} if patch_first else set())


class TestAnotherRotaryEmbedding:
    """A model whose positions are not what transformers makes of them."""

    @pytest.fixture
    def slower(self, model):
        """One that stretches positions."""
        cls = type(model.model.rotary_emb)

        class Slower(cls):
            def forward(self, x, position_ids):
                return super().forward(x, position_ids / 4)

        return Slower(model.config)

    @pytest.mark.parametrize("patch_first", [True, False])
    def test_with_a_forward_of_its_own(self, model, data, slower, patch_first):
        report = ak.patch(model, impl="reference") if patch_first else None
        model.model.rotary_emb = slower
        if report is None:
            report = ak.patch(model, impl="reference")
            assert {e.reason for e in report.skipped} == {"Slower, its rotary_emb, has a forward of its own"}
        found, fallbacks = model(**data.inputs).logits, set(report.fallbacks)
        report.revert()
        assert_same_but_rounding(found, in_orders(lambda: model(**data.inputs).logits))
        reason = "rotary: the model has another rotary_emb since the patch"
        assert fallbacks == ({("Qwen2Attention", reason)} if patch_first else set())

    def test_with_other_frequencies(self, model, data):
        report = ak.patch(model, impl="reference")
        config = transformers.Qwen2Config(**{**model.config.to_dict(), "rope_parameters": None})
        config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        found = model(**data.inputs).logits
        assert not report.fallbacks
        report.revert()
        assert_same_but_rounding(found, in_orders(lambda: model(**data.inputs).logits))

    def test_whose_forward_somebody_changes(self, model, data, monkeypatch):
        cls = type(model.model.rotary_emb)
        theirs = cls.forward
        monkeypatch.setattr(cls, "forward", lambda self, x, position_ids: theirs(self, x, position_ids / 4))
        before = in_orders(lambda: model(**data.inputs).logits)
        report = ak.patch(model, impl="reference")
        assert "rotary" not in {entry.op for entry in report.replaced}
        assert_same_but_rounding(model(**data.inputs).logits, before)

    def test_of_a_copied_model(self, model, data):
        ak.patch(model, impl="reference")
        twin = copy.deepcopy(model)
        attention = twin.model.layers[0].self_attn
        assert getattr(attention, STATE).owner.module is twin.model
        assert getattr(copy.deepcopy(attention), STATE).owner.module is None
        before = model(**data.inputs).logits
        twin.model.rotary_emb.inv_freq.mul_(2)
        assert torch.equal(model(**data.inputs).logits, before)
        assert not torch.equal(twin(**data.inputs).logits, before)
