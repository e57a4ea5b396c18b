"""``patch`` among the other things people do to a model: compile, shard, adapt, checkpoint, copy, rename."""

import copy
import functools
import importlib
import io
import threading
import types

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("transformers", reason="patching is tested on transformers models")

import transformers

import afn_kernels as ak
from afn_kernels.patch import replacements
from afn_kernels.patch.table import LEFT_ALONE
from tests.budget import assert_same_but_rounding, assert_within_budget
from tests.kernels.patch_models import batch, build, precise
from tests.orders import in_orders


def grads(model) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def step(model, data) -> list[torch.Tensor]:
    """The gradients of one step."""
    model.zero_grad()
    model(**data.inputs, labels=data.labels).loss.backward()
    return grads(model)


def test_a_second_patch_finds_nothing_to_do_and_reverts_nothing(model, data):
    before = model(**data.inputs).logits
    first, second = ak.patch(model, impl="reference"), ak.patch(model, impl="reference")
    assert first.replaced
    assert not second.replaced
    assert {entry.reason for entry in second.skipped} == {"already patched"}
    patched = model(**data.inputs).logits
    second.revert()
    assert torch.equal(model(**data.inputs).logits, patched)
    first.revert()
    assert torch.equal(model(**data.inputs).logits, before)
    assert ak.patch(model, impl="reference").replaced == first.replaced


def test_ops_can_be_added_one_after_the_other():
    model = build("audioflamingo3")
    norms = ak.patch(model, only=("rms_norm", "layer_norm"), impl="reference")
    assert {entry.op for entry in norms.replaced} == {"rms_norm", "layer_norm"}
    rest = ak.patch(model, skip=("attention", "rotary"), impl="reference")
    assert {entry.op for entry in rest.replaced} == {"swiglu", "bias_gelu", "linear_cross_entropy"}
    assert "already patched" in {entry.reason for entry in rest.skipped if entry.op == "pool_norm"}
    norms.revert()
    data = batch("audioflamingo3")
    model(**data.inputs, labels=data.labels).loss.backward()
    rest.revert()
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_that_somebody_else_replaced_is_left_alone(model):
    norm, own = model.model.norm, lambda x: x
    norm.forward = own
    report = ak.patch(model, impl="reference")
    (entry,) = [entry for entry in report.skipped if entry.path == "model.norm"]
    assert entry.reason == "somebody else has replaced its forward"
    layer = model.model.layers[0].input_layernorm
    wrapped = layer.forward
    layer.forward = lambda x: wrapped(x)
    with pytest.warns(UserWarning, match="replaced after the patch"):
        report.revert()
    assert norm.forward is own
    assert layer.forward is not wrapped


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("head", ["of the root", "by itself"])
@pytest.mark.parametrize("patch_first", [True, False])
def test_under_fsdp2(model, data, one_rank, patch_first, head):
    """fully_shard puts classes and hooks of its own in front; before or after the patch, a step is the same."""
    expected = in_orders(lambda: step(model, data))
    logits = in_orders(lambda: model(**data.inputs).logits)
    sharded = build("qwen2")
    if patch_first:
        report = ak.patch(sharded, impl="reference")
    for layer in sharded.model.layers:
        fully_shard(layer.mlp, mesh=one_rank)
        fully_shard(layer, mesh=one_rank)
    if head == "by itself":
        fully_shard(sharded.lm_head, mesh=one_rank)
    fully_shard(sharded, mesh=one_rank)
    if not patch_first:
        report = ak.patch(sharded, impl="reference")
    ops = {entry.op for entry in report.replaced}
    assert ops == {"rms_norm", "swiglu", "rotary", "attention", "linear_cross_entropy"}
    out = sharded(**data.inputs, labels=data.labels)
    assert "_make_logits" in vars(out)
    out.loss.backward()
    assert_same_but_rounding([grad.full_tensor() for grad in grads(sharded)], expected)
    assert not report.fallbacks
    assert_same_but_rounding(out.logits, logits)
    sharded.eval()(**data.inputs, labels=data.labels)
    assert {reason[:29] for _, reason in report.fallbacks} == {"loss: outside training somebo"}
    report.revert()
    sharded(**data.inputs)


@pytest.mark.parametrize("find_unused_parameters", [True, False])
def test_under_ddp(model, data, one_rank, find_unused_parameters):
    expected = in_orders(lambda: step(model, data))
    replica = DistributedDataParallel(build("qwen2"), find_unused_parameters=find_unused_parameters)
    report = ak.patch(replica, impl="reference")
    replica(**data.inputs, labels=data.labels).loss.backward()
    assert_same_but_rounding(grads(replica), expected)
    assert not report.fallbacks


