"""The loss of a patched model: with labels the logits are made when somebody looks."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call

pytest.importorskip("transformers", reason="patching is tested on transformers models")

import transformers

import afn_kernels as ak
from tests.budget import assert_same_but_rounding
from tests.distributed.ranks import run
from tests.kernels.patch_models import batch, build, cache_name
from tests.orders import in_orders


@pytest.fixture
def calls(model, monkeypatch):
    """How often the weights of the head met all of a batch."""
    ak.patch(model, impl="reference")
    calls, linear, address = [], F.linear, model.lm_head.weight.data_ptr()

    def counting(x, weight, bias=None):
        calls.extend([1] if x.dim() == 3 and weight.data_ptr() == address else [])
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", counting)
    return calls


def test_the_loss_alone_costs_no_logits(model, data, calls):
    out = model(**data.inputs, labels=data.labels)
    assert out["loss"] is out.loss is out[0]
    assert isinstance(out, transformers.modeling_outputs.CausalLMOutputWithPast)
    assert "logits" in out
    assert list(out) == ["loss", "logits", cache_name()]
    out.loss.backward()
    assert not calls
    assert out.logits.shape == (2, 25, 80)
    assert out.logits is out["logits"]
    assert len(calls) == 1


@pytest.mark.parametrize(
    "look",
    [
        operator.attrgetter("logits"),
        operator.itemgetter("logits"),
        operator.itemgetter(1),
        lambda out: out.to_tuple()[1],
        lambda out: out[1:][0],
        lambda out: list(out.values())[1],
        lambda out: dict(out)["logits"],
        lambda out: dict(**out)["logits"],
        lambda out: dict(out.items())["logits"],
        lambda out: out.get("logits"),
        lambda out: copy.copy(out).logits,
        lambda out: type(out)(**out).logits,
        lambda out: torch.utils._pytree.tree_map(lambda x: x, out).logits,
    ],
)
def test_every_way_to_look_finds_them(model, data, look):
    model.config.use_cache = False
    expected = model(**data.inputs, labels=data.labels)
    logits = in_orders(lambda: model(**data.inputs, labels=data.labels).logits)
    ak.patch(model, impl="reference")
    out = model(**data.inputs, labels=data.labels)
    assert_same_but_rounding(look(out), logits)
    assert type(out) is type(expected)
    assert repr(out)[:30] == repr(expected)[:30]


def test_writing_them_costs_nothing(model, data, calls):
    out = model(**data.inputs, labels=data.labels)
    out.logits = torch.zeros(1)
    assert out["logits"].shape == (1,)
    assert not calls


def test_after_the_weights_changed_it_warns(model, data, calls):
    out = model(**data.inputs, labels=data.labels)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with pytest.warns(UserWarning, match="weights changed"):
        out.logits  # noqa: B018


def other_data(model):
    for p in model.parameters():
        p.data = p.data + 1


def another_head(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)


@pytest.mark.parametrize("change", [other_data, another_head, torch.nn.Module.half])
def test_logits_are_of_the_weights_of_the_forward(model, data, change):
    """As of an averaged model that is put in and taken out again, and with the gradients of these weights."""
    weight = model.lm_head.weight

    def evaluate(change=lambda model: None):
        out = model(**data.inputs, labels=data.labels)
        change(model)
        return [out.logits, *torch.autograd.grad(out.logits.square().mean(), weight)]

    before = in_orders(evaluate)
    ak.patch(model, impl="reference")
    if change is torch.nn.Module.half:
        out = model(**data.inputs, labels=data.labels)
        change(model)
        assert_same_but_rounding(out.logits, [logits for logits, _ in before])
    else:
        assert_same_but_rounding(evaluate(change), before)


def test_logits_of_a_functional_call(model, data):
    others = {name: p.detach() / 2 for name, p in model.named_parameters()}
    call = {**data.inputs, "labels": data.labels}
    before = in_orders(lambda: functional_call(model, others, (), call).logits)
    ak.patch(model, impl="reference")
    out = functional_call(model, others, (), call)
    assert_same_but_rounding(out.logits, before)


def test_gradients_of_logits_after_a_step(model, data):
    """In place: the weights are the new ones, and a backward finds its way to them."""
    ak.patch(model, impl="reference")
    out = model(**data.inputs, labels=data.labels)
    out.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    with pytest.warns(UserWarning, match="weights changed"):
        found = torch.autograd.grad(out.logits.sum(), model.lm_head.weight)[0]
    assert found.shape == model.lm_head.weight.shape
    assert found.any()


def test_options_of_the_loss(model, data):
    shifted = F.pad(data.labels, (0, 1), value=-100)[:, 1:].contiguous()
    options = [
        {"labels": data.labels, "num_items_in_batch": 7},
        {"labels": data.labels, "num_items_in_batch": torch.tensor(9)},
        {"labels": data.labels, "shift_labels": shifted},
        {"labels": data.labels, "logits_to_keep": 0},
        {"labels": data.labels, "return_dict": False},
        {"labels": torch.full_like(data.labels, -100)},
    ]
    expected = [in_orders(lambda option=option: model(**data.inputs, **option)[0]) for option in options]
    ak.patch(model, impl="reference")
    for option, losses in zip(options[:-1], expected, strict=False):
        assert_same_but_rounding(model(**data.inputs, **option)[0], losses)
    assert model(**data.inputs, **options[-1])[0].isnan()
    assert expected[-1][0].isnan()


def test_arguments_by_position(model, data):
    inputs = (data.inputs["input_ids"], data.inputs["attention_mask"], None, None, None, data.labels, False, 0)

    def call():
        out = model(*inputs)
        return out.loss, out.logits

    expected = in_orders(call)
    ak.patch(model, impl="reference")
    assert_same_but_rounding(call(), expected)


def test_a_loss_function_of_its_own_is_called(model, data):
    model.loss_function = lambda logits, labels, **_: logits.sum()
    report = ak.patch(model, impl="reference")
    out = model(**data.inputs, labels=data.labels)
    assert torch.equal(out.loss, out.logits.sum())
    assert report.fallbacks == {("Qwen2ForCausalLM", "loss: the model has a loss function of its own"): 1}


def test_bad_labels_raise_what_they_raised(model, data):
    data.labels[0, 3] = 80
    with pytest.raises(IndexError) as before:
        model(**data.inputs, labels=data.labels)
    ak.patch(model, impl="reference")
    with pytest.raises(IndexError, match=str(before.value)):
        model(**data.inputs, labels=data.labels)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_batch_without_a_label_has_gradients_of_zero(impl):
    """The loss is NaN, as without the patch, and no gradient is: a masked batch must not destroy the weights."""
    model, ids = build("llama", layers=1), torch.randint(3, 60, (1, 6))
    ak.patch(model, only=["linear_cross_entropy"], impl=impl)
    for options in ({}, {"num_items_in_batch": 0}):
        loss = model(ids, labels=torch.full_like(ids, -100), **options).loss
        loss.backward()
        assert loss.isnan()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_head_with_a_bias(model, data):
    """As transformers' Phi has one: the fused loss adds it, and logits that are read later have it."""
    head = model.lm_head
    model.lm_head = torch.nn.Linear(head.in_features, head.out_features)
    model.lm_head.weight = head.weight

    def evaluate():
        model.zero_grad()
        out = model(**data.inputs, labels=data.labels)
        out.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if name.startswith("lm_head")}
        return {"loss": out.loss.detach(), "logits": out.logits.detach(), **grads}

    plain = in_orders(evaluate)
    report = ak.patch(model, only="linear_cross_entropy", impl="reference")
    found = evaluate()
    assert not report.fallbacks
    assert_same_but_rounding(found, plain)


