"""Joint projections are the layers they are made of; FP8 ones are their rounded weights and inputs."""

import copy

import pytest
import torch

import afn_kernels as ak
from afn_model import AFNext
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.network.fused import fuse, quantise_fp8
from afn_model.network.joint import FP8, FP8Linear
from tests.budget import assert_same_but_rounding
from tests.model.infer.test_generate import conversations
from tests.orders import in_orders
from tests.tiny import tiny

PARAMS = SamplingParams(max_new_tokens=8, stop_token_ids=(), logprobs=0)


@pytest.fixture(scope="module")
def pair():
    return tiny()


def said(model, processor, **options) -> tuple[list, list]:
    engine = Engine(model, pages=100, **options)
    requests = engine.add(processor(conversations()), PARAMS)
    engine.run()
    answers = [request.answers[0] for request in requests]
    return [answer.tokens for answer in answers], [torch.tensor(answer.logprobs) for answer in answers]


def test_joint_weights_change_nothing_and_are_held_once(pair):
    model, processor = pair
    joint = copy.deepcopy(model)
    fuse(joint.language_model)
    attention = joint.language_model.layers[0].self_attn
    assert attention.k_proj.weight.untyped_storage().data_ptr() == attention.fused.weight.untyped_storage().data_ptr()
    assert said(joint, processor)[0] == said(model, processor)[0]
    assert said(joint, processor, chunk=64)[0] == said(model, processor)[0]
    with torch.no_grad():
        attention.v_proj.weight.mul_(2.0)  # as an optimiser writes
    assert said(joint, processor)[0] != said(model, processor)[0]


def test_layers_that_are_more_than_linear_stay(pair):
    model = copy.deepcopy(pair[0])
    attention = model.language_model.layers[0].self_attn
    attention.q_proj.register_forward_hook(lambda module, given, out: out)
    fuse(model.language_model)
    assert attention.fused is None
    assert model.language_model.layers[1].self_attn.fused is not None
    with pytest.raises(ValueError, match="layer 0: a Linear cannot be turned to FP8: merge adapters first"):
        quantise_fp8(model.language_model)


def test_an_fp8_product_is_that_of_the_rounded_factors():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 64, generator=generator), torch.randn(48, 64, generator=generator)
    bias = torch.randn(48, generator=generator)
    rounded = [(values.double() * scale.double()) for values, scale in map(ak.quantize_fp8, (x, weight))]
    expected = in_orders(lambda: (rounded[0] @ rounded[1].t() + bias).float())
    found = FP8Linear(weight, bias)(x)
    assert_same_but_rounding(found, expected)
    # e4m3 has 3 bits behind the point: each factor is off by 2^-4 of itself at most.
    exact = x.double() @ weight.double().t() + bias
    assert ((found - exact).abs() <= (2 * 2**-4 + 2**-8) * (x.abs().double() @ weight.abs().double().t()) + 1e-5).all()
    assert not torch.allclose(found, exact.float(), rtol=1e-3, atol=1e-3)


def test_a_models_dtype_is_not_that_of_its_codes():
    layer, x = FP8Linear(torch.randn(32, 16), torch.randn(32)), torch.randn(3, 16)
    codes, scale = layer.values.clone(), layer.scale.clone()
    cast = torch.nn.Sequential(layer).to(torch.bfloat16).half().to(torch.bfloat16)
    assert layer.values.dtype == codes.dtype
    assert layer.scale.equal(scale)
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.values.float(), codes.float())
    assert cast(x.bfloat16()).dtype == torch.bfloat16


def test_a_folder_is_read_in_fp8(pair, tmp_path):
    """By name, for whole sequences as for generation; there are no gradients, and no other names."""
    model, processor = copy.deepcopy(pair[0]), pair[1]
    model.save_pretrained(tmp_path)
    found, expected = AFNext.from_pretrained(tmp_path, weights="fp8").eval(), copy.deepcopy(model)
    quantise_fp8(expected.language_model)
    assert said(found, processor)[0] == said(expected, processor)[0]
    ids = torch.arange(20, 60)[None]
    for block in model.language_model.layers:
        for part in (block.self_attn, block.mlp):
            for name, layer in list(part.named_children()):
                setattr(part, name, FP8Linear(layer.weight, layer.bias))
    with torch.no_grad():
        assert_same_but_rounding(found.logits(ids), in_orders(lambda: model.logits(ids)))
    with pytest.raises(ValueError, match=r"have no gradients: call it under torch.no_grad\(\)"):
        found.logits(ids)
    with pytest.raises(ValueError, match="weights 'int4': 'fp8' or None is expected"):
        AFNext.from_pretrained(tmp_path, weights="int4")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="e4m3fn, which no checkpoint has: save the model as it was"):
        found.save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("weights", [False, True])
def test_keys_and_weights_in_fp8(pair, weights):
    model, processor = copy.deepcopy(pair[0]), pair[1]
    expected = said(model, processor)[1]
    if weights:
        quantise_fp8(model.language_model)
        assert not any(name.endswith("q_proj.weight") for name, _ in model.language_model.named_parameters())
    engine = Engine(model, pages=100, kv_dtype=FP8)
    assert engine.runner.kv.nbytes * 4 == Engine(pair[0], pages=100).runner.kv.nbytes
    found = said(model, processor, kv_dtype=FP8)[1]
    first = [abs(float(a[0] - b[0])) for a, b in zip(found, expected, strict=True)]
    assert 0 < max(first) < 2.0, "a random model feels it, and is still itself"
