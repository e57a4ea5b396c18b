"""A padded batch to packed rows and back."""

import pytest
import torch

import afn_kernels as ak

MASK = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_there_and_back(dtype, shape):
    x = torch.randn(*MASK.shape, *shape)
    packed, cu_seqlens, indices = ak.unpad(x, MASK.to(dtype))
    assert torch.equal(packed, x[MASK.bool()])
    assert cu_seqlens.dtype == torch.int32
    assert cu_seqlens.tolist() == [0, 2, 5, 5, 9]
    kept = MASK.bool().view(*MASK.shape, *[1] * len(shape))
    assert torch.equal(ak.pad(packed, indices, *MASK.shape), torch.where(kept, x, 0.0))


def test_gradients_pass():
    x = torch.randn(*MASK.shape, 3, dtype=torch.float64, requires_grad=True)

    def around(x):
        packed, _, indices = ak.unpad(x, MASK)
        return ak.pad(packed.sin(), indices, *MASK.shape)

    assert torch.autograd.gradcheck(around, (x,))


def test_attention_over_a_padded_batch():
    """With a padding mask, as transformers hands it over, against each sequence alone."""
    q, k, v = torch.randn(3, *MASK.shape, 2, 8)
    (q_, bounds, rows), (k_, *_), (v_, *_) = (ak.unpad(x, MASK) for x in (q, k, v))
    out = ak.pad(ak.attention(q_, k_, v_, cu_seqlens_q=bounds, causal=True), rows, *MASK.shape)
    for row, kept in enumerate(MASK.bool()):
        assert not out[row, ~kept].any()
        if kept.any():
            alone = ak.attention(*(x[row, kept] for x in (q, k, v)), causal=True)
            torch.testing.assert_close(out[row, kept], alone)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: ak.unpad(x, MASK[:2]), r"x \(4, 4, 5\), mask \(2, 4\) do not fit"),
        (lambda x: ak.unpad(x, MASK.tolist()), "mask is a list, expected a tensor"),
        (lambda x: ak.pad(x[0], torch.arange(3), 4, 4), r"expected int64 \[4\]"),
        (lambda x: ak.pad(x[0], torch.arange(4).int(), 4, 4), r"int32.*expected int64 \[4\]"),
        (lambda x: ak.pad(x[0], torch.arange(4) + 13, 4, 4), "index 16 is past the 4 x 4 rows"),
    ],
)
def test_what_does_not_fit(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.zeros(4, 4, 5))
