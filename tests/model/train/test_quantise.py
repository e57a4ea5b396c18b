"""Weights in NF4 and INT8: how far they are from what they were, gradients through them, and what is kept for those."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from afn_distributed.shard import export_model
from afn_model import AFNext
from afn_model.config import preset
from afn_model.train import lora
from afn_model.train.quantise import BLOCK, NF4, SCALES, QuantisedLinear, coded_weights, decode, quantise
from tests.budget import assert_same_but_rounding, assert_within
from tests.orders import in_orders

EPS = torch.finfo(torch.float32).eps
KINDS = [("int8", True), ("nf4", True), ("nf4", False)]


def test_the_levels_are_quantiles_of_the_normal_distribution():
    """Seven below zero and eight above, between the quantiles that the paper's implementation begins with."""
    high, low = (torch.special.ndtri(torch.linspace(0.9677083, 0.5, n + 1, dtype=torch.float64)[:-1]) for n in (8, 7))
    found = torch.cat((-low, torch.zeros(1), high)).sort().values / high[0]
    # The table was made in float32: a probability off by 2⁻²⁵ moves a quantile, and the largest, 1.85, by 13.8 × that.
    assert_within(torch.tensor(NF4).double(), found, 2 * 13.8 / 1.85 * 2**-25)


@pytest.mark.parametrize(("kind", "double"), KINDS)
@pytest.mark.parametrize("shape", [(33, 70), (1, 1), (300, 64), (5, 640)])
def test_a_weight_comes_back_within_half_a_level(kind, double, shape):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.rand(shape[0], 1)
    weight[0] = 0
    layer = QuantisedLinear(weight, None, kind, double=double)
    if kind == "int8":
        bound = weight.abs().amax(1, keepdim=True).expand(shape) / 254
    else:
        blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        # Half of the widest gap, that from -1; and of a coded scale half a step at the largest level, 1.
        half = (1 + NF4[1]) / 2 * scales
        if double:
            away = F.pad(scales - scales.mean(), (0, -len(scales) % SCALES)).view(-1, SCALES)
            half = half + (away.abs().amax(1) / 254).repeat_interleave(SCALES)[: len(scales)]
        bound = half.repeat_interleave(BLOCK)[: weight.numel()].view(shape)
    assert_within(layer.decoded(), weight, bound + 4 * EPS * weight.abs().max(), name=kind)
    blocks = -(-weight.numel() // BLOCK)
    scales = (blocks + 4 * -(-blocks // SCALES) + 4) if double else 4 * blocks
    expected = weight.numel() + 4 * shape[0] if kind == "int8" else blocks * BLOCK // 2 + scales
    assert sum(b.numel() * b.element_size() for n, b in layer.named_buffers() if n != "levels") == expected


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_product_and_gradient_are_those_of_the_decoded_weight_and_nothing_is_kept(kind, double):
    torch.manual_seed(0)
    bias = nn.Parameter(torch.randn(40), requires_grad=False)
    layer = QuantisedLinear(torch.randn(40, 24), bias, kind, double=double)
    x, dout, kept = torch.randn(9, 24, requires_grad=True), torch.randn(9, 40), []
    weight = layer.decoded()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    assert {t.data_ptr() for t in kept} == {b.data_ptr() for b in layer.buffers()}
    expected = in_orders(lambda: [F.linear(x, weight, bias), dout @ weight])
    assert_same_but_rounding([out, *torch.autograd.grad(out, x, dout)], expected)
    assert layer.product(x.bfloat16()).dtype == torch.bfloat16


def test_codes_of_the_same_weight_on_the_meta_device_have_the_same_shapes():
    for kind, double in KINDS:
        real, meta = (QuantisedLinear(torch.ones(33, 70, device=d), None, kind, double=double) for d in ("cpu", "meta"))
        assert [(b.shape, b.dtype) for b in real.buffers()] == [(b.shape, b.dtype) for b in meta.buffers()]
        assert decode((33, 70), meta.tensors(), torch.bfloat16).shape == (33, 70)


def test_a_model_is_quantised_once_and_is_exported_decoded(tmp_path):
    torch.manual_seed(0)
    model, ids = AFNext(preset("tiny")), torch.arange(1, 13)[None]
    whole = sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match="no base 'nf3'; there are nf4, int8"):
        quantise(model.language_model, "nf3")
    frozen = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("language_model.layers")}
    quantise(model.language_model, "nf4")
    with pytest.raises(ValueError, match="the base is quantised already, to nf4: load it anew to have it in int8"):
        quantise(model.language_model, "int8")
    assert coded_weights(model) + sum(p.numel() for p in model.parameters()) == whole
    lora.add(model, 2, 4, ("q_proj", "down_proj"))
    for layer in lora.adapters(model).values():
        nn.init.normal_(layer.lora_B)
    export_model(model, tmp_path / "model")
    again = AFNext.from_pretrained(tmp_path / "model")
    assert all(torch.equal(again.get_parameter(name), value) for name, value in frozen.items())
    assert_same_but_rounding(model.logits(ids), in_orders(lambda: again.logits(ids)))
    lora.save(model, tmp_path / "adapter")
    quantise(again.language_model, "int8")
    lora.load(again, tmp_path / "adapter")
    assert len(lora.adapters(again)) == 2 * 3
    other = AFNext(preset("tiny"))
    lora.add(other, 2, 4)
    with pytest.raises(ValueError, match="the model has LoRA adapters: quantise the base first"):
        quantise(other.language_model, "nf4")
