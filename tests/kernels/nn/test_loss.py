"""LinearCrossEntropy among what people do to a head: its options, mixed precision, shards and adapters."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import afn_kernels as ak

D, V = 16, 37


def make(dtype=torch.float32, **options):
    torch.manual_seed(0)
    head = ak.nn.LinearCrossEntropy(D, V, dtype=dtype, **options)
    labels = torch.randint(V, (3, 5))
    labels[0, 1:3] = -100
    return head, torch.randn(3, 5, D, dtype=dtype), labels


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_options_are_those_of_linear_and_cross_entropy_loss(reduction):
    head, hidden, labels = make(torch.float64, reduction=reduction, bias=True, label_smoothing=0.1, softcap=3.0)
    torch.manual_seed(0)
    linear = nn.Linear(D, V, dtype=torch.float64)
    assert list(head.state_dict()) == list(linear.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), linear.parameters(), strict=True))
    logits = 3 * torch.tanh(linear(hidden) / 3)
    expected = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1)(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(head(hidden, labels).flatten(), expected.flatten(), atol=1e-12)
    assert "label_smoothing=0.1, softcap=3.0, bias=True" in repr(head)


def test_float32_parameters_beside_bfloat16_hidden_states():
    head, hidden, labels = make(bias=True)
    low = hidden.bfloat16().requires_grad_()
    head(low, labels).backward()
    assert low.grad.dtype == torch.bfloat16
    assert {p.grad.dtype for p in head.parameters()} == {torch.float32}
    expected = head(low, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(hidden, labels), expected)


@pytest.fixture
def one_rank_mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.slow
def test_fsdp2_with_mixed_precision(one_rank_mesh):
    """Sharded float32 parameters, gathered and multiplied in bfloat16: the loss and gradients of a bfloat16 head."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    head, hidden, labels = make(bias=True)
    plain = make(bias=True)[0].bfloat16()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(head, mesh=one_rank_mesh, mp_policy=policy)
    loss, expected = head(hidden, labels), plain(hidden.bfloat16(), labels)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    for a, b in zip(head.parameters(), plain.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        assert torch.equal(a.grad.full_tensor(), b.grad.float())


class HeadedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = make()[0]

    def forward(self, hidden, labels):
        return self.head(hidden, labels)


@pytest.mark.slow
def test_lora_reaches_the_loss_by_its_parameter_and_is_refused_as_a_layer():
    """A LoRA layer would add its product to the loss. One on the weight itself is seen: W + B A."""
    peft = pytest.importorskip("peft", reason="LoRA layers come from peft")
    _, hidden, labels = make()
    with pytest.raises(ValueError, match="is not supported"):
        peft.get_peft_model(HeadedModel(), peft.LoraConfig(target_modules=["head"]))

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=[], target_parameters=["head.weight"])
    model = peft.get_peft_model(HeadedModel(), config)
    trained = {name.split(".")[-3]: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {"lora_A", "lora_B"}
    for p in trained.values():
        nn.init.normal_(p, std=0.1)
    loss = model(hidden, labels)
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in trained.values())
    merged, base = model.merge_and_unload(), HeadedModel()
    assert not torch.equal(merged.head.weight, base.head.weight)
    torch.testing.assert_close(loss, merged(hidden, labels))

    config = peft.LoraConfig(r=2, target_modules=["other"], modules_to_save=["head"])
    model = nn.ModuleDict({"other": nn.Linear(D, D), "inner": HeadedModel()})
    peft.inject_adapter_in_model(config, model)
    model["inner"](model["other"](hidden), labels).backward()
    assert any(p.grad is not None and p.shape == (V, D) for p in model.parameters())
