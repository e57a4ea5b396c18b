"""Dropout that is a function of the step, and what cannot be merged."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from afn_model.network.head import LanguageModelHead, float32_logits, sampling_logits
from afn_model.train.lora_linear import LoRADropout, LoRALinear, adapters, merge, set_dropout
from afn_model.train.quantise import QuantisedLinear
from tests.budget import assert_within


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(LoRALinear(nn.Linear(64, 64), 2, 4) for _ in range(2)))
    for layer in model:
        nn.init.normal_(layer.lora_B)
        nn.init.normal_(layer.lora_A)
    return model


def test_dropout_is_a_function_of_seed_step_micro_batch_rank_and_layer():
    model, x = layers(), torch.ones(500, 64)
    whole = model[0].dropped(x)
    assert whole is x
    kept = {}
    for share, seed, rank, step, micro in ((0.25, 1, 0, 3, 1), (0.25, 2, 0, 3, 1), (0.25, 1, 1, 3, 1)):
        drop = LoRADropout(share, seed, rank)
        set_dropout(model, drop)
        for at in ((step, micro), (step + 1, micro), (step, micro + 1), (step, micro)):
            drop.begin(*at)
            torch.manual_seed(torch.randint(99, ()).item())  # the global state has no say
            for number, layer in enumerate(adapters(model).values()):
                found = layer.dropped(x)
                assert torch.equal(kept.setdefault((seed, rank, *at, number), found), found)
    first, *others = kept.values()
    assert len(kept) == 18
    assert not any(torch.equal(first, other) for other in others)
    # A binomial share: five standard deviations.
    assert abs(float((first == 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / first.numel()) ** 0.5
    assert torch.equal(first.unique(), torch.tensor([0, 1 / 0.75]))
    with torch.no_grad():
        assert model[0].dropped(x) is x, "answers are sampled from the whole adapter"
    assert model.eval()[0].dropped(x) is x


def test_one_compiled_block_serves_all_layers():
    """A number of the layer in the code would have it compiled for each, and given up after eight."""
    model, counter = nn.ModuleList(LoRALinear(nn.Linear(4, 4), 2, 4) for _ in range(10)), CompileCounter()
    drop = LoRADropout(0.5, 0)
    set_dropout(model, drop)
    torch._dynamo.reset()
    for layer in model:
        nn.init.ones_(layer.lora_A)
        nn.init.ones_(layer.lora_B)
        layer.compile(dynamic=True, backend=counter)
    for micro in range(2):
        drop.begin(0, micro)
        for layer in model:
            x = torch.randn(9, 4)
            assert torch.equal(layer(x), layer.forward(x))
    torch._dynamo.reset()
    assert counter.frame_count == 1


def test_an_adapter_is_not_merged_into_codes():
    model = nn.Sequential(LoRALinear(QuantisedLinear(torch.randn(8, 64), None, "nf4"), 2, 4))
    with pytest.raises(ValueError, match="the base is in nf4: put the adapter on the base in bfloat16 and merge"):
        merge(model)


def test_scaling():
    plain, stable = (LoRALinear(nn.Linear(4, 4), 4, 8, rslora=rslora).scale for rslora in (False, True))
    assert (plain, stable) == (2.0, 4.0)


@pytest.mark.parametrize("active", [True, False])
def test_a_head_with_an_adapter_samples_from_what_is_trained(active):
    """In bfloat16 logits of up to some 30 would be off by 0.06; the sums of both are in float32 alone."""
    torch.manual_seed(0)
    head = LoRALinear(LanguageModelHead(64, 5000, bias=False).bfloat16(), 4, 8)
    for weight in (head.weight, head.lora_A, head.lora_B):
        nn.init.normal_(weight)
    head.active, seen = active, []
    head.register_forward_hook(lambda module, given, logits: seen.append(logits.dtype))
    hidden = torch.randn(3, 64).bfloat16()
    with torch.no_grad():
        found = sampling_logits(head, hidden)
        x, weight = head.operands(hidden)
        bound = 80 * torch.finfo(torch.float32).eps * (x.abs().float() @ weight.abs().float().t())
        assert_within(found, float32_logits(x, weight), bound)
    assert seen == [torch.float32]
