"""LoRA: what it trains, what it leaves alone, and the same logits as peft on the transformers model."""

import json

import pytest
import torch

from afn_model import AFNext
from afn_model.train import lora
from afn_model.train.lora import adapters, add, disabled, load, merge, save
from tests.budget import assert_same_but_rounding
from tests.model.reference import prompts, tiny_reference
from tests.orders import in_orders

peft = pytest.importorskip("peft")
IDS = torch.arange(1, 13)[None]


@pytest.fixture
def pair(tmp_path):
    """A transformers model and ours with its weights."""
    reference = tiny_reference("musicflamingo", 0)
    reference.save_pretrained(tmp_path / "base")
    return reference, AFNext.from_pretrained(tmp_path / "base")


def stir(parameters) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def trained(model) -> list[torch.Tensor]:
    return [parameter for layer in adapters(model).values() for parameter in (layer.lora_A, layer.lora_B)]


def their_logits(model, asked):
    with torch.no_grad():
        return model(
            input_ids=asked.input_ids,
            attention_mask=asked.attention_mask,
            input_features=asked.mel,
            input_features_mask=asked.mel_mask,
        ).logits


def our_logits(model, asked):
    with torch.no_grad():
        mask = asked.attention_mask
        return model.logits(asked.input_ids, asked.mel, asked.mel_lengths, attention_mask=mask, windows_per_audio=[1])


def check(ours, theirs, asked):
    """Ours are the logits of transformers; returns those."""
    kept = asked.attention_mask.bool()
    expected = in_orders(lambda: their_logits(theirs, asked)[kept])
    assert_same_but_rounding(our_logits(ours, asked)[kept], expected)
    return expected[0]


def test_peft_reads_what_we_write(pair, tmp_path):
    reference, model = pair
    add(model, 4, 12, ("q_proj", "v_proj", "down_proj"))
    stir(trained(model))
    save(model, tmp_path / "adapter")
    asked = prompts([[300]], 0)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter")
    loaded = check(model, theirs, asked)
    with theirs.disable_adapter(), disabled(model):
        base = check(model, theirs, asked)
    assert (loaded - base).abs().max() > 0.1


@pytest.mark.parametrize("target", [["q_proj", "v_proj"], r".*language_model.*\.(gate_proj|o_proj)"])
@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_what_peft_writes(pair, tmp_path, target, rslora):
    reference, model = pair
    config = peft.LoraConfig(r=3, lora_alpha=9, target_modules=target, use_rslora=rslora)
    theirs = peft.get_peft_model(reference, config).eval()
    stir(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(tmp_path / "adapter")
    load(model, tmp_path / "adapter")
    # A plain list of names also reaches the encoder's layers.
    assert any(name.startswith("encoder") for name in adapters(model)) == isinstance(target, list)
    asked = prompts([[300]], 0)
    check(model, theirs, asked)


def test_ours_come_back_and_merge(pair, tmp_path):
    _, model = pair
    add(model, 2, 4)
    stir(trained(model))
    save(model, tmp_path / "adapter")
    expected = in_orders(lambda: model.logits(IDS))
    state = dict(model.state_dict())
    for name, layer in adapters(model).items():
        layer.fold(state, name)
    merge(model)
    assert not adapters(model)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert_same_but_rounding(model.logits(IDS), expected)
    again = AFNext.from_pretrained(tmp_path / "base")
    load(again, tmp_path / "adapter")
    assert torch.equal(again.logits(IDS), expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_adapters_train_and_they_start_as_nothing(pair, dtype):
    _, model = pair
    model.to(dtype)
    before = model.logits(IDS)
    bytes_before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for part in (model.encoder, model.adaptor):
        part.requires_grad_(False)
    add(model, 2, 4, ("q_proj", "o_proj"))
    assert torch.equal(model.logits(IDS), before)
    assert model.logits(IDS).dtype == dtype
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * 2 * 2
    assert all(name.endswith(("lora_A", "lora_B")) for name in names)
    assert all(parameter.dtype == torch.float32 for parameter in trained(model))
    optimiser = torch.optim.AdamW(trained(model), lr=1e-2)
    for _ in range(2):
        model.logits(IDS).float().square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert not torch.equal(model.logits(IDS), before)
    assert all(parameter.abs().max() > 0 for parameter in trained(model))
    with disabled(model):
        assert torch.equal(model.logits(IDS), before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in bytes_before.items())


def test_the_start_is_a_function_of_the_seed(pair, tmp_path):
    others = [AFNext.from_pretrained(tmp_path / "base") for _ in range(3)]
    for model, seed in zip(others, (1, 1, 2), strict=True):
        torch.manual_seed(seed + torch.randint(100, ()).item())
        add(model, 2, 4, seed=seed)
    first, same, another = (trained(model)[0] for model in others)
    assert torch.equal(first, same)
    assert not torch.equal(first, another)


def test_bad_adapters(pair, tmp_path):
    _, model = pair
    with pytest.raises(ValueError, match="LoRA rank 0"):
        add(model, 0, 1)
    with pytest.raises(ValueError, match="no LoRA target fc1; there are q_proj, k_proj"):
        add(model, 1, 1, ("fc1",))
    with pytest.raises(ValueError, match="no LoRA adapters to save"):
        save(model, tmp_path)
    with pytest.raises(ValueError, match=r"adapter_config.json is missing"):
        load(model, tmp_path)
    for options, line in (
        ({"target_modules": ["fc1"]}, "layers.0.fc1 cannot have the adapter"),
        ({"target_modules": ["lm_head"]}, "lm_head cannot have the adapter"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "not a plain LoRA adapter: use_dora"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "not a plain LoRA adapter: modules_to_save"),
    ):
        theirs = peft.get_peft_model(tiny_reference("musicflamingo", 0), peft.LoraConfig(r=2, **options))
        theirs.save_pretrained(tmp_path / "bad", save_embedding_layers=False)
        with pytest.raises(ValueError, match=line):
            load(model, tmp_path / "bad")
        assert not adapters(model)
    add(model, 1, 1)
    save(model, tmp_path / "good")
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        load(model, tmp_path / "good")
    narrow = AFNext.from_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "good" / lora.CONFIG).read_text())
    (tmp_path / "good" / lora.CONFIG).write_text(json.dumps(config | {"peft_type": "LOHA"}))
    with pytest.raises(ValueError, match="peft_type LOHA"):
        load(narrow, tmp_path / "good")