def test_a_head_with_a_forward_of_its_own_is_called(model, data):
    """As accelerate's hooks and soft caps are put in: what the head computes is what the loss is of."""
    head = model.lm_head
    head.forward = lambda x: 3 * torch.tanh(F.linear(x, head.weight) / 3)
    before = in_orders(lambda: model(**data.inputs, labels=data.labels).loss)
    report = ak.patch(model, impl="reference")
    assert_same_but_rounding(model(**data.inputs, labels=data.labels).loss, before)
    assert any("the head" in reason for _, reason in report.fallbacks)


def on_two_ranks(process, alone: bool):
    """Each rank has a row of the batch; gradients are the mean of both rows', logits those of the rank's own."""
    data = batch("qwen2")
    rows = [{name: x[row : row + 1] for name, x in data.inputs.items()} for row in (0, 1)]

    def step(model, row):
        model.zero_grad()
        out = model(**rows[row], labels=data.labels[row : row + 1])
        out.loss.backward()
        return out, [p.grad for p in model.parameters()]

    plain = build("qwen2")

    def both():
        each = [[g.clone() for g in step(plain, row)[1]] for row in (0, 1)]
        return [sum(pair) / 2 for pair in zip(*each, strict=True)]

    expected, logits = in_orders(both), in_orders(lambda: plain(**rows[process.rank]).logits)
    sharded, mesh = build("qwen2"), init_device_mesh("cpu", (2,))
    report = ak.patch(sharded, impl="reference")
    for unit in (*sharded.model.layers, *([sharded.lm_head] if alone else []), sharded):
        fully_shard(unit, mesh=mesh)
    out, found = step(sharded, process.rank)
    assert "_make_logits" in vars(out)
    assert not report.fallbacks, report.fallbacks
    assert_same_but_rounding([grad.full_tensor() for grad in found], expected)
    assert_same_but_rounding(out.logits, logits)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_under_fsdp2_on_two_ranks(alone):
    run(2, on_two_ranks, alone)
