"""LoRA: what it trains, what it leaves alone, and the same logits as peft on the transformers model."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from afn_model import AFNext
from afn_model.train import lora, peft_config
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


EVERYWHERE = {"language_model": ["v_proj"], "encoder": "all-linear", "adaptor": "all-linear", "lm_head": "all-linear"}


@pytest.mark.parametrize(
    ("targets", "saved", "more"),
    [
        (("q_proj", "v_proj", "down_proj"), (), {}),
        (EVERYWHERE, (), {"rslora": True, "rank_pattern": {"encoder.*": 2, "fc1": 3}, "alpha_pattern": {"lm_head": 5}}),
        ({"language_model": "all-linear", "encoder": ["fc1"]}, ("adaptor",), {}),
    ],
)
def test_peft_reads_what_we_write(pair, tmp_path, targets, saved, more):
    reference, model = pair
    add(model, 4, 12, targets, **more)
    stir(trained(model))
    stir(parameter for name in saved for parameter in model.get_submodule(name).parameters())
    save(model, tmp_path / "adapter", saved=saved, base="org/base")
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == "org/base"
    asked = prompts([[300]], 0)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter")
    loaded = check(model, theirs, asked)
    if saved:  # what was trained whole stays
        with disabled(model):
            assert not torch.equal(our_logits(model, asked), loaded)
        return
    with theirs.disable_adapter(), disabled(model):
        base = check(model, theirs, asked)
    assert (loaded - base).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        # A plain list of names also reaches the encoder's layers.
        ({"target_modules": ["q_proj", "v_proj"]}, {"encoder", "language_model"}),
        ({"target_modules": r".*language_model.*\.(gate_proj|o_proj)", "use_rslora": True}, {"language_model"}),
        (
            {
                "target_modules": ["q_proj", "fc1", "linear_1", "lm_head"],
                "rank_pattern": {"fc1": 2, ".*language_model.*q_proj": 5},
                "alpha_pattern": {"q_proj": 7, "model.multi_modal_projector.linear_1": 4},
            },
            {"encoder", "adaptor", "language_model", "lm_head"},
        ),
        ({"target_modules": ["k_proj"], "modules_to_save": ["projector", "lm_head"]}, {"encoder", "language_model"}),
    ],
)
def test_we_read_what_peft_writes(pair, tmp_path, options, parts):
    reference, model = pair
    theirs = peft.get_peft_model(reference, peft.LoraConfig(r=3, lora_alpha=9, **options)).eval()
    stir(p for name, p in theirs.named_parameters() if "lora_" in name or "modules_to_save" in name)
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert load(model, tmp_path / "adapter") == (("adaptor", "lm_head") if "modules_to_save" in options else ())
    assert {name.partition(".")[0] for name in adapters(model)} == parts
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
    with pytest.raises(ValueError, match="LoRA rank must be a whole number from 1 to"):
        add(model, 0, 1)
    with pytest.raises(ValueError, match="no LoRA target fc1; there are q_proj, k_proj"):
        add(model, 1, 1, ("fc1",))
    with pytest.raises(ValueError, match="LoRA: targets has no encodr; it takes language_model, encoder"):
        add(model, 1, 1, {"encodr": "all-linear"})
    with pytest.raises(ValueError, match="no LoRA adapters to save"):
        save(model, tmp_path)
    with pytest.raises(ValueError, match=r"adapter_config.json is missing"):
        load(model, tmp_path)
    for options, line in (
        ({"target_modules": ["conv1"]}, "encoder.conv1 cannot have the adapter"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "not a plain LoRA adapter: use_dora"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, "not a plain LoRA adapter: trainable_token"),
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
    with pytest.raises(ValueError, match="peft_type is 'LOHA'"):
        load(narrow, tmp_path / "good")


@pytest.fixture
def saved(pair, tmp_path):
    """A model without adapters, and a folder with one for it."""
    _, model = pair
    add(model, 2, 4, ("q_proj", "v_proj"))
    stir(trained(model))
    save(model, tmp_path / "adapter")
    return AFNext.from_pretrained(tmp_path / "base"), tmp_path / "adapter"


def refused(model, folder) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=str(folder)) as error:
        load(model, folder)
    assert "\n" not in str(error.value)
    assert before.keys() == model.state_dict().keys()
    return str(error.value)


def with_config(folder, **changes) -> None:
    config = json.loads((folder / lora.CONFIG).read_text()) | changes
    (folder / lora.CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("beginning", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "eva", "lora_ga", "x", 3])
def test_adapters_of_a_changed_base_are_refused(saved, beginning):
    model, folder = saved
    with_config(folder, init_lora_weights=beginning)
    assert f"init_lora_weights is {beginning!r}: such an adapter belongs to changed base" in refused(model, folder)


@pytest.mark.parametrize("beginning", [True, False, None, "gaussian", "orthogonal"])
def test_adapters_of_the_base_as_it_is_are_read(saved, beginning):
    model, folder = saved
    with_config(folder, init_lora_weights=beginning)
    load(model, folder)
    assert len(adapters(model)) == 4


def test_every_field_of_pefts_configuration_is_read_harmless_or_refused(saved):
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    read = {*peft_config.READ, *peft_config.HARMLESS}
    assert read <= fields
    defaults = json.loads(json.dumps(peft.LoraConfig(r=2, lora_alpha=4).to_dict(), default=sorted))
    assert peft_config.read_config(defaults) == peft_config.PeftConfig(2, 4.0)
    for name in fields - read:
        with pytest.raises(ValueError, match=f"not a plain LoRA adapter: {name}"):
            peft_config.read_config(defaults | {name: ["x"]})
    with pytest.raises(ValueError, match="not a plain LoRA adapter: use_something_new"):
        peft_config.read_config(defaults | {"use_something_new": True})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number, got nan"),
        ({"lora_alpha": "4"}, "lora_alpha must be a finite number, got '4'"),
        ({"r": 0}, "r must be a whole number from 1"),
        ({"r": 3}, "has an adapter of rank 2, but adapter_config.json says 3"),
        ({"rank_pattern": [2]}, "rank_pattern must be an object"),
        ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern.q_proj must be a whole number"),
        ({"rank_pattern": {"(q+)+_proj": 2}}, "'(q+)+_proj' is neither a layer's name nor a simple pattern"),
        ({"alpha_pattern": {"v_proj": None}}, "alpha_pattern.v_proj must be a finite number"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list of names"),
        ({"modules_to_save": ["lm_head"]}, "of modules_to_save it lacks 'lm_head.weight'"),
        ({"use_rslora": "false"}, "use_rslora must be true or false"),
        ({"peft_type": None}, "peft_type is None"),
        ({"bias": "all"}, "bias is 'all'"),
    ],
)
def test_settings_that_are_none(saved, changes, line):
    model, folder = saved
    with_config(folder, **changes)
    assert line in refused(model, folder)


@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 99_999 + "]" * 99_999])
def test_a_configuration_that_is_none(saved, text):
    model, folder = saved
    (folder / lora.CONFIG).write_text(text)
    assert lora.CONFIG in refused(model, folder)


def edited(folder, change) -> None:
    tensors = load_file(folder / lora.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / lora.WEIGHTS)


FIRST = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
TENSORS = {
    "none": (lambda t: t.clear(), "holds no tensors"),
    "whole numbers": (lambda t: t.update({FIRST: t[FIRST].to(torch.int8)}), "is torch.int8, expected floating-point"),
    "eight bits": (lambda t: t.update({FIRST: t[FIRST].to(torch.float8_e4m3fn)}), "is torch.float8_e4m3fn, expected"),
    "NaN": (lambda t: t[FIRST].view(-1)[3:4].fill_(float("nan")), "holds NaN or infinity"),
    "no axes": (lambda t: t.update({FIRST: torch.tensor(1.0)}), "an adapter of rank 0"),
    "no rows": (lambda t: t.update({FIRST: t[FIRST][:0].clone()}), "an adapter of rank 0"),
    "half": (lambda t: t.pop(FIRST), "cannot have the adapter lora_B"),
    "two names": (lambda t: t.update({FIRST.removesuffix(".weight"): t[FIRST].clone()}), "two tensors are lora_A of"),
    "another layer": (lambda t: t.update({"lora_A.weight": t[FIRST].clone()}), "cannot have the adapter"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_no_adapter(saved, case):
    model, folder = saved
    change, line = TENSORS[case]
    edited(folder, change)
    assert line in refused(model, folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights(saved, kept):
    model, folder = saved
    (folder / lora.WEIGHTS).write_bytes((folder / lora.WEIGHTS).read_bytes()[:kept])
    assert "damaged or not a safetensors file" in refused(model, folder)


@pytest.mark.parametrize(
    ("rank", "alpha", "line"),
    [("8", 1, "LoRA rank must be"), (10**9, 1, "above the layers' width"), (1, float("nan"), "LoRA alpha must be")],
)
def test_ranks_and_alphas_that_are_none(saved, rank, alpha, line):
    model, _ = saved
    with pytest.raises(ValueError, match=line):
        add(model, rank, alpha)
    assert not adapters(model)
    assert all(parameter.requires_grad for parameter in model.language_model.parameters())


@pytest.mark.parametrize("what", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_no_layer_is_an_error(saved, what):
    """A slip of the pen would leave layers with a rank that nobody asked for."""
    model, _ = saved
    with pytest.raises(ValueError, match=f"^{what}: 'encoder.*' is the name of no layer that gets an adapter"):
        add(model, 1, 1, **{what: {"layers.0.*": 2, "encoder.*": 2}})
    assert not adapters(model)


def test_all_linear_is_every_layer_of_the_blocks(saved):
    model, _ = saved
    add(model, 1, 1, "all-linear")
    assert len(adapters(model)) == 2 * len(lora.TARGETS)
    assert all(name.startswith("language_model") for name in adapters(model))
