"""Which modules ``patch`` takes for what: subclasses, classes of one's own, other versions, losses of no row."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="patching is tested on transformers models")

import transformers
from transformers.models.llama import modeling_llama as llama

import afn_kernels as ak
from afn_kernels.patch.architectures import ARCHITECTURES, ROWS
from afn_kernels.patch.match import match, renamed
from afn_kernels.patch.table import OPS, gated_mlp, loss
from tests.budget import assert_same_but_rounding
from tests.kernels.patch_models import batch, build, cache_name
from tests.orders import in_orders

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 40}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}


class HouseNorm(llama.LlamaRMSNorm):
    """Llama's under another name."""

    def __init__(self, size):
        super().__init__(size, eps=1e-5)


class LoudNorm(llama.LlamaRMSNorm):
    """One that computes something else."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


class HouseLlama(transformers.LlamaForCausalLM):
    """Llama with a method more."""

    def greet(self):
        return "hello"


class LoudLlama(transformers.LlamaForCausalLM):
    """Llama with a loss of its own."""

    def forward(self, *args, labels=None, **kwargs):
        out = super().forward(*args, **kwargs)
        return out.logits.float().square().mean()


class TestSubclasses:
    """A subclass with its base's forward is its base; one with a forward of its own is left alone, and said."""

    def test_a_norm_and_a_model(self):
        torch.manual_seed(0)
        model = HouseLlama(transformers.LlamaConfig(**SIZES))
        model.model.norm = HouseNorm(32)
        ids = torch.randint(3, 40, (2, 9))
        before = in_orders(lambda: [model(ids, labels=ids).loss])
        report = ak.patch(model, impl="reference")
        replaced = {(entry.type, entry.op) for entry in report.replaced}
        assert {("HouseNorm", "rms_norm"), ("HouseLlama", "linear_cross_entropy")} <= replaced
        out = model(ids, labels=ids)
        assert "_make_logits" in vars(out)
        assert_same_but_rounding([out.loss], before)
        assert model.greet() == "hello"

    def test_with_a_forward_of_their_own(self):
        torch.manual_seed(0)
        model = LoudLlama(transformers.LlamaConfig(**SIZES))
        model.model.norm = LoudNorm(32)
        ids = torch.randint(3, 40, (2, 9))
        before = in_orders(lambda: [model(ids, labels=ids)])
        report = ak.patch(model, impl="reference")
        reasons = {entry.type: entry.reason for entry in report.skipped}
        assert reasons["LoudNorm"] == "it has a forward of its own, which is not that of LlamaRMSNorm"
        assert reasons["LoudLlama"] == "it has a forward of its own, which is not that of LlamaForCausalLM"
        assert_same_but_rounding([model(ids, labels=ids)], before)

    def test_a_method_that_the_forward_calls_counts_too(self):
        class Shifted(nn.LayerNorm):
            def forward(self, input):
                return self.shift(super().forward(input))

            def shift(self, x):
                return x

        class Further(Shifted):
            def shift(self, x):
                return x + 1

        report = ak.patch(nn.Sequential(Shifted(4), Further(4)), like={"Shifted": "LayerNorm"}, impl="reference")
        assert [entry.type for entry in report.replaced] == ["Shifted"]
        assert [entry.reason for entry in report.skipped] == ["it has a shift of its own, which is not that of Shifted"]


