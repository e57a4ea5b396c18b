"""How users of other libraries call attention: a batch without packing, and their names for its arguments."""

import importlib

import pytest
import torch

import afn_kernels as ak
from tests.kernels.test_attention import make

B, T = 3, 7


def batched(keys=T, dim=8):
    return [x.unflatten(0, (B, -1)) for x in make([B * T], [B * keys], 4, 2, dim, torch.float32)]


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("keys", [T, 12])
def test_a_batch_is_its_sequences(impl, keys):
    q, k, v = (x.requires_grad_() for x in batched(keys))
    options = {"causal": True, "window": (4, 0), "return_lse": impl == "reference", "impl": impl}
    found = ak.attention(q, k, v, **options)
    found = found if isinstance(found, tuple) else (found,)
    rows = [ak.attention(*row, **options) for row in zip(q, k, v, strict=True)]
    rows = [row if isinstance(row, tuple) else (row,) for row in rows]
    for x, parts in zip(found, zip(*rows, strict=True), strict=True):
        assert x.shape[:2] == (B, T)
        torch.testing.assert_close(x, torch.stack(parts))
    found[0].sum().backward()
    assert q.grad.shape == q.shape


def test_one_sequence_needs_no_boundaries():
    q, k, v = (x[:1] for x in batched())
    assert torch.equal(ak.attention(q, k, v, causal=True)[0], ak.attention(q[0], k[0], v[0], causal=True))


def test_slices_of_one_projection_are_not_copied(monkeypatch):
    qkv = torch.randn(B, T, 8, 8)
    flat = []
    monkeypatch.setattr(
        importlib.import_module("afn_kernels.attention.reference"),
        "one_sequence",
        lambda q, k, v, *_: (flat.append(q.untyped_storage().data_ptr()) or q, q[..., 0]),
    )
    ak.attention(*qkv.split((4, 2, 2), 2), impl="reference")
    assert set(flat) == {qkv.untyped_storage().data_ptr()}


@pytest.mark.slow
def test_a_batch_compiles_into_one_graph():
    compiled = torch.compile(
        lambda q, k, v: ak.attention(q, k, v, causal=True, window=(3, 0)), fullgraph=True, backend="aot_eager"
    )
    tensors = batched()
    torch.testing.assert_close(compiled(*tensors), ak.attention(*tensors, causal=True, window=(3, 0)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("attn_mask", "no mask tensors: cu_seqlens_q and cu_seqlens_k for padding"),
        ("attention_mask", "causal= and window="),
        ("dropout_p", "no dropout"),
        ("is_causal", "it is called causal"),
        ("window_size", "it is called window"),
        ("softmax_scale", "it is called scale"),
        ("max_seqlen_q", "leave it out"),
        ("banana", "there are carry, causal"),
    ],
)
def test_names_of_other_libraries(name, said):
    with pytest.raises(TypeError, match=f"attention: no argument '{name}': .*{said}") as error:
        ak.attention(*batched(), **{name: None})
    assert "\n" not in str(error.value)


def test_places_of_other_libraries():
    cu = torch.tensor([0, T], dtype=torch.int32)
    with pytest.raises(TypeError, match="7 positional arguments; after q, k and v they have names: cu_seqlens_q="):
        ak.attention(*(x[0] for x in batched()), cu, cu, T, T)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cu_seqlens_q": torch.tensor([0, T], dtype=torch.int32)}, r"q is \[B, T, H, D\].* comes with cu_seqlens_q"),
        ({"k": torch.zeros(B, T, 2, 8)[0]}, r"do not fit \[B, Tq, Hq, D\]"),
        ({"k": torch.zeros(2, T, 2, 8), "v": torch.zeros(2, T, 2, 8)}, r"do not fit \[B, Tq, Hq, D\]"),
        ({"v": torch.zeros(B, T, 2, 16)}, "heads of v have the size of those of q and k; pad the smaller with zeros"),
    ],
)
def test_batches_that_do_not_fit(change, said):
    given = dict(zip("qkv", batched(), strict=True)) | change
    with pytest.raises(ValueError, match=said):
        ak.attention(**given)


def test_values_with_heads_of_another_size():
    q, k, v = make([T], [T], 4, 2, 8, torch.float32)
    with pytest.raises(ValueError, match="heads of v have the size"):
        ak.attention(q, k, v[..., :4])
