"""``patch``: the same numbers, the same text, the same loss curve, the same model afterwards, in every architecture."""

import copy
import inspect

import pytest
import torch
from torch.func import functional_call

pytest.importorskip("transformers", reason="patching is tested on transformers models")

import afn_kernels as ak
from tests.budget import assert_same_but_rounding, assert_within_budget, lost, pooled
from tests.kernels.patch_configs import MORE
from tests.kernels.patch_models import ARCHITECTURES, DECODERS, batch, build, cast, precise, widest
from tests.orders import in_orders

LLAMA = {"rms_norm", "swiglu", "rotary", "attention", "linear_cross_entropy"}
HEARD = {"layer_norm", "bias_gelu"}
GEMMA = {*LLAMA, "geglu"} - {"swiglu"}
EXPECTED = {
    "musicflamingo": {*LLAMA, *HEARD, "pool_norm", "rote"},
    "audioflamingo3": {*LLAMA, *HEARD, "pool_norm"},
    "qwen2_audio": {*LLAMA, *HEARD, "pool_norm"},
    "voxtral": {*LLAMA, *HEARD},
    "whisper": {*HEARD, "attention", "linear_cross_entropy"},
    **{name: LLAMA for name in (*DECODERS, "phi3", "granite", "smollm3")},
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "phi4_multimodal": {*LLAMA, "layer_norm"},
    "granite_speech": {*LLAMA, "layer_norm"},
    "qwen2_5_omni": {*LLAMA, *HEARD},
    "qwen3_omni_moe": {*LLAMA, *HEARD},
    "glmasr": {*LLAMA, *HEARD},
    "qwen3_asr": {*LLAMA, *HEARD},
    "moonshine": {*LLAMA, *HEARD} - {"rms_norm"},
    "wav2vec2": {*HEARD, "attention"},
}


def run(model, inputs, labels) -> dict[str, torch.Tensor]:
    """Loss, logits and every gradient by name."""
    model.zero_grad()
    out = model(**inputs, labels=labels)
    out.loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": out.loss.detach(), "logits": out.logits.detach(), **grads}


