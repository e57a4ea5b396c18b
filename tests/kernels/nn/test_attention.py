"""Self-attention as a module: transformers' layers, batches and packed rows, LoRA."""

import itertools

import pytest
import torch

import afn_kernels as ak

WIDTH, HEADS, KV_HEADS, DIM = 32, 4, 2, 8


def made(**options):
    torch.manual_seed(0)
    return ak.nn.Attention(WIDTH, HEADS, KV_HEADS, rotary=ak.nn.RotaryEmbedding(DIM), **options)


@pytest.mark.parametrize("options", [{}, {"qk_norm": 1e-6, "window": (3, 0)}, {"bias": True, "softcap": 5.0}])
def test_a_batch_and_packed_rows_are_the_same(options):
    module = made(**options)
    x = torch.randn(3, 9, WIDTH)
    packed = module(x.flatten(0, 1), cu_seqlens=torch.tensor([0, 9, 18, 27], dtype=torch.int32))
    torch.testing.assert_close(module(x), packed.unflatten(0, (3, 9)))


def test_positions_begin_anew_in_each_sequence():
    module, lengths = made(), [4, 0, 7]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    x = torch.randn(11, WIDTH)
    alone = torch.cat([module(part[None])[0] for part in x.split(lengths) if len(part)])
    torch.testing.assert_close(module(x, cu_seqlens=bounds), alone)
    sizes = {"total_q": 11, "head_dim": DIM, "dtype": x.dtype, "causal": True}
    torch.testing.assert_close(module(x, schedule=ak.attention_schedule(bounds, **sizes)), alone)


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3"])
def test_it_takes_the_weights_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM}
    config = getattr(transformers, f"{name}Config")(**sizes, intermediate_size=8, num_hidden_layers=1, vocab_size=8)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}Model")(config)
    theirs = model.layers[0].self_attn
    norm = config.rms_norm_eps if name == "Qwen3" else None
    rotary = ak.nn.RotaryEmbedding.from_config(config)
    ours = ak.nn.Attention(WIDTH, HEADS, KV_HEADS, DIM, bias=name == "Qwen2", qk_norm=norm, rotary=rotary)
    ours.load_state_dict(theirs.state_dict())
    x, positions = torch.randn(2, 9, WIDTH), torch.arange(9)[None]
    mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]
    expected = theirs(x, position_embeddings=model.rotary_emb(x, positions), attention_mask=mask)[0]
    torch.testing.assert_close(ours(x), expected)


def test_adapters_get_their_gradients():
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = torch.nn.Sequential(made(), ak.nn.MLP(WIDTH, 64))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, init_lora_weights=False))
    model(torch.randn(2, 9, WIDTH)).square().sum().backward()
    adapters = {name: p.grad for name, p in model.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * len(targets)
    assert all(grad is not None and grad.abs().max() > 0 for grad in adapters.values())
    assert not any(p.grad is not None for name, p in model.named_parameters() if "lora_" not in name)


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    module, x = made(qk_norm=1e-6), torch.randn(2, 9, WIDTH)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="4 heads over 3 KV heads"):
        ak.nn.Attention(32, 4, 3)
    with pytest.raises(ValueError, match="of a width of 30"):
        ak.nn.Attention(30, 4)
