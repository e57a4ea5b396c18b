"""``patch`` under torch.compile: the ops are in the graph, masked attention and the loss among them."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="patching is tested on transformers models")

import afn_kernels as ak
from afn_kernels.patch import compiled
from afn_kernels.patch.packed_batch import PackedBatch
from tests.budget import assert_same_but_rounding, gradients
from tests.kernels.patch_models import batch, build
from tests.orders import in_orders


def grads(model) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def masks() -> dict[str, torch.Tensor]:
    """Boolean masks [2, 1, 9, 9] of causal batches."""
    below = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, 9, 9)
    left, right, packed, holes = (below.clone() for _ in range(4))
    left[0, 0, :4] = left[0, 0, :, :4] = False
    right[0, 0, 5:] = right[0, 0, :, 5:] = False
    right[0, 0, 5:, :5] = True
    packed[1, 0, 4:, :4] = False
    holes[0, 0, 7, 2] = False
    return {"left": left, "right": right, "packed": packed, "neither": holes}


class TestMaskedAttention:
    """The op of graphs, which looks into the mask when the graph runs."""

    @pytest.mark.parametrize("impl", ["reference", "triton"])
    @pytest.mark.parametrize("name", masks())
    def test_forward_and_backward(self, name, impl):
        mask = masks()[name]
        q, k, v = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        seen = mask.any(-1)[..., None].transpose(1, 2)

        def plain():
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
            out = out.transpose(1, 2).where(seen, 0.0)
            return [out, *gradients(out, tuple(leaves))]

        def ours():
            number = compiled.LOOK(mask, 2, True)
            out = compiled.ATTEND(q, k, v, mask, number, True, 0.3, impl)[0].where(seen, 0.0)
            return [out, *gradients(out, tuple(leaves))]

        assert (PackedBatch.look(mask, 2, True) is None) == (name == "neither")
        assert_same_but_rounding(ours(), in_orders(plain))

    def test_what_is_no_longer_kept_is_looked_at_again(self, monkeypatch):
        monkeypatch.setattr(compiled, "MOST", 1)
        mask, x = masks()["left"], torch.randn(2, 2, 9, 16)
        number = compiled.LOOK(mask, 2, True)
        before = compiled.ATTEND(x, x, x, mask, number, True, 0.3, "reference")[0]
        compiled.LOOK(masks()["packed"], 2, True)
        assert torch.equal(compiled.ATTEND(x, x, x, mask, number, True, 0.3, "reference")[0], before)

    def test_as_torch_wants_ops(self):
        mask, x = masks()["right"], torch.randn(2, 2, 9, 16, requires_grad=True)
        number = compiled.LOOK(mask, 2, True)
        arguments = (x, x, x, mask, number, True, 0.3, "reference")
        torch.library.opcheck(compiled.ATTEND.op, arguments)
        for check in ("test_schema", "test_faketensor"):
            torch.library.opcheck(compiled.LOOK.op, (mask, 2, True), test_utils=check)


@pytest.mark.parametrize("way", ["torch.compile", "model.compile", "patched first"])
def test_a_compiled_model_calls_the_ops(data, way):
    """A graph made before is not used again: the next one has the ops in it, and none after revert."""
    model, seen = build("qwen2", layers=1), []

    def backend(graph, example_inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    model.eval()
    inputs = {"input_ids": data.inputs["input_ids"]}
    whole, before = model, in_orders(lambda: model(**inputs).logits)
    report = ak.patch(model, impl="triton") if way == "patched first" else None
    if way == "model.compile":
        model.compile(backend=backend)
    else:
        whole = torch.compile(model, backend=backend)
    with torch.no_grad():
        if report is None:
            whole(**inputs)
            assert seen
            assert not any("afn." in name for name in seen)
            report = ak.patch(whole, impl="triton")
            seen.clear()
        assert_same_but_rounding(whole(**inputs).logits, before)
        for op in ("rms_norm", "swiglu", "rotary"):
            assert f"afn.{op}.default" in seen, op
        assert bool(report.notes) == (way != "patched first")
        report.revert()
        assert torch.equal(whole(**inputs).logits, before[0])
    torch.compiler.reset()


def test_a_training_step_compiles_to_one_graph(data):
    """As it does without the patch: no replacement breaks the graph."""

    seen = []

    def step(whole: bool):
        model = build("qwen3", layers=2)
        ak.patch(model, impl="reference")

        def backend(graph, example_inputs):
            seen.extend(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        call = torch.compile(model, backend=backend, fullgraph=True) if whole else model
        out = call(**data.inputs, labels=data.labels, use_cache=False)
        assert "_make_logits" in vars(out)
        out.loss.backward()
        return [out.loss.detach(), out.logits.detach(), *(g.clone() for g in grads(model))]

    assert_same_but_rounding(step(True), in_orders(lambda: step(False)))
    assert seen.count("afn.patch_attend.default") == 2
    torch.compiler.reset()


def test_a_compiled_encoder_calls_attention_too():
    """Without a mask to look into, all of it is one graph."""
    encoder = build("whisper", layers=1).model.encoder.eval()
    data, seen = batch("whisper"), []

    def backend(graph, example_inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        before = in_orders(lambda: encoder(**data.inputs).last_hidden_state)
        ak.patch(encoder, impl="triton")
        after = torch.compile(encoder, backend=backend, fullgraph=True)(**data.inputs).last_hidden_state
    assert_same_but_rounding(after, before)
    assert {"afn.attention.default", "afn.layer_norm.default", "afn.bias_gelu.default"} <= set(seen)
    torch.compiler.reset()


@pytest.mark.slow
def test_a_mask_that_is_added():
    """A graph cannot know whether it only hides keys, so the original function takes it."""
    model, ids = build("llama", layers=1).eval(), torch.randint(3, 60, (2, 9))
    mask = torch.arange(-9, 0).expand(2, 1, 9, 9) / 4
    mask = mask.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), torch.finfo(torch.float32).min)
    with torch.no_grad():
        before = in_orders(lambda: model(ids, attention_mask=mask).logits)
        ak.patch(model, impl="reference")
        compiled_model = torch.compile(model, backend=lambda graph, example_inputs: graph.forward)
        assert_same_but_rounding(compiled_model(ids, attention_mask=mask).logits, before)
    torch.compiler.reset()