@pytest.mark.parametrize("patch_first", [True, False])
def test_under_peft(data, patch_first):
    peft = pytest.importorskip("peft", reason="LoRA layers come from peft")
    targets = ["q_proj", "v_proj", "gate_proj", "down_proj"]
    lora = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")

    def step(patched: bool):
        torch.manual_seed(3)
        model = build("qwen2")
        report = ak.patch(model, impl="reference") if patched and patch_first else None
        model = peft.get_peft_model(model, lora)
        if patched and not patch_first:
            report = ak.patch(model, impl="reference")
        for i, (name, p) in enumerate(model.named_parameters()):
            if "lora_" in name:
                nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(i))
        out = model(**data.inputs, labels=data.labels)
        out.loss.backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        found = {"loss": out.loss, "logits": out.logits, **trained}
        return found, list(peft.get_peft_model_state_dict(model)), report

    keys = step(False)[1]
    found, found_keys, report = step(True)
    assert not report.fallbacks
    assert found_keys == keys
    assert_same_but_rounding(found, in_orders(lambda: step(False)[0], 4))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(model, data, reentrant):
    report = ak.patch(model, impl="reference")
    model(**data.inputs, labels=data.labels).loss.backward()
    expected = [g.clone() for g in grads(model)]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(**data.inputs, labels=data.labels, use_cache=False).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(grads(model), expected, strict=True))
    assert not report.fallbacks


def test_half_of_the_modules_unknown(model, data):
    before = in_orders(lambda: model(**data.inputs).logits)
    layer = model.model.layers[0]
    renamed = (layer.input_layernorm, layer.mlp, layer.self_attn)
    for name, module in zip(("HouseNorm", "Gated", "Attends"), renamed, strict=True):
        own = type(module).forward
        module.__class__ = type(name, (type(module),), {"forward": lambda self, *a, own=own, **k: own(self, *a, **k)})
    report = ak.patch(model, impl="reference")
    unknown = {entry.type: entry.reason for entry in report.skipped}
    assert unknown.keys() == {"HouseNorm", "Gated", "Attends"}
    assert all(reason.startswith("it has a forward of its own") for reason in unknown.values())
    assert not any("forward" in vars(module) for module in renamed)
    assert "forward" in vars(layer.post_attention_layernorm)
    assert_same_but_rounding(model(**data.inputs).logits, before)


def test_a_version_with_another_forward_is_left_alone(model, monkeypatch):
    cls = type(model.model.norm)
    monkeypatch.setattr(cls, "forward", lambda self, x, gate=None: x)
    for layer in model.model.layers:
        del layer.mlp.act_fn
    report = ak.patch(model, impl="reference")
    reasons = {entry.type: entry.reason for entry in report.skipped}
    assert reasons["Qwen2RMSNorm"] == "this version's forward takes (x, gate)"
    assert reasons["Qwen2MLP"] == "this version has no act_fn"
    assert {entry.type for entry in report.replaced} == {"Qwen2ForCausalLM", "Qwen2Attention"}


def test_other_activations_and_norms_are_left_alone():
    config = transformers.Qwen2Config(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=8)
    config.hidden_act = "gelu"
    report = ak.patch(transformers.Qwen2ForCausalLM(config), impl="reference")
    assert "its activation is GELUActivation, not SiLU" in {entry.reason for entry in report.skipped}


@pytest.mark.parametrize(("name", "op"), [("qwen2", "swiglu"), ("gemma2", "geglu"), ("qwen2_audio", "bias_gelu")])
def test_an_activation_put_in_after_the_patch(name, op):
    model, data = build(name), batch(name)
    report = ak.patch(model, only=op, impl="reference")
    for path in [path for path, _ in model.named_modules()]:
        if path.endswith((".act_fn", ".activation_fn")):
            model.set_submodule(path, nn.Tanh())
    found = model(**data.inputs).logits
    report.revert()
    assert_same_but_rounding(found, in_orders(lambda: model(**data.inputs).logits))
    assert {reason[:26] for _, reason in report.fallbacks} == {"its activation is Tanh, no"}