def plain_pytorch(model, data, dtype, orders: int = 8) -> list[dict[str, torch.Tensor]]:
    """The model as it is, in several orders of summation, its attention fused and written out."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    inputs = data.call(dtype)
    models = (model, eager)
    return [one for each in models for one in in_orders(lambda each=each: run(each, inputs, data.labels), orders)]


def in_float64(model, data) -> dict[str, torch.Tensor]:
    with widest():
        return run(precise(copy.deepcopy(model)), data.call(torch.float64), data.labels)


def each_dtype(name: str, *dtypes: torch.dtype, slow: bool = False) -> list:
    marks = [pytest.mark.slow] if slow else []
    return [pytest.param(name, dtype, id=f"{name}-{str(dtype)[6:]}", marks=marks) for dtype in dtypes]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(case for name in ARCHITECTURES for case in each_dtype(name, torch.float32, torch.bfloat16)),
        *(case for name in MORE for case in each_dtype(name, torch.float32)),
        *(case for name in MORE for case in each_dtype(name, torch.bfloat16, slow=True)),
    ],
)
def test_logits_and_every_gradient_stay_within_the_budget(name, dtype):
    # Padding behind a window of keys is for the original attention, which is another test's.
    lengths = (25, 25) if name in ("gemma2", "gemma3") else (25, 18)
    model, data = cast(build(name), dtype), batch(name, lengths=lengths)
    same, oracle = plain_pytorch(model, data, dtype), in_float64(model, data)
    draws = [(same, oracle)]
    if name in MORE and dtype == torch.bfloat16:  # the error of one batch's gradients is one throw of dice
        others = [batch(name, seed=seed, lengths=lengths) for seed in (1, 2)]
        draws += [(plain_pytorch(model, other, dtype, 3), in_float64(model, other)) for other in others]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    signatures = [inspect.signature(module.forward) for module in model.modules()]
    report = ak.patch(model, impl="reference")
    assert {entry.op for entry in report.replaced} == EXPECTED[name]
    assert [inspect.signature(module.forward) for module in model.modules()] == signatures
    found = run(model, data.call(dtype), data.labels)
    assert not report.fallbacks, report.fallbacks
    assert found.keys() == oracle.keys()
    losses = {key: [x for ours, exact in draws for x in lost([one[key] for one in ours], exact[key])] for key in found}
    elsewhere = pooled(losses)
    for key, value in found.items():
        assert value.dtype == same[0][key].dtype, key
        # A float32 loss of 16-bit logits is one number, known no better than these: their eps is its eps.
        budget = {"elsewhere": elsewhere[key], "name": key}
        assert_within_budget(value.to(dtype), [other[key] for other in same], oracle[key], **budget)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_revert_brings_back_the_very_same_model(name):
    model, data = build(name), batch(name)
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    before = run(model, data.inputs, data.labels)
    report = ak.patch(model, impl="reference")
    assert any("forward" in vars(module) for module in model.modules())
    report.revert()
    report.revert()
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    after = run(model, data.inputs, data.labels)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *(name for name in MORE if name != "wav2vec2")])
def test_greedy_generation_is_the_same(name):
    model, data = build(name).eval(), batch(name, side="left")
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    if "decoder_input_ids" in data.prompt:
        options["decoder_input_ids"] = data.prompt.pop("decoder_input_ids")
    for row in ("use_cache", "no cache"):
        options["use_cache"] = row == "use_cache"
        before = model.generate(**data.prompt, **options)
        report = ak.patch(model, impl="reference")
        after = model.generate(**data.prompt, **options)
        report.revert()
        assert torch.equal(after, before), row
        assert not report.fallbacks, report.fallbacks


def train(model, inputs: dict, labels: torch.Tensor, steps: int = 30) -> torch.Tensor:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("name", ["musicflamingo", "qwen3", "whisper"])
def test_thirty_steps_of_training_give_the_same_curve(name):
    data, build_one = batch(name), lambda: build(name, layers=1)
    eager = build_one()
    eager.set_attn_implementation("eager")
    orders = in_orders(lambda: train(build_one(), data.inputs, data.labels), 5)
    same = [train(eager, data.inputs, data.labels), *orders]
    oracle = train(precise(build_one()), data.call(torch.float64), data.labels).double()
    assert oracle[-1] < 0.9 * oracle[0]
    model = build_one()
    report = ak.patch(model, impl="reference")
    found = train(model, data.inputs, data.labels)
    assert not report.fallbacks
    # An error of one step moves all later ones: the budget of the curve is that of its worst step so far.
    for step in range(1, len(found) + 1):
        assert_within_budget(found[:step], [other[:step] for other in same], oracle[:step])


@pytest.mark.parametrize("name", ["musicflamingo", "qwen3", "whisper"])
def test_kernels_under_the_interpreter_give_the_same_numbers(name):
    model, data = build(name, layers=1), batch(name, lengths=(9, 6) if name == "qwen3" else (15, 14))
    same = plain_pytorch(model, data, torch.float32)
    oracle = run(precise(copy.deepcopy(model)), data.call(torch.float64), data.labels)
    report = ak.patch(model, impl="triton")
    assert {entry.op for entry in report.replaced} == EXPECTED[name]
    found = run(model, data.inputs, data.labels)
    assert not report.fallbacks, report.fallbacks
    for key, value in found.items():
        assert_within_budget(value, [other[key] for other in same], oracle[key], ulps=2, name=key)


def test_a_patched_model_runs_functionally():
    model, data = build("qwen2").eval(), batch("qwen2")
    before = in_orders(lambda: model(**data.inputs).logits)
    ak.patch(model, impl="reference")
    scaled = {name: 0 * p if name.endswith("lm_head.weight") else p for name, p in model.named_parameters()}
    found = functional_call(model, dict(model.named_parameters()), (), data.inputs).logits
    assert_same_but_rounding(found, before)
    assert not functional_call(model, scaled, (), data.inputs).logits.any()