class OwnNorm(nn.Module):
    """Llama's, written anew."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(size)), 1e-5

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))


class OwnMLP(nn.Module):
    """A gated MLP with other names."""

    def __init__(self, size):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(size, 48), nn.Linear(48, size), nn.Linear(size, 48)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.w2(self.act(self.w1(x)) * self.w3(x))


class TestLike:
    """Classes of one's own, by the name of a known one or by a row."""

    def test_norm_and_mlp(self):
        model, x = nn.Sequential(OwnNorm(32), OwnMLP(32)), torch.randn(5, 32)
        before = in_orders(lambda: model(x))
        assert not ak.patch(model, impl="reference").replaced
        row = gated_mlp("OwnMLP", gate="w1", up="w3", down="w2", activation="act")
        report = ak.patch(model, like={"OwnNorm": "LlamaRMSNorm", "OwnMLP": row}, impl="reference")
        assert [entry.op for entry in report.replaced] == ["rms_norm", "swiglu"]
        assert_same_but_rounding(model(x), before)
        assert_same_but_rounding(model[0](x=x), in_orders(lambda: OwnNorm.forward(model[0], x)))
        assert not report.fallbacks
        report.revert()
        assert torch.equal(model(x), before[0])

    def test_what_does_not_fit_is_said(self):
        report = ak.patch(OwnMLP(8), like={"OwnMLP": "LlamaMLP", "Ghost": "LlamaMLP"}, impl="reference")
        assert [entry.reason for entry in report.skipped] == ["it has no gate_proj"]
        assert report.notes == ["like: this model has no Ghost"]
        with pytest.raises(ValueError, match="no row is about a LlamaNorm"):
            ak.patch(OwnNorm(8), like={"OwnNorm": "LlamaNorm"})

    def test_a_method_that_is_not_there(self):
        report = ak.patch(OwnNorm(8), like={"OwnNorm": "MusicFlamingoModel"}, impl="reference")
        assert [entry.reason for entry in report.skipped] == ["it has no get_audio_features"]

    def test_another_forward_is_said_in_english(self):
        class Gated(OwnNorm):
            def forward(self, x, gate):
                return gate * super().forward(x)

        report = ak.patch(Gated(8), like={"Gated": "LlamaRMSNorm"}, impl="reference")
        assert [entry.reason for entry in report.skipped] == ["its forward takes (x, gate)"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"like": {"OwnNorm": 3}}, "expected a name to a name, or to a row"),
            ({"like": {3: "LlamaRMSNorm"}}, "expected a name to a name, or to a row"),
            ({"like": ["OwnNorm"]}, "like is a list, expected"),
            ({"like": {OwnNorm: "LlamaRMSNorm"}}, "the class OwnNorm as a key, expected its name"),
            ({"only": 3}, "only is 3, expected the name of an op"),
            ({"skip": ["rotary", 3]}, "skip is .* expected the name of an op"),
        ],
    )
    def test_arguments_of_other_types(self, arguments, said):
        with pytest.raises(TypeError, match=said):
            ak.patch(OwnNorm(8), **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_norms_of_torch_anywhere(dtype, eps):
    model = nn.Sequential(nn.LayerNorm(16), nn.RMSNorm(16, eps=eps), nn.Linear(16, 16)).to(dtype)
    for p in model.parameters():
        nn.init.normal_(p)
    x = torch.randn(7, 16, dtype=dtype)
    before = in_orders(lambda: model(x))
    report = ak.patch(model, impl="reference")
    assert [(entry.type, entry.op) for entry in report.replaced] == [
        ("LayerNorm", "layer_norm"),
        ("RMSNorm", "rms_norm"),
    ]
    assert_same_but_rounding(model(x), before)
    assert not report.fallbacks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_without_an_eps(dtype):
    """Torch takes that of float32, whatever the dtype; inputs are small enough to show it."""
    model, x = nn.Sequential(nn.RMSNorm(16, dtype=dtype)), (torch.randn(7, 16) / 100).to(dtype)
    before = in_orders(lambda: model(x))
    ak.patch(model, impl="reference")
    assert_same_but_rounding(model(x), before)


def test_norms_without_weights_or_of_several_axes():
    whole = nn.Sequential(nn.LayerNorm(4, bias=False), nn.LayerNorm(4, elementwise_affine=False), nn.Identity())
    x = torch.randn(3, 4)
    before = in_orders(lambda: whole(x))
    assert len(ak.patch(whole, impl="reference").replaced) == 2
    assert_same_but_rounding(whole(x), before)
    plain = nn.Sequential(nn.RMSNorm(4, elementwise_affine=False), nn.LayerNorm((2, 4)), nn.RMSNorm((2, 4)))
    report = ak.patch(plain, impl="reference")
    assert not report.replaced
    assert len(report.skipped) == 3


def test_one_op_by_its_name(model):
    assert {entry.op for entry in ak.patch(model, only="attention", impl="reference").replaced} == {"attention"}
    other = ak.patch(build("qwen2"), skip="attention", impl="reference")
    assert {entry.op for entry in other.replaced} == {"rms_norm", "swiglu", "rotary", "linear_cross_entropy"}


def test_a_loss_of_no_row_is_said():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16)
    report = ak.patch(transformers.GPT2LMHeadModel(config), impl="reference")
    (entry,) = [entry for entry in report.skipped if entry.op == "linear_cross_entropy"]
    assert (entry.type, entry.reason) == (
        "GPT2LMHeadModel",
        "unknown: it takes labels, but no row says what its loss is",
    )
    inner = ak.patch(build("qwen2_audio"), impl="reference")  # its inner model takes labels too, for the head to use
    assert not [entry for entry in inner.skipped if entry.op == "linear_cross_entropy"]


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_has_two_names(name, monkeypatch):
    """Attention of before and after transformers 5.24, whose forwards differ in the name of one argument."""
    model = build("llama", layers=1).eval()
    layer = model.model.layers[0].self_attn
    cls, own = type(layer), cache_name()
    forward = cls.forward

    def with_name(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        if name in kwargs:
            kwargs[own] = kwargs.pop(name)
        return forward(self, hidden_states, position_embeddings, attention_mask, **kwargs)

    code = "def forward(self, hidden_states, position_embeddings=None, attention_mask=None, {0}=None, **kwargs):\n"
    code += "    return inner(self, hidden_states, position_embeddings, attention_mask, {0}={0}, **kwargs)"
    scope = {"inner": with_name, "__name__": cls.__module__}
    exec(code.format(name), scope)
    monkeypatch.setattr(cls, "forward", scope["forward"])
    assert renamed(cls, match(layer, {})) == ({} if name == "past_key_values" else {"cache": "past_key_values"})
    data = batch("llama")
    hidden = model.model.embed_tokens(data.inputs["input_ids"][:1])
    places = torch.arange(hidden.shape[1])[None]
    turns = model.model.rotary_emb(hidden, places)

    def in_two_steps():
        kept, found = transformers.DynamicCache(config=model.config), []
        for part in (slice(0, 20), slice(20, 25)):
            arguments = {"position_embeddings": tuple(x[:, part] for x in turns), "position_ids": places[:, part]}
            found.append(layer(hidden[:, part], attention_mask=None, **arguments, **{name: kept})[0])
        assert kept.get_seq_length() == 25
        return found

    with torch.no_grad():
        before = in_orders(in_two_steps)
        report = ak.patch(model, impl="reference")
        assert "attention" in {entry.op for entry in report.replaced}
        assert_same_but_rounding(in_two_steps(), before)
    assert sum(report.fallbacks.values()) == 1  # the second part has more keys than queries


def test_every_row_is_about_an_op_and_says_what_it_lacks():
    assert {op for row in ROWS.values() for op in (*row.ops, *row.without)} == set(OPS)
    assert all(row.target or row.without for row in ROWS.values())


def test_another_loss_in_the_forward_is_left_alone(monkeypatch):
    """A version whose code does not mention what the row is about."""
    model = build("llama", layers=1)
    monkeypatch.setitem(ROWS, "LlamaForCausalLM", loss("LlamaForCausalLM", mentions=("logits_scaling",)))
    report = ak.patch(model, impl="reference")
    (entry,) = [entry for entry in report.skipped if entry.op == "linear_cross_entropy"]
    assert entry.reason == "this version's forward knows no logits_scaling"


def test_the_document_lists_what_the_table_has():
    text = (Path(__file__).parents[3] / "docs" / "using-the-kernels.md").read_text(encoding="utf-8")
    section = text.partition("### `patch`")[2].partition("\n### ")[0]
    listed = dict(re.findall(r"^\| ([^|`]+?) \| (`[^|]+) \|$", section, re.M))
    ops = {name: {op for row in rows for op in row.ops} for name, rows in ARCHITECTURES.items()}
    assert {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in listed.items()} == ops