def test_what_is_not_from_transformers_is_left_alone_and_said():
    model = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(1, 4), nn.MultiheadAttention(4, 1), nn.ModuleList())
    report = ak.patch(model, impl="reference")
    assert not report.replaced
    assert {entry.type for entry in report.skipped} == {"GroupNorm", "MultiheadAttention"}
    assert all(entry.reason.startswith("unknown") for entry in report.skipped)
    assert str(ak.patch(nn.Linear(2, 2))) == "nothing in this model is known to afn_kernels"


def test_what_can_be_got_wrong(model):
    with pytest.raises(TypeError, match="the class Qwen2ForCausalLM"):
        ak.patch(type(model))
    with pytest.raises(TypeError, match="got a str"):
        ak.patch("Qwen/Qwen2")
    with pytest.raises(ValueError, match="no op 'rmsnorm'"):
        ak.patch(model, only=["rmsnorm"])
    with pytest.raises(ValueError, match="impl is 'cuda'"):
        ak.patch(model, impl="cuda")


def test_the_report_of_a_deep_model_is_short():
    text = str(ak.patch(build("musicflamingo", layers=36), impl="reference"))
    assert "36 x Qwen2MLP" in text
    assert "73 x Qwen2RMSNorm" in text
    assert len(text.splitlines()) < 20


def test_auto_leaves_alone_what_is_no_faster_on_a_cpu(model, data):

    def call():
        out = model(**data.inputs, labels=data.labels)
        return out.loss, out.logits

    before = in_orders(call)
    report = ak.patch(model)
    assert {(entry.op, entry.reason) for entry in report.skipped} <= set(LEFT_ALONE["cpu"].items())
    assert {entry.op for entry in report.replaced}.isdisjoint(LEFT_ALONE["cpu"])
    assert_same_but_rounding(call(), before)


def test_auto_goes_by_the_device(model):
    model.to("meta")
    report = ak.patch(model)
    assert not report.replaced
    assert {entry.reason for entry in report.skipped} == {"nobody timed it on meta"}
    assert {entry.op for entry in ak.patch(model, impl="triton").replaced} == {entry.op for entry in report.skipped}
    assert LEFT_ALONE["cuda"] == {}
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    assert model(ids, labels=ids).logits.shape == (2, 8, 80)


def test_a_deep_copy_is_patched_by_itself(model, data):
    report = ak.patch(model, impl="reference")
    twin = copy.deepcopy(model)
    before = model(**data.inputs).logits
    for p in twin.parameters():
        p.data.zero_()
    assert torch.equal(model(**data.inputs).logits, before)
    assert not twin(**data.inputs).logits.any()
    norm = twin.model.norm
    assert norm.forward.__self__ is norm
    report.revert()
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_pickled_model_comes_back_unpatched(model, data):
    before = model(**data.inputs).logits
    ak.patch(model, impl="reference")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(**data.inputs).logits, before)
    assert ak.patch(loaded, impl="reference").replaced


def test_hooks_still_see_what_they_saw():
    """Norm, projections and activations called one by one: hooks on any of them fire, with the same tensors."""
    model, data = build("audioflamingo3").eval(), batch("audioflamingo3")
    names = ["act_fn", "activation_fn", "avg_pooler", "layer_norm", "fc1", "linear_1", "norm", "q_proj", "rotary_emb"]
    seen = []

    def record(module, args, output):
        seen.append((module, output[0] if isinstance(output, tuple) else output))

    for path, module in model.named_modules():
        if path.rpartition(".")[2] in names:
            module.register_forward_hook(record)

    def hooked() -> list:
        seen.clear()
        model(**data.inputs)
        return list(seen)

    with torch.no_grad():
        before = in_orders(hooked)
        report = ak.patch(model, impl="reference")
        found = hooked()
    assert report.fallbacks
    assert [module for module, _ in found] == [module for module, _ in before[0]]
    assert_same_but_rounding([x for _, x in found], [[x for _, x in one] for one in before])


