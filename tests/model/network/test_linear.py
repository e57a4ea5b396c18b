"""Products that kernels go on from, with an adapter beside the weight: the same as the layer's own, gradients too.

And what generation on a CPU multiplies by oneDNN.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import afn_kernels as ak
from afn_model import AFNext
from afn_model.config import preset
from afn_model.network.linear import ONEDNN_PRODUCTS, _onednn, linear, operands, product
from afn_model.prompt.batch import Batch
from afn_model.train import lora
from afn_model.train.lora_linear import LoRALinear
from tests.budget import assert_same_but_rounding, assert_within_budget
from tests.orders import in_orders


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(24, 40), 3, 6)
    nn.init.normal_(layer.lora_A)
    nn.init.normal_(layer.lora_B)
    return layer


def with_gradients(layer, found):
    out = found()
    return [out.detach(), *torch.autograd.grad(out.square().sum(), (layer.lora_A, layer.lora_B))]


def test_both_are_the_layers_output_without_its_bias(layer):
    x = torch.randn(7, 24)
    expected = in_orders(lambda: with_gradients(layer, lambda: layer(x) - layer.bias))
    assert_same_but_rounding(with_gradients(layer, lambda: product(layer, x)), expected)
    assert_same_but_rounding(with_gradients(layer, lambda: F.linear(*operands(layer, x))), expected)
    assert operands(layer, x)[1].shape == (40, 24 + 8), "kernels read whole 16 bytes of a row"
    with lora.disabled(layer):
        assert operands(layer, x) == (x, layer.weight)


def test_a_plain_layer_is_left_alone():
    plain, x = nn.Linear(24, 40), torch.randn(7, 24)
    assert torch.equal(product(plain, x), F.linear(x, plain.weight))
    assert operands(plain, x) == (x, plain.weight)


@pytest.fixture
def large(monkeypatch):
    """A layer and rows enough for oneDNN, as on a CPU where it is the faster."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr("afn_model.network.linear._onednn_is_faster", lambda: True)
    plain = nn.Linear(127, 130).requires_grad_(False)
    return plain, torch.randn(-(-ONEDNN_PRODUCTS // plain.weight.numel()), 127)


def test_many_rows_are_multiplied_within_the_budget(large):
    plain, x = large
    with torch.inference_mode():
        assert _onednn(plain, x, True) is not None
        for bias, found in ((plain.bias, linear(plain, x)), (None, product(plain, x))):
            same = in_orders(lambda bias=bias: F.linear(x, plain.weight, bias))
            exact = F.linear(x.double(), plain.weight.double(), None if bias is None else bias.double())
            assert_within_budget(found, same, exact)


def test_what_is_the_layers_own_matter(large, layer):
    """With a gradient, of few rows, of other layers, types and shapes, with a hook, and where somebody else decides."""
    plain, x = large
    assert torch.equal(linear(plain, x), plain(x))
    with torch.inference_mode():
        assert torch.equal(linear(plain, x[:2]), plain(x[:2]))
        for other, rows in ((plain, x[:-1]), (layer, torch.randn(4096, 24)), (plain, x.double()), (plain, x[None])):
            assert _onednn(other, rows, True) is None
        with torch.autocast("cpu"):
            assert _onednn(plain, x, True) is None
        with ak.prefer("reference"):
            assert _onednn(plain, x, True) is None
        plain.register_forward_hook(lambda *_: torch.zeros(1))
        assert not linear(plain, x).any()


def test_adapters_of_the_head_reach_loss_and_log_probabilities():
    """The fused kernels read the weight, past the layer's own forward."""
    torch.manual_seed(0)
    model, nothing = AFNext(preset("tiny")), torch.empty(0, dtype=torch.int64)
    ids, answer = torch.arange(3, 15), [7, 9]
    lora.add(model, 2, 4, {"lm_head": "all-linear"})
    nn.init.normal_(model.lm_head.lora_B)
    batch = Batch(ids, torch.tensor([0, len(ids)], dtype=torch.int32), None, nothing, nothing, ids.clone())

    def expected():
        scores = model.logits(torch.cat((ids, torch.tensor(answer)))[None])[0].log_softmax(-1)
        loss = F.nll_loss(scores[: len(ids) - 1], ids[1:])
        return torch.cat((loss[None], scores[len(ids) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]))

    def found():
        return torch.cat((model.loss(batch)[None], model.answer_logprobs(batch, [[answer]])))

    def gradients(out):
        return [out.detach(), *torch.autograd.grad(out.sum(), (model.lm_head.lora_A, model.lm_head.lora_B))]

    assert_same_but_rounding(gradients(found()), in_orders(lambda: gradients(expected())))