def test_autocast_gives_what_it_gave(model, data):
    def run(model, autocast=True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(**data.inputs, labels=data.labels)
        out.loss.backward()
        return [out.loss.detach(), out.logits.detach(), *(g.clone() for g in grads(model))]

    oracle = run(precise(copy.deepcopy(model)), autocast=False)
    same = in_orders(lambda: run(model))
    ak.patch(model, impl="reference")
    for found, exact, *others in zip(run(model), oracle, *same, strict=True):
        assert found.dtype == others[0].dtype
        assert_within_budget(found.bfloat16(), others, exact)  # what comes of bfloat16 is known no better


def test_a_call_that_an_op_refuses_runs_the_original(model, data):
    """Norm weights kept in float32 under a bfloat16 stream, as some recipes have them."""
    model.model.norm.float()
    model.model.layers.bfloat16()
    model.model.embed_tokens.bfloat16()
    model.lm_head.float()
    before = model(**data.inputs).logits
    report = ak.patch(model, only=["rms_norm"], impl="reference")
    assert torch.equal(model(**data.inputs).logits, before)
    ((key, calls),) = report.fallbacks.items()
    assert key[0] == "Qwen2RMSNorm"
    assert "bfloat16" in key[1]
    assert calls == 1
    assert "fell back  1 calls of Qwen2RMSNorm" in str(report)


def test_the_pooling_waits_for_its_norm_only_where_it_may(monkeypatch):
    """A pooling put off is done by the norm; where the op refuses, both run as they were."""
    model, data = build("audioflamingo3").eval(), batch("audioflamingo3")
    with torch.no_grad():
        before = in_orders(lambda: model(**data.inputs).logits)
        report = ak.patch(model, only=["pool_norm"], impl="reference")
        assert_same_but_rounding(model(**data.inputs).logits, before)
        assert not report.fallbacks

        def refuse(*args, **kwargs):
            raise ValueError("not today")

        monkeypatch.setattr(replacements, "pool_norm_op", refuse)
        assert torch.equal(model(**data.inputs).logits, before[0])
        assert report.fallbacks.pop(("LayerNorm", "not today")) == 1
        model.model.audio_tower.avg_pooler.register_forward_hook(lambda *_: None)
        assert torch.equal(model(**data.inputs).logits, before[0])
    assert [type_name for type_name, _ in report.fallbacks] == ["AvgPool1d"]


def test_a_class_that_somebody_else_changed_is_left_alone(model, data, monkeypatch):
    """As Liger and others do it: not instance by instance."""
    module = importlib.import_module("transformers.models.qwen2.modeling_qwen2")
    theirs = module.Qwen2RMSNorm.forward
    monkeypatch.setattr(module.Qwen2RMSNorm, "forward", lambda self, hidden_states: 2 * theirs(self, hidden_states))
    before = model(**data.inputs).logits
    report = ak.patch(model, only=["rms_norm"], impl="reference")
    assert not report.replaced
    assert "somebody else has replaced its class's forward" in str(report)
    assert torch.equal(model(**data.inputs).logits, before)


def test_a_class_of_the_same_name_from_elsewhere_is_left_alone():
    class LlamaRMSNorm(nn.Module):
        """Gemma's: 1 + weight."""

        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.zeros(8)), 1e-6

        def forward(self, hidden_states):
            return (1 + self.weight) * nn.functional.rms_norm(hidden_states, (8,))

    norm, x = LlamaRMSNorm(), torch.randn(3, 8)
    before = norm(x)
    report = ak.patch(norm, impl="reference")
    assert "unknown: it looks like a norm" in str(report)
    assert torch.equal(norm(x), before)


def test_a_wrapper_around_ours_is_kept_and_can_be_taken_out_later(model, data):
    """A wrapper made with functools.wraps carries the marks of what it wraps, and is not ours."""
    before = model(**data.inputs).logits
    report = ak.patch(model, impl="reference")
    inner = model.forward.__func__

    @functools.wraps(inner)
    def wrapper(self, *args, **kwargs):
        return inner(self, *args, **kwargs)

    ours, model.forward = model.forward, types.MethodType(wrapper, model)
    with pytest.warns(UserWarning, match=r"forward was replaced after the patch"):
        report.revert()
    assert model.forward.__func__ is wrapper
    model.forward = ours
    report.revert()
    assert "forward" not in vars(model)
    assert torch.equal(model(**data.inputs).logits, before)


def test_two_threads_pool_for_themselves():
    """One puts its pooling off while the other is between pooling and norm."""
    model = build("qwen2_audio", layers=1)
    tower = next(m for m in model.modules() if hasattr(m, "avg_pooler"))
    x = torch.randn(2, 64, 10)
    wanted = in_orders(lambda: tower.layer_norm(tower.avg_pooler(x).mT))
    ak.patch(model, only=["pool_norm"], impl="reference")
    both, found = threading.Barrier(2), {}

    def work(name):
        pooled = tower.avg_pooler(x)
        both.wait()
        found[name] = tower.layer_norm(pooled.mT)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "ab":
        assert_same_but_rounding(found[name], wanted)
